"""Kill a training again and again, and see whether it ends as if nothing had happened.

    python -m tests.chaos.chaos [--kills 26] [--seed 1] [--out figures.json]

Two ranks train the tiny recipe under `ganbert train` and the real launcher. Time after time one of
their processes is killed (SIGKILL), at a random moment: a rank, a part of the launcher, the parent,
one of them while a checkpoint is written, or before the first step. The same command is given
again, until no kill is left and the training ends. What must hold then:

- after each kill every process of the run is gone in time, and every finished checkpoint is whole
  and at least as new as before
- each start goes on from the newest checkpoint
- each step is in the log once, after what was done twice is taken out, with the numbers of the
  undisturbed run to the last bit: so no sample was skipped or seen twice
- weights, optimisers, schedules and counters of the last checkpoint and the export are those of the
  undisturbed run, to the last bit
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from ganbert.checkpoint_files import find_damage, list_checkpoints
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare
from tests.saved_engines import engines_of, leaves

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "tests" / "data" / "recipe_tiny"
CHECKPOINT_EVERY = 3
# A start is killed at the latest this many steps after it began to train: two checkpoints.
MOST_STEPS = 2 * CHECKPOINT_EVERY
KINDS = ("rank", "launcher", "parent", "rank in a save", "parent in a save", "before a step")
# Parent, two of the launcher, two ranks.
NUM_PROCESSES = 5
GONE_SECONDS = 120.0
HANGS_SECONDS = 600.0
# Of a line of the log, what is not the same in two runs.
TIMES = ("seconds", "volumes_per_second", "data_wait_seconds", "own_seconds", "phase_seconds")


class Failure(AssertionError):
    """Something was lost."""


@dataclass
class Figures:
    """What is counted; see `main` for what is made of it."""

    kills: Counter[str] = field(default_factory=Counter)
    in_a_save: int = 0
    seconds_until_gone: list[float] = field(default_factory=list)
    exit_codes: Counter[int] = field(default_factory=Counter)


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

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.run / "checkpoints").glob("step-????????.partial"))


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


def reach_moment(
    training: Training, process: subprocess.Popen[bytes], kind: str, dice: random.Random
) -> None:
    """Wait for the moment at which a process of this kind is killed."""
    begun = len(training.log())
    if kind == "before a step":
        wait_until(lambda: len(training.processes()) >= NUM_PROCESSES, process, 0.05)
        end = time.monotonic() + dice.uniform(0.0, 10.0)
        wait_until(lambda: time.monotonic() > end or len(training.log()) > begun, process, 0.01)
        return
    steps = dice.randint(1, MOST_STEPS - 1)
    wait_until(lambda: len(training.log()) >= begun + steps, process, 0.01)
    if kind.endswith("in a save"):
        wait_until(training.is_saving, process, 0.0005)
        time.sleep(dice.uniform(0.0, 0.15))
    else:
        time.sleep(dice.uniform(0.0, 0.5))


def kill_one(
    training: Training,
    process: subprocess.Popen[bytes],
    kind: str,
    dice: random.Random,
    figures: Figures,
) -> None:
    """Kill a process of the run at a random moment, and see what it leaves."""
    before = training.newest()
    reach_moment(training, process, kind, dice)
    if process.poll() is not None:
        raise Failure(f"the training ended by itself with {process.returncode}, before: {kind}")
    wanted = kind.partition(" ")[0]
    found = sorted(training.processes(), key=lambda found: found.pid)
    victims = [one for one in found if wanted in ("before", kind_of(one))]
    was_saving = training.is_saving()
    dice.choice(victims).kill()
    killed = time.monotonic()
    process.wait(GONE_SECONDS)
    while left := training.processes():
        if time.monotonic() > killed + GONE_SECONDS:
            raise Failure(f"{[kind_of(one) for one in left]} left after: {kind}")
        time.sleep(0.1)
    figures.seconds_until_gone.append(time.monotonic() - killed)
    figures.kills[kind] += 1
    figures.in_a_save += was_saving
    figures.exit_codes[process.returncode] += 1
    if process.returncode == 0:
        raise Failure(f"a killed training reports success, after: {kind}")
    for folder in list_checkpoints(training.run):
        if (damage := find_damage(folder)) is not None:
            raise Failure(f"{folder.name} is damaged after: {kind}: {damage}")
    if training.newest() < before:
        raise Failure(f"a checkpoint was lost after: {kind}")


def torment(training: Training, num_kills: int, dice: random.Random, figures: Figures) -> None:
    """Train to the end, with so many kills on the way."""
    kinds = [KINDS[number % len(KINDS)] for number in range(num_kills)]
    dice.shuffle(kinds)
    for number, kind in enumerate([*kinds, "none"], start=1):
        origin, lines = training.newest(), len(training.log())
        process = training.start()
        try:
            if kind == "none":
                code = process.wait(10 * HANGS_SECONDS)
                if code != 0:
                    raise Failure(f"the last start ended with {code}: see {training.words}")
            else:
                kill_one(training, process, kind, dice, figures)
        finally:
            if process.poll() is None:
                process.kill()
        first = training.log()[lines:][:1]
        if first and first[0]["step"] != origin + 1:
            raise Failure(f"went on with step {first[0]['step']} after checkpoint {origin}")
        seconds = figures.seconds_until_gone[-1] if kind != "none" else 0.0
        print(
            f"{number:3d}. {kind:17s} step {training.last_step():4d}, checkpoint "
            f"{training.newest():4d}, gone after {seconds:.1f} s",
            flush=True,
        )


def digest(run: Path) -> str:
    """SHA-256 of all that the run ends with: export, engines, counters."""
    last = list_checkpoints(run)[-1]
    content = engines_of(last)
    content["export"] = load_file(run / "export" / "generator.safetensors")
    content["state"] = json.loads((last / "state.json").read_text())
    total = hashlib.sha256()
    for name, value in sorted(leaves(content), key=lambda leaf: leaf[0]):
        total.update(name.encode())
        if torch.is_tensor(value):
            words = value.contiguous().flatten().view(torch.uint8) if value.numel() else value
            total.update(f"{value.dtype} {tuple(value.shape)}".encode() + words.numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def compare(whole: Training, killed: Training) -> None:
    """Hold a run against the undisturbed one."""
    expected = [_without_times(line) for line in whole.log()]
    by_step = {line["step"]: _without_times(line) for line in killed.log()}
    if [line["step"] for line in expected] != list(range(1, len(expected) + 1)):
        raise Failure("the undisturbed run has not all steps")
    for line in expected:
        if by_step.pop(line["step"], None) != line:
            raise Failure(f"step {line['step']} is missing, or another one")
    if by_step:
        raise Failure(f"steps that the undisturbed run does not have: {sorted(by_step)}")
    if digest(whole.run) != digest(killed.run):
        raise Failure("other weights, optimisers, schedules or counters")


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}


def set_up(folder: Path, num_kills: int) -> tuple[Training, Training]:
    """Make cohort and recipe; return the run to leave alone and the one to kill."""
    make_cohort(folder / "bids", num_subjects=8, tracer="AV45", seed=5, size="tiny", jobs=1)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "bids", folder / "prepared", seed=0, jobs=1, **grids)
    shutil.copytree(RECIPE, folder / "recipe")
    settings = yaml.safe_load((folder / "recipe" / "run.yaml").read_text())
    # A start that is killed in a save gets one checkpoint further than its steps.
    steps = (MOST_STEPS + CHECKPOINT_EVERY) * num_kills * 2 // 3 + MOST_STEPS
    settings |= {"max_steps": steps, "checkpoint_every": CHECKPOINT_EVERY, "keep_checkpoints": 2}
    (folder / "recipe" / "run.yaml").write_text(yaml.safe_dump(settings))
    whole, killed = (
        Training(folder / name, folder / "prepared", folder / "recipe")
        for name in ("whole", "killed")
    )
    return whole, killed


def _commit() -> str:
    words = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def report(killed: Training, figures: Figures, seconds: float, seed: int) -> dict[str, Any]:
    """Return what is published."""
    done = [line["step"] for line in killed.log()]
    names = ("torch", "deepspeed", "numpy", "nvidia-dali-cuda120")
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "command": f"python -m tests.chaos.chaos --kills {figures.kills.total()} --seed {seed}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            **{name: installed[name] for name in names if name in installed},
        },
        "cores": os.cpu_count(),
        "kills": dict(sorted(figures.kills.items())),
        "kills_in_all": figures.kills.total(),
        "kills_while_a_checkpoint_was_written": figures.in_a_save,
        "exit_codes": {str(code): num for code, num in sorted(figures.exit_codes.items())},
        "steps": max(done),
        "steps_done_twice": len(done) - max(done),
        "seconds_until_all_were_gone": {
            "median": sorted(figures.seconds_until_gone)[len(figures.seconds_until_gone) // 2],
            "longest": max(figures.seconds_until_gone),
        },
        "checkpoints_lost": 0,
        "processes_left": 0,
        "minutes": seconds / 60,
        "sha256_of_the_end": digest(killed.run),
        "equals_the_undisturbed_run": True,
    }


def run_chaos(folder: Path, num_kills: int, seed: int) -> dict[str, Any]:
    """Train twice, once with kills, and compare.

    Raises
    ------
    Failure
        If anything was lost.
    """
    started = time.monotonic()
    whole, killed = set_up(folder, num_kills)
    if (code := whole.start().wait(10 * HANGS_SECONDS)) != 0:
        raise Failure(f"the undisturbed run ended with {code}: see {whole.words}")
    figures = Figures()
    torment(killed, num_kills, random.Random(seed), figures)
    compare(whole, killed)
    return report(killed, figures, time.monotonic() - started, seed)


def main() -> None:
    """Run it, print the figures and write them."""
    parser = argparse.ArgumentParser(description="Kill a training again and again.")
    parser.add_argument("--kills", type=int, default=26)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ganbert-chaos-"))
    figures = run_chaos(folder, options.kills, options.seed)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    # Only now: after a failure one wants to look.
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
