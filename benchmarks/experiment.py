"""Many small trainings on one phantom cohort, in pieces: what table1.py and taming.py share.

A cell is one training (recipe, overrides, seed) and its evaluation, made with the commands that a
user has. Its scores are added to WORK/scores.tsv when it is done; what stands there is not done
again, and a cell that was stopped goes on from its last checkpoint. A digest of the recipe stands
beside the scores: figures of another recipe of the same name are refused, not mixed in, and so are
those of other code, versions or instructions (origins.py), unless --mix-origins is given.
"""

import argparse
import contextlib
import copy
import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import origins
import yaml
from interruption import EXIT_INTERRUPTED

from ganbert.agreement import Estimate, paired_bootstrap
from ganbert.config import GRIDS
from ganbert.data.index import load_index
from ganbert.recipe import RUN_FILE, read_contents

ROOT = Path(__file__).resolve().parents[1]
REGIMES = {"paper": 9.0, "suvr": 2.0}  # normalised 99.9th percentile of the training PETs
FIGURES = ("psnr", "ssim", "rmse", "intensity_distance", "top_recall")
MEAN = "training mean"
LEARNING_RATE = "discriminator.json"  # override of the adversary's engine, not of run.yaml
_KEYS = ("tracer", "regime", "name", "seed", "recipe", "split", "reference", "subject")
_SCORES, _OPTIONS = "scores.tsv", "options.json"
_OF_THE_CELL = ("seed", "intensity_ratio")  # settings that are no part of the method
# Last bits that are alike on any Intel CPU with AVX2. Left alone, oneDNN and MKL take what the CPU
# has, and each set of instructions and number of threads adds in another order: after 300 steps
# that is up to 0.6 dB of a subject (docs/results.md, "The same numbers again"). On another maker's
# CPU MKL takes no orders but COMPATIBLE, at 1.6 times the seconds of a step with a BERT.
ARITHMETIC = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Cell:
    """One training: a recipe of ds_configs/, `overrides` (dotted names of run.yaml) and a seed."""

    tracer: str
    regime: str
    name: str
    seed: int
    recipe: str = field(compare=False)
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> origins.Key:
        """What its scores and its origin are found by."""
        return self.tracer, self.regime, self.name, self.seed

    @property
    def folder(self) -> Path:
        """Where it is trained, below WORK."""
        return Path(self.tracer, self.regime, f"{self.name}-{self.seed}")


