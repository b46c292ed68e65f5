"""Signals and deaths inside the image: its exit code is the truth, and nothing is left behind."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ganbert.checkpoint_files import list_checkpoints
from ganbert.errors import EXIT_INTERRUPTED

from .containers import Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # the first test builds the images

# Of the 600 s that the manifests give between SIGTERM and SIGKILL.
GRACE_SECONDS = 110


@dataclass
class Training:
    """A container in which two ranks train."""

    container: "subprocess.Popen[str]"
    first: psutil.Process
    run: Path

    def processes(self, word: str) -> list[psutil.Process]:
        """Those of the container with a word in their command line, oldest first."""
        found = self.first.children(recursive=True)
        return [process for process in found if any(word in part for part in process.cmdline())]

    def end(self) -> tuple[int, str, float]:
        """Wait; return exit code, output and seconds, and see that every process is gone."""
        everything = [self.first, *self.first.children(recursive=True)]
        start = time.monotonic()
        output, _ = self.container.communicate(timeout=120)
        seconds = time.monotonic() - start
        _, left = psutil.wait_procs(everything, timeout=20)
        assert not left, output
        return self.container.returncode, output, seconds

    def logged_steps(self) -> int:
        log = self.run / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.fixture
def killed(
    engine: Engine,
    places: dict[str, Path],
    training: dict[str, dict[str, object]],
    request: pytest.FixtureRequest,
) -> Iterator[Training]:
    """A training that would last for hours, at step 2 or later."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    marker = places["/runs"] / f"{name}.pid"
    command = engine.command(
        "train",
        *("deepspeed", "--num_gpus=2", "ganbert/train.py", "--max-steps=100000"),
        mounts=training["mounts"],
        environment={**training["environment"], "GANBERT_OUTPUT": f"/runs/{name}"},
        options=("--pidfile", str(marker)),
    )
    container = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 240
        # Podman writes it when the first process runs, and removes it at the end.
        while not marker.exists() or not marker.read_text():
            assert container.poll() is None, container.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first = psutil.Process(int(marker.read_text()))
        started = Training(container, first, places["/runs"] / name)
        while started.logged_steps() < 2:
            assert container.poll() is None, container.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield started
    finally:
        if container.poll() is None:
            if marker.exists():
                os.kill(int(marker.read_text()), signal.SIGKILL)
            container.communicate(timeout=60)


def test_sigterm_to_the_first_process_saves(killed: Training) -> None:
    assert Path(killed.first.exe()).name == "tini"
    assert len(killed.processes("--local_rank=")) >= 2
    killed.first.send_signal(signal.SIGTERM)
    code, output, seconds = killed.end()
    assert code == EXIT_INTERRUPTED, output
    assert "interrupted at step" in output
    assert seconds < GRACE_SECONDS
    (checkpoint,) = list_checkpoints(killed.run)
    assert json.loads((checkpoint / "state.json").read_text())["step"] == killed.logged_steps()


@pytest.mark.parametrize("victim", ["deepspeed.launcher.launch", "bin/deepspeed"])
def test_killed_launcher_is_a_failure_without_orphans(killed: Training, victim: str) -> None:
    first_of_these = killed.processes(victim)[-1 if "bin/" in victim else 0]
    first_of_these.kill()
    code, output, _ = killed.end()
    assert code not in (0, 2, EXIT_INTERRUPTED), output
    assert "the launcher ended before its ranks" in output


def test_killed_rank_is_a_failure_without_orphans(killed: Training) -> None:
    killed.processes("--local_rank=1")[0].kill()
    code, output, _ = killed.end()
    assert code == 128 + signal.SIGKILL, output
    assert "rank 1: expected a process that trains, found none" in output
