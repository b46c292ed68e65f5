"""The options of `ganbert` are a contract: scripts and manifests are written against them."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from ganbert import __version__
from ganbert.cli import app
from ganbert.cli.options import Frames, Layout, Size, Unit
from ganbert.config import GRIDS
from ganbert.data.frames import FRAME_RULES
from ganbert.data.layouts import LAYOUTS
from ganbert.data.units import TARGETS

OPTIONS = {
    "doctor": set(),
    "evaluate": {"run", "--data", "--split", "--device", "--target-regions", "--reference-regions"},
    "export": {"run", "--checkpoint"},
    "infer": {
        "bids_dir",
        "out_dir",
        "level",
        "--model",
        "--participant-label",
        "--participant_label",
        "--session-label",
        "--session_label",
        "--bids-filter-file",
        "--bids_filter_file",
        "--derivatives",
        "-d",
        "--work-dir",
        "--work_dir",
        "-w",
        "--uncertainty",
        "--overwrite",
        "--nprocs",
        "--omp-nthreads",
        "--skip-bids-validation",
        "--skip_bids_validation",
        "--stop-on-first-crash",
        "--device",
        "--version",
    },
    "model": {"config", "--size", "--micro-batch"},
    "inspect": {"prepared", "--verify", "--tokens", "--intensity-ratio"},
    "phantom": {"out", "--subjects", "--tracer", "--seed", "--size", "--jobs"},
    "prepare": {
        "bids",
        "out",
        "--size",
        "--seed",
        "--layout",
        "--max-days",
        "--series",
        "--frames",
        "--unit",
        "--reference-region",
        "--reference-mask",
        "--diagnosis-column",
        "--split-column",
        "--split-from",
        "--cache",
        "--jobs",
        "--strict",
        "--verify-inputs",
    },
    "report": {"run", "--data"},
    "train": {
        "--config",
        "--data",
        "--output",
        "--resume",
        "--tracer",
        "--max-steps",
        "--num-gpus",
        "--master-port",
    },
    "serve": {
        "--model",
        "--host",
        "--port",
        "--device",
        "--token-file",
        "--insecure",
        "--queue",
        "--max-upload-mb",
        "--job-seconds",
        "--keep-seconds",
        "--drain-seconds",
        "--work-dir",
    },
}


HEAVY = {"torch", "nvidia", "deepspeed", "transformers", "nibabel", "nilearn", "bids", "matplotlib"}


def run_ganbert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ganbert.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_options_are_the_committed_ones() -> None:
    commands = typer.main.get_command(app).commands
    found = {
        name: {option for parameter in command.params for option in parameter.opts} - {"--help"}
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_sizes_are_those_of_the_grids() -> None:
    assert set(get_args(Size)) == set(GRIDS)


def test_layouts_are_those_of_the_registry() -> None:
    assert set(get_args(Layout)) == set(LAYOUTS)


def test_frames_and_units_are_those_of_their_tables() -> None:
    assert set(get_args(Frames)) == set(FRAME_RULES)
    assert set(get_args(Unit)) == set(TARGETS)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_and_option_is_explained(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    parameters = typer.main.get_command(app).commands[command].params
    assert typer.main.get_command(app).commands[command].help
    assert all(parameter.help for parameter in parameters)


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"ganbert {__version__}\n")


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, ganbert.cli; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not HEAVY & set(result.stdout.decode().split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("phantom",),
        ("phantom", "out", "--size", "huge"),
        ("phantom", "out", "--subjects", "0"),
        ("infer", "bids", "out", "group", "--model", "run"),
        ("nonsense",),
    ],
)
def test_wrong_usage_leaves_with_2(arguments: tuple[str, ...]) -> None:
    assert run_ganbert(*arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("phantom", "{}/out", "--tracer", "PIB"), "PIB"),
        (("prepare", "{}/none", "{}/out"), "none"),
        (("inspect", "{}/none"), "none"),
        (("inspect", "{}/none", "--tokens", "--intensity-ratio", "nan"), "--intensity-ratio"),
        (("evaluate", "{}/none"), "none"),
        (("infer", "{}/none", "{}/out", "participant", "--model", "{}/m"), "{}"),
        (("report", "{}/none"), "none"),
        (("train", "--config", "{}/none", "--data", "{}/d", "--output", "{}/run"), "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_users_mistake_is_one_line_and_2(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run_ganbert(*(argument.format(tmp_path) for argument in arguments))
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ganbert: error: ")
    assert words.format(tmp_path) in last
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "something half-written stays"


@pytest.mark.parametrize(
    ("options", "regions"),
    [
        ([], None),
        (["--target-regions", "a, b,"], ["a", "b"]),
        (["--target-regions", "a", "--target-regions", "b,c"], ["a", "b", "c"]),
    ],
)
def test_regions_are_given_with_commas_or_several_times(
    options: list[str], regions: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("ganbert.evaluate.evaluate", lambda run, **others: asked.append(others))
    other = [word.replace("target", "reference") for word in options]
    result = CliRunner().invoke(app, ["evaluate", "run", *options, *other])
    assert result.exit_code == 0, result.output
    assert asked[0]["target_regions"] == asked[0]["reference_regions"] == regions


def test_train_starts_the_launcher_and_returns_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def supervise(command: list[str], environment: dict[str, str]) -> int:
        started.append((command, environment))
        return 75

    monkeypatch.setattr("ganbert.launch.supervise", supervise)
    monkeypatch.setattr("ganbert.preflight.check_options", lambda options: None)
    monkeypatch.setenv("PATH", "/bin")
    options = [
        "--config",
        "c",
        "--data",
        "d",
        "--output",
        "o",
        "--max-steps",
        "9",
        "--tracer",
        "FDG",
    ]
    result = CliRunner().invoke(app, ["train", *options, "--num-gpus", "2", "--master-port", "7"])
    assert result.exit_code == 75, result.output
    [(command, environment)] = started
    assert Path(command[0]).name == "deepspeed"
    assert command[1:3] == ["--master_port=7", "--num_gpus=2"]
    assert Path(command[3]).parts[-2:] == ("ganbert", "train.py")
    words = "--config c --data d --output o --resume auto --tracer FDG --max-steps 9"
    assert command[4:] == words.split()
    assert str(Path(sys.executable).parent) in environment["PATH"].split(":")


@pytest.mark.parametrize("command", ["phantom out", "prepare bids out", "model recipe"])
def test_a_wrong_size_is_told_without_the_words_of_a_library(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--size", "tyny"])
    assert result.exit_code == 2
    assert "'tyny' is not one of 'tiny'" in result.stderr
    assert "Value error" not in result.stderr
