"""A training under the real launcher that others may kill: its processes, log and checkpoints."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ganbert.checkpoint_files import list_checkpoints

REPOSITORY = Path(__file__).parents[2]
HANGS_SECONDS = 600.0


class Failure(AssertionError):
    """There is no point in going on."""


@dataclass(frozen=True)
class Training:
    """One run, and the command that starts it and goes on with it."""

    run: Path
    data: Path
    recipe: Path

    def start(self) -> subprocess.Popen[bytes]:
        """`ganbert train`, its words in the run's own file."""
        options = ("--config", self.recipe, "--data", self.data, "--output", self.run)
        with self.words.open("ab") as words:
            return subprocess.Popen(
                [sys.executable, "-m", "ganbert.cli", "train", *map(str, options), "--num-gpus=2"],
                stdout=words,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            )

    @property
    def words(self) -> Path:
        """What the processes of the run print."""
        return self.run.with_suffix(".txt")

    def processes(self) -> list[psutil.Process]:
        """Parent, launcher, ranks: all that is alive."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            is_ours = str(self.run) in (process.info["cmdline"] or [])
            if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def log(self) -> list[dict[str, Any]]:
        """Whole lines of the log."""
        file = self.run / "log.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def last_step(self) -> int:
        """Step of the last line of the log."""
        lines = self.log()
        return int(lines[-1]["step"]) if lines else 0

    def newest(self) -> int:
        """Step of the newest finished checkpoint; 0 without one."""
        found = list_checkpoints(self.run)
        return int(found[-1].name.rpartition("-")[2]) if found else 0

    def being_saved(self) -> str | None:
        """Name of the checkpoint that is being written."""
        partial = next((self.run / "checkpoints").glob("step-????????.partial"), None)
        return None if partial is None else partial.stem

    def has(self, checkpoint: str) -> bool:
        """Whether a checkpoint is finished."""
        return (self.run / "checkpoints" / checkpoint).exists()


def kind_of(process: psutil.Process) -> str:
    """Say which process of a run it is."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if any(word.startswith("--local_rank=") for word in words):
            return "rank"
        if "deepspeed.launcher.launch" in words or Path(words[1]).name == "deepspeed":
            return "launcher"
        return "parent"
    return "gone"


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], pause: float) -> bool:
    """Wait for something, as long as the training lives."""
    end = time.monotonic() + HANGS_SECONDS
    while not holds():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            raise Failure("the training hangs")
        time.sleep(pause)
    return True
