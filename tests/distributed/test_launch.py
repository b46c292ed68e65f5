"""`ganbert train` above the real launcher: signals reach the ranks, and no process is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ganbert.checkpoint_files import list_checkpoints
from ganbert.errors import EXIT_INTERRUPTED

from .conftest import RECIPE
from .test_train import finish, ranks_of, read_log, wait_for_step


@pytest.fixture
def training(prepared: Path, repository: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`ganbert train` on two ranks that would train for hours, at step 2 or later."""
    options = ("--config", RECIPE, "--data", prepared, "--output", tmp_path / "run")
    command = [sys.executable, "-m", "ganbert.cli", "train", *map(str, options)]
    process = subprocess.Popen(
        [*command, "--num-gpus", "2", "--max-steps", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    try:
        wait_for_step(tmp_path / "run", 2, process)
        yield process
    finally:
        for left in processes_of(tmp_path / "run"):
            left.kill()
        process.wait()


def processes_of(run: Path) -> list[psutil.Process]:
    """Parent, launcher and ranks of a run: all carry its folder in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(run) in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_saves_and_leaves_nothing_behind(
    training: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert len(processes_of(tmp_path / "run")) == 5  # this parent, two of the launcher, two ranks
    training.send_signal(signal.SIGTERM)
    code, output = finish(training)
    assert code == EXIT_INTERRUPTED, output
    assert "interrupted at step" in output, "the ranks' words were lost"
    assert not processes_of(tmp_path / "run")
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    last = read_log(tmp_path / "run")[-1]["step"]
    assert json.loads((checkpoint / "state.json").read_text())["step"] == last


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_is_asked_says_where_it_is_and_goes_on(
    training: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """docs/operations.md, GanbertTrainingStalled: also where it hangs in a collective."""
    first, second = (ranks_of(training)[rank] for rank in (0, 1))
    first.suspend()
    time.sleep(2)  # the other one then waits for it
    second.send_signal(signal.SIGUSR1)
    first.resume()
    seen = read_log(tmp_path / "run")[-1]["step"]
    wait_for_step(tmp_path / "run", seen + 2, training)
    training.send_signal(signal.SIGTERM)
    code, output = finish(training)
    assert code == EXIT_INTERRUPTED, output
    assert output.count("most recent call first") > 1  # its threads
    assert re.search(r'File ".*/train\.py", line \d+ in train$', output, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", [0, 1])
def test_rank_that_is_killed_is_named_by_the_other(
    victim: int, training: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    ranks_of(training)[victim].kill()
    code, output = finish(training)
    assert code == 128 + signal.SIGKILL, output
    (line,) = [line for line in output.splitlines() if line.startswith("ganbert: ")]
    other = f"ganbert: rank {1 - victim}: error: rank {victim}: "
    assert line.startswith(f"{other}expected a process that trains, found none")
    assert "Traceback" not in output
    assert not processes_of(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_death_of_this_parent_saves_and_leaves_nothing_behind(
    training: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    training.kill()
    _, alive = psutil.wait_procs(processes_of(tmp_path / "run"), timeout=60)
    assert not alive
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    last = read_log(tmp_path / "run")[-1]["step"]
    assert json.loads((checkpoint / "state.json").read_text())["step"] == last


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_death_of_the_launcher_is_no_success_and_leaves_no_orphans(
    training: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    (inner,) = [
        process
        for process in processes_of(tmp_path / "run")
        if "deepspeed.launcher.launch" in process.cmdline()
    ]
    inner.kill()
    code, output = finish(training)
    assert code not in (0, EXIT_INTERRUPTED), output
    assert "the launcher ended before its ranks" in output
    assert not processes_of(tmp_path / "run")
