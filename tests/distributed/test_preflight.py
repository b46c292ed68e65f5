"""What cannot work is refused before torch is loaded, in one line of one rank of a node."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ganbert.errors import EXIT_USER_ERROR
from ganbert.folder_lock import held

from .conftest import RECIPE, Launch, free_port, place_of
from .test_train import finish


@pytest.fixture
def without_torch(tmp_path: Path, repository: Path) -> dict[str, str]:
    """An environment where whoever imports torch dies of it."""
    folder = tmp_path / "without"
    for name in ("torch", "deepspeed", "nvidia"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('it was imported')\n")
    return {"PYTHONPATH": f"{folder}:{repository}"}


def train(
    repository: Path, environment: dict[str, str], *options: object, under: tuple[str, ...] = ()
) -> tuple[int, list[str], list[str]]:
    """Two ranks of one node: exit code, and what each has said."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [*under, sys.executable, repository / "ganbert" / "train.py", *map(str, options)],
            env=place_of(rank, 2, port, ranks_here=2) | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    first, _ = ranks[0].communicate(timeout=120)
    ranks[1].terminate()  # as the launcher does
    second, _ = ranks[1].communicate(timeout=120)
    return ranks[0].returncode, first.splitlines(), second.splitlines()


def recipe_with(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump({"base": str(RECIPE), **settings}))
    return folder


def recipe_of_zero(folder: Path, stage: object) -> Path:
    shutil.copytree(RECIPE, folder)
    for name in ("generator.json", "discriminator.json"):
        engine = json.loads((folder / name).read_text()) | {"zero_optimization": {"stage": stage}}
        (folder / name).write_text(json.dumps(engine))
    return folder


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("file", "found a file; give another --output"),
        ("below a file", "Not a directory"),
        ("inside", "expected a folder outside of the prepared data"),
        ("full", "found a folder with something in it"),
        ("read-only", "found Permission denied"),
        ("held", "expected a run that nobody else is training"),
        ("tracer", "expected a tracer of"),
        ("levels", "expected a shape of multiples of"),
        ("zero", "zero_optimization.stage: expected 0 or 1, found 2"),
        ("option", "unrecognized arguments: --no-such"),
    ],
)
def test_a_mistake_is_one_line_before_torch(
    mistake: str, words: str, prepared: Path, repository: Path, tmp_path: Path,
    without_torch: dict[str, str],
) -> None:  # fmt: skip
    run, recipe, more, under = tmp_path / "run", RECIPE, [], ()
    if mistake == "file":
        run.touch()
    elif mistake == "below a file":
        run.touch()
        run = run / "below"
    elif mistake == "inside":
        run = prepared / "runs" / "1"
    elif mistake == "full":
        (run / "photos").mkdir(parents=True)
    elif mistake == "read-only":
        run.mkdir(mode=0o555)
        if os.geteuid() == 0:
            under = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    elif mistake == "tracer":
        more = ["--tracer", "FDG"]
    elif mistake == "levels":
        recipe = recipe_with(tmp_path / "recipe", generator={"channels": [4] * 9})
    elif mistake == "zero":
        recipe = recipe_of_zero(tmp_path / "recipe", 2)
    elif mistake == "option":
        more = ["--no-such"]
    options = ("--config", recipe, "--data", prepared, "--output", run, *more)
    before = sorted(tmp_path.rglob("*"))
    if mistake == "held":
        with held(run, expected="", remedy=""):
            code, first, second = train(repository, without_torch, *options)
        run.joinpath(".lock").unlink()
        run.rmdir()
    else:
        code, first, second = train(repository, without_torch, *options, under=under)
    assert code == EXIT_USER_ERROR, first
    assert words in first[-1]
    assert len(first) == 1 or mistake == "option"  # argparse shows the usage
    # Whether RUN is held the first rank alone asks: the other goes on until the launcher ends it.
    assert second == [] or mistake == "held"
    assert sorted(tmp_path.rglob("*")) == before
    assert not (prepared / "runs").exists()


def test_what_the_first_rank_does_not_see_the_other_says(
    prepared: Path, repository: Path, tmp_path: Path, without_torch: dict[str, str]
) -> None:
    options = ("--config", RECIPE, "--data", prepared, "--output", tmp_path / "without")
    done = subprocess.run(
        [sys.executable, repository / "ganbert" / "train.py", *map(str, options)],
        env=place_of(1, 2, free_port(), ranks_here=2) | without_torch,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_USER_ERROR
    (line,) = done.stderr.splitlines()
    assert line.startswith("ganbert: rank 1: error: ")


def test_help_does_not_wait_for_torch(repository: Path, without_torch: dict[str, str]) -> None:
    code, first, second = train(repository, without_torch, "--help")
    assert code == 0
    assert any("--config" in line for line in first)
    assert second == []


@pytest.mark.timeout(300)
def test_under_the_launcher_it_is_one_line_too_and_soon(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").touch()
    # Ten minutes long ranks wait for each other: `finish` does not.
    code, output = finish(
        launch("--config", RECIPE, "--data", prepared, "--output", tmp_path / "run")
    )
    assert code == EXIT_USER_ERROR, output
    (line,) = [line for line in output.splitlines() if "error: " in line]
    assert "found a file" in line
    assert "Traceback" not in output
