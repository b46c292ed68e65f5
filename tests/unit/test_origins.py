"""Trainings of now are not added to those of other code, libraries or instructions unasked."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = {"subjects": 4, "cohort_seed": 1, "size": "tiny", "max_steps": 1, "split": "test"}
NOW = {
    "commit": "of-now",
    "versions": '{"torch": "2.0"}',
    "device": "CPU",
    "cpu": '{"maker": "GenuineIntel", "threads": 1}',
}


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("experiment")
    made_with = dict(NOW)

    def make(cell: Any, *_: object) -> tuple[list[list[str]], list[str]]:
        about = [cell.tracer, cell.regime, cell.name, str(cell.seed)]
        score = [module.digest(cell), "test", "real", "001", "20", "0.9", "0.1", "0.05", "0.2"]
        return [[*about, *score]], [*about, *made_with.values()]

    monkeypatch.setattr(module, "_make", make)
    monkeypatch.setattr(module, "prepare_cohort", lambda *_: None)
    monkeypatch.setattr(module.origins, "of_now", lambda _: dict(made_with))
    module.made_with = made_with  # what a training of now would be made with
    return module


def make(experiment: Any, work: Path, names: str, **options: bool) -> None:
    cells = [experiment.Cell("AV45", "paper", name, 1, "l1") for name in names]
    commands = SimpleNamespace(environment={})
    experiment.make_cells(cells, work, OPTIONS, commands, 1, **options)


def names_of(experiment: Any, work: Path) -> str:
    return "".join(sorted(line["name"] for line in experiment.read_scores(work)))


def test_alike_trainings_are_gone_on_with(experiment: Any, tmp_path: Path) -> None:
    make(experiment, tmp_path, "a")
    make(experiment, tmp_path, "ab")
    assert names_of(experiment, tmp_path) == "ab"


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("commit", "n/a", "commit of-now, now n/a (1)"),
        ("versions", '{"torch": "2.1"}', "torch 2.0, now 2.1 (1)"),
        ("device", "NVIDIA H100", "device CPU, now NVIDIA H100 (1)"),
        (
            "cpu",
            '{"maker": "AuthenticAMD", "threads": 1, "mkl_cbwr": "AVX2"}',
            "maker GenuineIntel, now AuthenticAMD (1); mkl_cbwr None, now AVX2 (1)",
        ),
    ],
)
def test_other_origins_are_refused_unless_the_user_mixes_them(
    experiment: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: str,
    value: str,
    said: str,
) -> None:
    make(experiment, tmp_path, "a")
    capsys.readouterr()
    experiment.made_with[column] = value
    with pytest.raises(SystemExit) as left:
        make(experiment, tmp_path, "ab")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert f"): {said}; use another folder" in error
    assert "--mix-origins" in error
    assert error.count("\n") == 1
    assert names_of(experiment, tmp_path) == "a"
    make(experiment, tmp_path, "ab", mix_origins=True)
    assert names_of(experiment, tmp_path) == "ab"


def test_scores_without_an_origin_are_no_scores_of_now(
    experiment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(experiment, tmp_path, "a")
    (tmp_path / "origins.tsv").unlink()
    with pytest.raises(SystemExit):
        make(experiment, tmp_path, "ab")
    assert "no origin is known (1)" in capsys.readouterr().err


def test_training_begun_with_other_code_is_not_gone_on_with(
    experiment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "AV45/paper/a-1.recipe"
    recipe.mkdir(parents=True)
    (recipe / "commits").write_text("before")
    with pytest.raises(SystemExit):
        make(experiment, tmp_path, "a")
    assert "begun at commit before, now of-now (1)" in capsys.readouterr().err
    (recipe / "commits").write_text("of-now")
    make(experiment, tmp_path, "a")


def test_commit_that_leaves_the_package_alone_is_the_same_code(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins = experiment.origins
    monkeypatch.setattr(origins, "ROOT", tmp_path)
    # A hook that runs the tests has its own repository in the environment.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def commit(file: str, text: str) -> str:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
        git("add", ".")
        git("commit", "-m", "x")
        return str(origins.commit_of_now())

    git("init")
    first = commit("ganbert/a.py", "1")
    documented = commit("docs/a.md", "1")
    changed = commit("ganbert/a.py", "2")
    assert origins._same_code(first, documented)
    assert not origins._same_code(first, changed)
    (tmp_path / "ganbert/a.py").write_text("3")
    assert origins.commit_of_now() == f"{changed}-dirty"
    assert not origins._same_code(changed, origins.commit_of_now())


def test_now_is_asked_of_what_the_trainings_would_be_started_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    asked = {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
    now = importlib.import_module("origins").of_now({**os.environ, **asked})
    cpu = json.loads(now["cpu"])
    assert (cpu["mkl_cbwr"], cpu["threads"]) == ("COMPATIBLE", 1)
    assert "torch" in json.loads(now["versions"])
    assert set(now) == set(NOW)


def test_complete_scores_are_shown_with_what_they_were_made_with(
    experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    table1 = importlib.import_module("table1")
    monkeypatch.setattr(table1, "make_cells", experiment.make_cells)
    monkeypatch.setattr(table1, "Commands", lambda: SimpleNamespace(environment={}))
    monkeypatch.setattr(table1, "format_table", lambda *_: ["the table"])
    options = ["--seeds", "1", "--methods", "l1", "demo", "--regimes", "paper", "--max-steps", "1"]
    # One at a time, so that l1 comes first.
    command = ["table1.py", str(tmp_path), *options, "--subjects", "4", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", command)
    table1.main()
    capsys.readouterr()
    experiment.made_with["commit"] = "n/a"  # and so are they of other code than now's
    file = tmp_path / "origins.tsv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    table1.main()
    said = capsys.readouterr().out
    made_with = "commit of-now, device CPU, torch 2.0, maker GenuineIntel, threads 1"
    assert said.startswith("## AV45")
    assert f"the table\nMade with (trainings 1 of 2): {made_with}.\n" in said
    assert said.endswith("Made with (trainings 1 of 2): no origin is known.\n")
    assert (tmp_path / "table1-AV45-real.md").read_text() == said
