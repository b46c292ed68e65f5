"""What benchmarks/experiment.py keeps, refuses and pairs; the trainings themselves are replaced."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ganbert.engines import check_engine_configs
from ganbert.recipe import load_recipe

ROOT = Path(__file__).parents[2]
OPTIONS = {"subjects": 4, "cohort_seed": 1, "size": "tiny", "max_steps": 1, "split": "test"}
COMMANDS = SimpleNamespace(environment={})


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "benchmarks/experiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "experiment", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "prepare_cohort", lambda *_: None)
    monkeypatch.setattr(module.origins, "check_origins", lambda *_: None)
    monkeypatch.setattr(module.origins, "of_now", lambda _: {})
    return module


def test_every_variant_of_the_taming_is_a_recipe(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    taming = importlib.import_module("taming")
    assert len(taming.VARIANTS) > 20
    for name, (recipe, overrides) in taming.VARIANTS.items():
        cell = experiment.Cell("AV45", "paper", name, 1, recipe, overrides)
        experiment._write_recipe(tmp_path / name, cell, 0.1)
        check_engine_configs(load_recipe(tmp_path / name))


def lines_of(experiment: Any, cell: Any) -> list[list[str]]:
    about = [cell.tracer, cell.regime, cell.name, str(cell.seed), experiment.digest(cell)]
    return [[*about, "test", "real", "001", "20.0", "0.9", "0.1", "0.05", "n/a"]]


def made_of(experiment: Any, cell: Any) -> tuple[list[list[str]], list[str]]:
    about = [cell.tracer, cell.regime, cell.name, str(cell.seed)]
    return lines_of(experiment, cell), [*about, "abc1234", "{}", "CPU", "{}"]


def test_what_is_done_is_kept_when_another_cell_fails(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def make(cell: Any, *_: object) -> tuple[list[list[str]], list[str]]:
        made.append(cell.name)
        if cell.name == "c":
            raise SystemExit(2)
        return made_of(experiment, cell)

    monkeypatch.setattr(experiment, "_make", make)
    cells = [experiment.Cell("AV45", "paper", name, 1, "l1") for name in "abcdef"]
    with pytest.raises(SystemExit):
        experiment.make_cells(cells, tmp_path, OPTIONS, COMMANDS, 1)
    assert {line["name"] for line in experiment.read_scores(tmp_path)} == set(made) - {"c"}
    assert {"a", "b"} <= set(made)
    monkeypatch.setattr(experiment, "_make", lambda cell, *_: made_of(experiment, cell))
    experiment.make_cells(cells, tmp_path, OPTIONS, COMMANDS, 2)
    done = [line["name"] for line in experiment.read_scores(tmp_path)]
    assert sorted(done) == list("abcdef")


def test_figures_of_another_recipe_are_not_mixed_in(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "_make", lambda cell, *_: made_of(experiment, cell))
    weak = experiment.Cell("AV45", "paper", "a", 1, "demo", {"losses.nsp": 1})
    strong = experiment.Cell("AV45", "paper", "a", 1, "demo", {"losses.nsp": 2})
    experiment.make_cells([weak], tmp_path, OPTIONS, COMMANDS, 1)
    experiment.make_cells([weak], tmp_path, OPTIONS, COMMANDS, 1)
    with pytest.raises(SystemExit, match="another recipe"):
        experiment.make_cells([strong], tmp_path, OPTIONS, COMMANDS, 1)


def test_scores_say_what_they_were_made_with(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell = experiment.Cell("AV45", "paper", "a", 1, "l1")
    run = tmp_path / cell.folder
    cpu = {"instruction_set": "AVX2", "threads": 1}

    class Pretended:
        def __init__(self) -> None:
            self.environment: dict[str, str] = {}

        def run(self, _log: Path, verb: str, *_: object) -> None:
            folder = run / "evaluation" if verb == "evaluate" else run
            folder.mkdir(parents=True)
            if verb == "train":
                now[0] = "of one who works on meanwhile"
                said = {"versions": {"torch": "2.0"}, "device": "CPU", "cpu": cpu, "seed": 1}
                (run / "run.json").write_text(json.dumps(said))
            else:
                keys = ("method", "mask", "reference", "subject", *experiment.FIGURES)
                values = ("ganbert", "head", "real", "001", "25", "0.9", "0.1", "0.05", "0.2")
                (folder / "metrics.tsv").write_text("\t".join(keys) + "\n" + "\t".join(values))

    monkeypatch.setattr(experiment, "intensity_ratio", lambda *_: 0.1)
    recipe = run.with_name(f"{run.name}.recipe")
    recipe.mkdir(parents=True)
    (recipe / "commits").write_text("earlier")  # that began it, and was interrupted
    now = ["now"]
    monkeypatch.setattr(experiment.origins, "commit_of_now", lambda: now[0])
    experiment.make_cells([cell], tmp_path, OPTIONS, Pretended(), 1)
    assert [line["psnr"] for line in experiment.read_scores(tmp_path)] == ["25"]
    with (tmp_path / "origins.tsv").open() as stream:
        (line,) = csv.DictReader(stream, delimiter="\t")
    assert (line["name"], line["seed"], line["device"]) == ("a", "1", "CPU")
    assert json.loads(line["cpu"]) == cpu
    assert json.loads(line["versions"]) == {"torch": "2.0"}
    assert line["commit"] == "earlier now"


@pytest.fixture
def _handlers() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_ctrl_c_is_one_line_and_130(
    experiment: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commands, log = experiment.Commands(), tmp_path / "log"

    def interrupt() -> None:
        while not log.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    # A command that would take minutes.
    options = ("--subjects", 500, "--size", "paper", "--jobs", 1)
    with pytest.raises(SystemExit) as left:
        commands.run(log, "phantom", tmp_path / "out", *options)
    thread.join()
    assert left.value.code == 130
    said = "interrupted; run the same command again to go on (what is at work saves first)\n"
    assert capfd.readouterr().err == said
    # What waits for its turn does not begin.
    with pytest.raises(SystemExit) as left:
        commands.run(log, "phantom", tmp_path / "other")
    assert left.value.code == 130
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("_handlers")
def test_trainings_compute_alike_on_cpus_of_one_maker_unless_the_user_says_otherwise(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ganbert"
    program.write_text("#!/bin/sh\nexec env\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    asked = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
    for name in asked:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    experiment.Commands().run(tmp_path / "log", "train")
    lines = (tmp_path / "log").read_text().splitlines()
    expected = asked | {"OMP_NUM_THREADS": "2"}
    assert {f"{name}={value}" for name, value in expected.items()} <= set(lines)


def test_ctrl_c_ends_a_measurement_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-u", str(ROOT / "benchmarks/layouts.py"), "--work", str(tmp_path)]
    benchmark = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has it ignored, and so have all children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert benchmark.stdout is not None
    assert benchmark.stdout.readline().startswith("| layout")
    os.killpg(benchmark.pid, signal.SIGINT)  # as the terminal does
    _, said = benchmark.communicate(timeout=120)
    assert (benchmark.returncode, said) == (130, "interrupted; run the same command again\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_every_script_that_runs_ends_so(script: Path) -> None:
    text = script.read_text()
    assert "__main__" not in text or "    with interruptible():\n        main()" in text


def test_recipe_does_not_depend_on_seed_but_on_every_setting(experiment: Any) -> None:
    cell = experiment.Cell("AV45", "paper", "a", 1, "demo")
    assert experiment.digest(cell) == experiment.digest(
        experiment.Cell("FDG", "suvr", "b", 2, "demo")
    )
    for other in ({"losses.nsp": 2}, {experiment.LEARNING_RATE: 1e-2}):
        changed = experiment.Cell("AV45", "paper", "a", 1, "demo", other)
        assert experiment.digest(changed) != experiment.digest(cell)


def scores(**values: dict[int, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "seed": str(seed), "subject": subject, "psnr": value}
        for name, of_seed in values.items()
        for seed, value in of_seed.items()
        for subject in ("001", "002")
    ]


def test_seeds_are_those_that_were_asked_for(experiment: Any) -> None:
    table = scores(l1={1: "20", 2: "30"}, gan={1: "21"})
    where: dict[str, Any] = {"figure": "psnr", "seeds": [1]}
    of_gan, of_l1 = (experiment.by_subject(table, name=n, **where) for n in ("gan", "l1"))
    assert experiment.paired(of_gan, of_l1).value == pytest.approx(1.0)
    with pytest.raises(SystemExit, match="expected seeds"):
        experiment.by_subject(table, "psnr", [1, 2], name="gan")


def test_undefined_value_is_left_out_of_the_difference(experiment: Any) -> None:
    table = scores(l1={1: "20"}, gan={1: "21"})
    table[-1]["psnr"] = "n/a"
    of_gan, of_l1 = (experiment.by_subject(table, "psnr", [1], name=n) for n in ("gan", "l1"))
    assert experiment.paired(of_gan, of_l1).value == pytest.approx(1.0)


def test_differences_are_to_the_method_that_was_asked_for(
    experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table1 = importlib.import_module("table1")
    values = {experiment.MEAN: {1: "20"}, "l1": {1: "22"}, "demo": {1: "25"}}
    table = [dict.fromkeys(experiment.FIGURES, "0.5") | line for line in scores(**values)]
    table = [line | {"regime": "paper"} for line in table]

    def differences(**options: str) -> list[str]:
        lines = table1.format_table(table, ["l1", "demo"], [1], {"regime": "paper"}, **options)
        (head,) = (n for n, line in enumerate(lines) if line.startswith("| minus "))
        return [
            "|".join(line.split("|")[1:3]) for line in (lines[head], *lines[head + 2 :]) if line
        ]

    of_l1 = differences()
    assert [line.split(" [")[0] for line in of_l1] == [
        " minus L1 alone | psnr ",
        " mean of the training PETs | -2.0000",
        " GANBERT, tamed | +3.0000",
    ]
    of_demo = differences(against="demo")
    assert [line.split(" [")[0] for line in of_demo] == [
        " minus GANBERT, tamed | psnr ",
        " mean of the training PETs | -5.0000",
        " L1 alone | -3.0000",
    ]
