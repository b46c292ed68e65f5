"""Kill a training again and again, and see whether it ends as if nothing had happened.

    python -m tests.chaos.chaos [--kills 26] [--seed 1] [--out figures.json]

Two ranks train the tiny recipe under `ganbert train` and the real launcher. Time after time one of
their processes is killed (SIGKILL), at a random moment: a rank, a part of the launcher, the parent,
one of them while a checkpoint is written, or before the first step. The same command is given
again, until no kill is left and the training ends. What must hold then:

- after each kill every process of the run is gone in time
- every checkpoint that was finished just before the kill is there after it and whole, but for those
  that newer ones have replaced
- each start goes on from the newest checkpoint
- each step is in the log once, after what was done twice is taken out, with the numbers of the
  undisturbed run to the last bit
- each epoch had each sample once, and each rank the samples that it had in the undisturbed run
- weights, optimisers, schedules and counters of the last checkpoint and the export are those of the
  undisturbed run, to the last bit

What does not hold is counted, and the script ends with 1.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from ganbert.checkpoint_files import list_checkpoints
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import load_index
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare
from ganbert.sample_log import read_samples
from tests.chaos.ledger import CheckpointLedger, epochs_of
from tests.chaos.training import HANGS_SECONDS, REPOSITORY, Failure, Training, kind_of, wait_until
from tests.saved_engines import engines_of, leaves

RECIPE = REPOSITORY / "tests" / "data" / "recipe_tiny"
TRACER = "AV45"
CHECKPOINT_EVERY = 3
KEEP_CHECKPOINTS = 2
# A start is killed at the latest this many steps after it began to train: two checkpoints.
MOST_STEPS = 2 * CHECKPOINT_EVERY
KINDS = ("rank", "launcher", "parent", "rank in a save", "parent in a save", "before a step")
# Parent, two of the launcher, two ranks.
NUM_PROCESSES = 5
GONE_SECONDS = 120.0
# What `compare` counts that should be none, and what it finds that should be one.
LOSSES = (
    "steps_that_differ",
    "samples_skipped",
    "samples_repeated",
    "samples_on_another_rank_or_in_another_order",
)
ENDS = ("sha256_of_the_end", "sha256_of_the_undisturbed_end")
# Of a line of the log, what is not the same in two runs.
TIMES = ("seconds", "volumes_per_second", "data_wait_seconds", "own_seconds", "phase_seconds")


@dataclass
class Figures:
    """What is counted on the way; see `report` for the rest."""

    checkpoints: CheckpointLedger
    kills: Counter[str] = field(default_factory=Counter)
    in_a_save: int = 0
    interrupted_saves: int = 0
    processes_left: list[str] = field(default_factory=list)
    successes_reported: int = 0
    seconds_until_gone: list[float] = field(default_factory=list)
    exit_codes: Counter[int] = field(default_factory=Counter)


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
        wait_until(lambda: training.being_saved() is not None, process, 0.0005)
        time.sleep(dice.uniform(0.0, 0.15))
    else:
        end = time.monotonic() + dice.uniform(0.0, 0.5)
        wait_until(
            lambda: time.monotonic() > end or len(training.log()) > begun + MOST_STEPS,
            process,
            0.002,
        )


def kill_one(
    training: Training,
    process: subprocess.Popen[bytes],
    kind: str,
    dice: random.Random,
    figures: Figures,
) -> None:
    """Kill a process of the run at a random moment, and see what it leaves."""
    reach_moment(training, process, kind, dice)
    if process.poll() is not None:
        raise Failure(f"the training ended by itself with {process.returncode}, before: {kind}")
    wanted = kind.partition(" ")[0]
    found = sorted(training.processes(), key=lambda found: found.pid)
    victims = [one for one in found if wanted in ("before", kind_of(one))]
    figures.checkpoints.look(is_running=True)
    in_work = training.being_saved()
    dice.choice(victims).kill()
    figures.seconds_until_gone.append(wait_until_gone(training, process, kind, figures))
    figures.kills[kind] += 1
    figures.in_a_save += in_work is not None
    figures.interrupted_saves += in_work is not None and not training.has(in_work)
    figures.exit_codes[process.returncode] += 1
    figures.successes_reported += process.returncode == 0
    figures.checkpoints.look()


def wait_until_gone(
    training: Training, process: subprocess.Popen[bytes], kind: str, figures: Figures
) -> float:
    """Return the seconds until all processes of the run are gone; end and count those that stay."""
    killed = time.monotonic()
    while left := training.processes():
        if time.monotonic() > killed + GONE_SECONDS:
            figures.processes_left += [f"{kind_of(one)} after: {kind}" for one in left]
            for one in left:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(left, GONE_SECONDS)
        process.poll()
        time.sleep(0.05)
    process.wait(GONE_SECONDS)
    return time.monotonic() - killed


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
                figures.checkpoints.look()
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


def compare(whole: Training, killed: Training) -> dict[str, Any]:
    """Hold a run against the undisturbed one, and count what is not the same."""
    expected = {line["step"]: _without_times(line) for line in whole.log()}
    if list(expected) != list(range(1, len(expected) + 1)):
        raise Failure("the undisturbed run has not all steps")
    found = {line["step"]: _without_times(line) for line in killed.log()}
    steps = expected.keys() | found.keys()
    samples, samples_expected = read_samples(killed.run), read_samples(whole.run)
    num_rows = len(load_index(killed.data).select("train", TRACER))
    skipped, repeated = epochs_of(samples, num_rows)
    return {
        "steps": len(expected),
        "steps_that_differ": sum(expected.get(step) != found.get(step) for step in steps),
        "samples": len(samples),
        "samples_of_an_epoch": num_rows,
        "samples_skipped": skipped,
        "samples_repeated": repeated,
        "samples_on_another_rank_or_in_another_order": sum(
            samples.get(k) != samples_expected.get(k)
            for k in samples.keys() | samples_expected.keys()
        ),
        "sha256_of_the_end": digest(killed.run),
        "sha256_of_the_undisturbed_end": digest(whole.run),
    }


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}


def set_up(folder: Path, num_kills: int) -> tuple[Training, Training]:
    """Make cohort and recipe; return the run to leave alone and the one to kill."""
    make_cohort(folder / "bids", num_subjects=8, tracer=TRACER, seed=5, size="tiny", jobs=1)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "bids", folder / "prepared", seed=0, jobs=1, **grids)
    shutil.copytree(RECIPE, folder / "recipe")
    settings = yaml.safe_load((folder / "recipe" / "run.yaml").read_text())
    # A start that is killed in a save gets one checkpoint further than its steps.
    steps = (MOST_STEPS + CHECKPOINT_EVERY) * num_kills * 2 // 3 + MOST_STEPS
    settings |= {
        "max_steps": steps,
        "checkpoint_every": CHECKPOINT_EVERY,
        "keep_checkpoints": KEEP_CHECKPOINTS,
        "log_samples": True,
    }
    (folder / "recipe" / "run.yaml").write_text(yaml.safe_dump(settings))
    whole, killed = (
        Training(folder / name, folder / "prepared", folder / "recipe")
        for name in ("whole", "killed")
    )
    return whole, killed


def _commit() -> str:
    words = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def report(
    killed: Training, figures: Figures, comparison: dict[str, Any], seconds: float, seed: int
) -> dict[str, Any]:
    """Return what is published; `failures` has the names of the figures that should be others."""
    done = [line["step"] for line in killed.log()]
    names = ("torch", "deepspeed", "numpy", "nvidia-dali-cuda120")
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    losses = {
        "checkpoints_lost": len(figures.checkpoints.lost),
        "processes_left": len(figures.processes_left),
        "kills_reported_as_success": figures.successes_reported,
        **{name: comparison.pop(name) for name in LOSSES},
    }
    ends = [comparison.pop(name) for name in ENDS]
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
        "of_them_the_checkpoint_was_not_finished": figures.interrupted_saves,
        "exit_codes": {str(code): num for code, num in sorted(figures.exit_codes.items())},
        **comparison,
        "steps_done_twice": len(done) - len(set(done)),
        "seconds_until_all_were_gone": {
            "median": statistics.median(figures.seconds_until_gone),
            "longest": max(figures.seconds_until_gone),
        },
        **losses,
        "lost_and_left": [*figures.checkpoints.lost, *figures.processes_left],
        **dict(zip(ENDS, ends, strict=True)),
        "failures": [
            *(name for name, number in losses.items() if number != 0),
            *(["sha256_of_the_end"] if ends[0] != ends[1] else []),
        ],
        "minutes": seconds / 60,
    }


def run_chaos(folder: Path, num_kills: int, seed: int) -> dict[str, Any]:
    """Train twice, once with kills, and count what the kills have cost (see `report`).

    Raises
    ------
    Failure
        If a training cannot get to its end.
    """
    started = time.monotonic()
    whole, killed = set_up(folder, num_kills)
    if (code := whole.start().wait(10 * HANGS_SECONDS)) != 0:
        raise Failure(f"the undisturbed run ended with {code}: see {whole.words}")
    figures = Figures(CheckpointLedger(killed.run, KEEP_CHECKPOINTS))
    torment(killed, num_kills, random.Random(seed), figures)
    comparison = compare(whole, killed)
    return report(killed, figures, comparison, time.monotonic() - started, seed)


def main() -> int:
    """Run it, print the figures and write them; return the exit code."""
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
    if figures["failures"]:
        print(f"failed; what is left to look at: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