class Commands:
    """Runs the project's own commands, several at a time, and ends them together."""

    def __init__(self) -> None:
        self.stopped = False
        self._children: set[subprocess.Popen[bytes]] = set()
        # Whoever has said otherwise is obeyed.
        self.environment = ARITHMETIC | os.environ
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.stopped:
            # Straight to the descriptor: the signal may have come in the middle of another line.
            text = (
                "interrupted; run the same command again to go on (what is at work saves first)\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
        self.stopped = True
        for child in tuple(self._children):
            child.send_signal(number)

    def run(self, log: Path, verb: str, *arguments: object) -> None:
        """Run one `ganbert` command; what it says goes to `log`.

        Raises
        ------
        SystemExit
            If it fails, with its exit code, or was stopped, with 130.
        """
        if self.stopped:
            raise SystemExit(EXIT_INTERRUPTED)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [Path(sys.executable).with_name("ganbert"), verb, *arguments]
        with log.open("ab") as stream:
            # In a session of its own: Ctrl-C reaches it once, through us, and it saves first.
            child = subprocess.Popen(
                [str(part) for part in command], cwd=ROOT, start_new_session=True,
                env=self.environment, stdout=stream, stderr=stream,
            )  # fmt: skip
            self._children.add(child)
            if self.stopped:
                child.send_signal(signal.SIGTERM)
            status = child.wait()
            self._children.discard(child)
        if status:
            if self.stopped:
                raise SystemExit(EXIT_INTERRUPTED)
            last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
            sys.stderr.write(f"{verb} failed, see {log}: {last}\n")
            raise SystemExit(status)


def positive(text: str) -> int:
    """Type of --jobs.

    Raises
    ------
    ValueError
        If it is no number above 0.
    """
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def add_options(parser: argparse.ArgumentParser, *, cohort_seed: int) -> None:
    """Add what every experiment asks: where, on which cohort, how long, how many at a time."""
    parser.add_argument("work", type=Path)
    parser.add_argument("--tracer", default="AV45")
    parser.add_argument("--subjects", type=int, default=160)
    parser.add_argument("--cohort-seed", type=int, default=cohort_seed)
    parser.add_argument("--size", choices=GRIDS, default="small")
    parser.add_argument("--max-steps", type=int, help="instead of the recipes' own")
    parser.add_argument("--jobs", type=positive, default=2, help="trainings at a time")
    parser.add_argument(
        "--mix-origins", action="store_true",
        help="add to trainings of other code, versions or instructions, or of unknown ones",
    )  # fmt: skip


def options_of(chosen: argparse.Namespace, split: str) -> dict[str, Any]:
    """What all cells of one folder share."""
    names = ("subjects", "cohort_seed", "size", "max_steps")
    return {name: getattr(chosen, name) for name in names} | {"split": split}


def _check_options(file: Path, options: dict[str, Any]) -> None:
    """Refuse to mix cohorts or numbers of steps in one folder."""
    if file.exists() and (before := json.loads(file.read_text())) != options:
        sys.exit(f"{file}: expected {before}, found {options}; use these or another folder")


def prepare_cohort(work: Path, tracer: str, options: dict[str, Any], commands: Commands) -> Path:
    """Make and prepare the cohort of a tracer, once; return its prepared folder."""
    bids, prepared = work / f"bids-{tracer}", work / f"prepared-{tracer}"
    log = work / f"cohort-{tracer}.log"
    if not bids.exists():
        commands.run(
            log, "phantom", bids, "--subjects", options["subjects"], "--tracer", tracer,
            "--seed", options["cohort_seed"], "--size", options["size"],
        )  # fmt: skip
    if not (prepared / "index.json").exists():
        commands.run(log, "prepare", bids, prepared, "--size", options["size"])
    return prepared


def intensity_ratio(prepared: Path, tracer: str, regime: str) -> float:
    """Ratio at which the 99.9th percentile that `prepare` puts at 9 normalises to the regime's."""
    index = load_index(prepared)
    shift = float(np.mean([row.mri.mean / row.mri.std for row in index.select("train")]))
    top = REGIMES[regime]
    return index.intensity_ratio[tracer] * (REGIMES["paper"] + shift) / (top + shift)


def _override(content: dict[str, Any], dotted: str, value: object) -> None:
    *sections, name = dotted.split(".")
    for part in sections:
        content = content.setdefault(part, {})
    content[name] = copy.deepcopy(value)


def _resolve(cell: Cell) -> dict[str, dict[str, Any]]:
    """Contents of the recipe's files by name, with the cell's overrides and without its seed."""
    engines = read_contents(ROOT / "ds_configs" / cell.recipe)
    run = engines.pop(RUN_FILE) | {"keep_checkpoints": 1}
    for dotted, value in cell.overrides.items():
        if dotted == LEARNING_RATE:
            _override(engines[LEARNING_RATE], "optimizer.params.lr", value)
            _override(engines[LEARNING_RATE], "scheduler.params.warmup_max_lr", value)
        else:
            _override(run, dotted, value)
    return {RUN_FILE: {k: v for k, v in run.items() if k not in _OF_THE_CELL}, **engines}


def digest(cell: Cell) -> str:
    """What tells a cell's recipe from another of the same name."""
    return hashlib.sha256(json.dumps(_resolve(cell), sort_keys=True).encode()).hexdigest()[:12]


def _write_recipe(folder: Path, cell: Cell, ratio: float) -> None:
    """Write the cell's recipe, unless another one has begun to train under its name.

    Raises
    ------
    SystemExit
        If so.
    """
    mark = folder / "digest"
    if mark.exists() and mark.read_text() != digest(cell):
        sys.exit(
            f"{folder}: begun with other settings; remove it and its training, or go elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    content = _resolve(cell)
    settings = content.pop(RUN_FILE) | {"seed": cell.seed, "intensity_ratio": ratio}
    (folder / RUN_FILE).write_text(yaml.safe_dump(settings))
    for name, engine in content.items():
        (folder / name).write_text(json.dumps(engine))
    mark.write_text(digest(cell))


def _origin(cell: Cell, run: Path, commits: str) -> list[str]:
    """What a cell was made with: its line for origins.tsv."""
    description = json.loads((run / "run.json").read_text())
    versions, cpu = (json.dumps(description[name]) for name in ("versions", "cpu"))
    about = [cell.tracer, cell.regime, cell.name, str(cell.seed), commits]
    return [*about, versions, description["device"], cpu]


def _make(
    cell: Cell, work: Path, options: dict[str, Any], commands: Commands
) -> tuple[list[list[str]], list[str]]:
    """Train and evaluate a cell; return its lines for scores.tsv and its line for origins.tsv."""
    prepared, output = work / f"prepared-{cell.tracer}", work / cell.folder
    recipe = _recipe_folder(work, cell)
    log = output.with_name(f"{output.name}.log")
    _write_recipe(recipe, cell, intensity_ratio(prepared, cell.tracer, cell.regime))
    limit = ["--max-steps", options["max_steps"]] if options["max_steps"] else []
    # Before the training: whoever works on meanwhile has other code at its end.
    commits = origins.note_commit(recipe)
    commands.run(log, "train", "--config", recipe, "--data", prepared, "--output", output, *limit)
    commands.run(log, "evaluate", output, "--split", options["split"])
    names = {"ganbert": cell.name, "mean_of_training": MEAN}
    lines, recipe_digest = [], digest(cell)
    with (output / "evaluation" / "metrics.tsv").open() as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            if row["mask"] == "head" and row["method"] in names:
                about = [cell.tracer, cell.regime, names[row["method"]], str(cell.seed)]
                about += [recipe_digest, options["split"], row["reference"], row["subject"]]
                lines.append(about + [row[figure] for figure in FIGURES])
    return lines, _origin(cell, output, commits)


def read_scores(work: Path) -> list[dict[str, str]]:
    """Lines of WORK/scores.tsv; none if there is no such file yet."""
    file = work / _SCORES
    if not file.exists():
        return []
    with file.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _add(file: Path, keys: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Add the lines of one cell to a table, all or none."""
    partial = file.with_name(f"{file.name}.tmp")
    before = file.read_text() if file.exists() else "\t".join(keys) + "\n"
    partial.write_text(before + "".join("\t".join(line) + "\n" for line in lines))
    partial.replace(file)


def _recipe_folder(work: Path, cell: Cell) -> Path:
    output = work / cell.folder
    return output.with_name(f"{output.name}.recipe")


def make_cells(
    cells: Sequence[Cell],
    work: Path,
    options: dict[str, Any],
    commands: Commands,
    jobs: int,
    *,
    mix_origins: bool = False,
) -> None:
    """Make the cells that scores.tsv lacks, `jobs` at a time.

    Raises
    ------
    SystemExit
        If the folder has other options, scores.tsv has a cell with another recipe, some are to be
        made and others were made otherwise (exit code 2; not with `mix_origins`), or a command
        fails or was stopped; the cells that are done are kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    _check_options(work / _OPTIONS, options)
    done = {
        (s["tracer"], s["regime"], s["name"], int(s["seed"])): s["recipe"]
        for s in read_scores(work)
        if s["name"] != MEAN
    }
    missing = []
    for cell in cells:
        found = done.get(cell.key)
        if found is None:
            missing.append(cell)
        elif found != digest(cell):
            sys.exit(
                f"{work / _SCORES}: {cell.folder} was made with another recipe ({found}, now "
                f"{digest(cell)}); remove its lines, or use another folder"
            )
    begun = [folder for cell in missing if (folder := _recipe_folder(work, cell)).exists()]
    if missing and (done or begun) and not mix_origins:
        origins.check_origins(work, done, begun, origins.of_now(commands.environment))
    for tracer in dict.fromkeys(cell.tracer for cell in missing):
        prepare_cohort(work, tracer, options, commands)
    # Only now: options that make no cohort should not bind the folder.
    (work / _OPTIONS).write_text(json.dumps(options) + "\n")
    lock, count = threading.Lock(), iter(range(1, len(missing) + 1))

    def make(cell: Cell) -> None:
        lines, origin = _make(cell, work, options, commands)
        with lock:
            # First what costs nothing to have twice: the scores end the cell.
            _add(work / origins.FILE, origins.KEYS, [origin])
            _add(work / _SCORES, (*_KEYS, *FIGURES), lines)
            sys.stderr.write(f"{next(count)}/{len(missing)} {cell.folder}\n")
        # Only now: without its scores a cell would have to be trained again.
        shutil.rmtree(work / cell.folder / "checkpoints", ignore_errors=True)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(make, cell) for cell in missing]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def by_subject(
    scores: Sequence[dict[str, str]], figure: str, seeds: Sequence[int], **where: str
) -> dict[str, list[float]]:
    """Values of a figure by subject, one for each of `seeds`, of the lines that match `where`.

    Raises
    ------
    SystemExit
        If a seed is missing: a mean over other seeds would compare seeds and not methods.
    """
    values: dict[str, dict[int, float]] = {}
    for line in scores:
        if all(line[key] == value for key, value in where.items()):
            value = math.nan if line[figure] == "n/a" else float(line[figure])
            values.setdefault(line["subject"], {})[int(line["seed"])] = value
    for of_seed in values.values():
        if not of_seed.keys() >= set(seeds):
            sys.exit(f"{_SCORES}: {where}: expected seeds {list(seeds)}, found {sorted(of_seed)}")
    return {subject: [of_seed[s] for s in seeds] for subject, of_seed in values.items()}


def paired(method: dict[str, list[float]], baseline: dict[str, list[float]]) -> Estimate:
    """Mean over subjects of the paired differences (mean over seeds), with its BCa interval.

    The interval is over subjects, given these trainings: what another seed would change is not in
    it.
    """
    subjects = sorted(method)
    sides = [[float(np.mean(scores[s])) for s in subjects] for scores in (method, baseline)]
    return paired_bootstrap(*sides)


def difference(method: dict[str, list[float]], baseline: dict[str, list[float]]) -> str:
    """`paired` as text."""
    interval = paired(method, baseline)
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
