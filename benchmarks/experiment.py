"""Many small trainings on one phantom cohort, in pieces: what table1.py and taming.py share.

A cell is one training (recipe, overrides, seed) and its evaluation, made with the commands that a
user has. Its scores are added to WORK/scores.tsv when it is done; what stands there is not done
again, and a cell that was stopped goes on from its last checkpoint.
"""

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import yaml

from ganbert.agreement import Estimate, paired_bootstrap
from ganbert.data.index import load_index

ROOT = Path(__file__).resolve().parents[1]
REGIMES = {"paper": 9.0, "suvr": 2.0}  # normalised 99.9th percentile of the training PETs
FIGURES = ("psnr", "ssim", "rmse", "intensity_distance", "top_recall")
MEAN = "training mean"
LEARNING_RATE = "discriminator.json"  # override of the adversary's engine, not of run.yaml
_KEYS = ("tracer", "regime", "name", "seed", "split", "reference", "subject")
_SCORES = "scores.tsv"


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
    def folder(self) -> Path:
        """Where it is trained, below WORK."""
        return Path(self.tracer, self.regime, f"{self.name}-{self.seed}")


class Commands:
    """Runs the project's own commands, several at a time, and ends them together."""

    def __init__(self, jobs: int) -> None:
        self.stopped = False
        self._children: set[subprocess.Popen[bytes]] = set()
        cores = len(os.sched_getaffinity(0))
        self._environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        for child in tuple(self._children):
            child.send_signal(number)

    def run(self, log: Path, verb: str, *arguments: object) -> None:
        """Run one `ganbert` command; what it says goes to `log`.

        Raises
        ------
        SystemExit
            If it fails, or was stopped.
        """
        if self.stopped:
            raise SystemExit(130)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [Path(sys.executable).with_name("ganbert"), verb, *arguments]
        with log.open("ab") as stream:
            # In a session of its own: Ctrl-C reaches it once, through us, and it saves first.
            child = subprocess.Popen(
                [str(part) for part in command], cwd=ROOT, start_new_session=True,
                env=self._environment, stdout=stream, stderr=stream,
            )  # fmt: skip
            self._children.add(child)
            if self.stopped:
                child.send_signal(signal.SIGTERM)
            status = child.wait()
            self._children.discard(child)
        if status:
            if not self.stopped:
                sys.stderr.write(f"{verb} failed, see {log}\n")
            raise SystemExit(status)


def same_options(work: Path, options: dict[str, Any]) -> None:
    """Refuse to mix cohorts or numbers of steps in one folder."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "options.json"
    if file.exists() and (before := json.loads(file.read_text())) != options:
        sys.exit(f"{file}: expected {before}, found {options}; use these or another folder")
    file.write_text(json.dumps(options) + "\n")


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


def _write_recipe(folder: Path, cell: Cell, ratio: float) -> None:
    """Copy a recipe, with other settings in run.yaml and another learning rate of the adversary."""
    shutil.copytree(ROOT / "ds_configs" / cell.recipe, folder, dirs_exist_ok=True)
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings |= {"seed": cell.seed, "intensity_ratio": ratio, "keep_checkpoints": 1}
    engine = json.loads((folder / "discriminator.json").read_text())
    for dotted, value in cell.overrides.items():
        if dotted == LEARNING_RATE:
            _override(engine, "optimizer.params.lr", value)
            _override(engine, "scheduler.params.warmup_max_lr", value)
        else:
            _override(settings, dotted, value)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    (folder / "discriminator.json").write_text(json.dumps(engine))


def _make(cell: Cell, work: Path, options: dict[str, Any], commands: Commands) -> list[list[str]]:
    """Train and evaluate a cell; return its lines for scores.tsv."""
    prepared, output = work / f"prepared-{cell.tracer}", work / cell.folder
    recipe = output.with_name(f"{output.name}.recipe")
    log = output.with_name(f"{output.name}.log")
    _write_recipe(recipe, cell, intensity_ratio(prepared, cell.tracer, cell.regime))
    limit = ["--max-steps", options["max_steps"]] if options["max_steps"] else []
    commands.run(log, "train", "--config", recipe, "--data", prepared, "--output", output, *limit)
    commands.run(log, "evaluate", output, "--split", options["split"])
    names = {"ganbert": cell.name, "mean_of_training": MEAN}
    lines = []
    with (output / "evaluation" / "metrics.tsv").open() as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            if row["mask"] == "head" and row["method"] in names:
                about = [cell.tracer, cell.regime, names[row["method"]], str(cell.seed)]
                about += [options["split"], row["reference"], row["subject"]]
                lines.append(about + [row[figure] for figure in FIGURES])
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return lines


def read_scores(work: Path) -> list[dict[str, str]]:
    """Lines of WORK/scores.tsv; none if there is no such file yet."""
    file = work / _SCORES
    if not file.exists():
        return []
    with file.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _add_scores(work: Path, lines: Sequence[Sequence[str]]) -> None:
    """Add the lines of one cell, all or none."""
    file, partial = work / _SCORES, work / f"{_SCORES}.tmp"
    before = file.read_text() if file.exists() else "\t".join((*_KEYS, *FIGURES)) + "\n"
    partial.write_text(before + "".join("\t".join(line) + "\n" for line in lines))
    partial.replace(file)


def make_cells(
    cells: Sequence[Cell], work: Path, options: dict[str, Any], commands: Commands, jobs: int
) -> None:
    """Make the cells that scores.tsv lacks, `jobs` at a time.

    Raises
    ------
    SystemExit
        If a command fails or was stopped; the cells that are done are kept.
    """
    done = {(s["tracer"], s["regime"], s["name"], int(s["seed"])) for s in read_scores(work)}
    missing = [c for c in cells if (c.tracer, c.regime, c.name, c.seed) not in done]
    for tracer in dict.fromkeys(cell.tracer for cell in missing):
        prepare_cohort(work, tracer, options, commands)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_make, cell, work, options, commands): cell for cell in missing}
        for number, future in enumerate(as_completed(waiting), start=1):
            _add_scores(work, future.result())
            sys.stderr.write(f"{number}/{len(missing)} {waiting[future].folder}\n")


def by_subject(
    scores: Sequence[dict[str, str]], figure: str, **where: str
) -> dict[str, list[float]]:
    """Values of a figure by subject, one for each seed, of the lines that match `where`."""
    values: dict[str, dict[int, float]] = {}
    for line in scores:
        if all(line[key] == value for key, value in where.items()):
            values.setdefault(line["subject"], {})[int(line["seed"])] = float(line[figure])
    return {
        subject: [of_seed[seed] for seed in sorted(of_seed)] for subject, of_seed in values.items()
    }


def paired(method: dict[str, list[float]], baseline: dict[str, list[float]]) -> Estimate:
    """Mean over subjects of the paired differences (mean over seeds), with its BCa interval."""
    subjects = sorted(method)
    sides = [[float(np.mean(scores[s])) for s in subjects] for scores in (method, baseline)]
    return paired_bootstrap(*sides)


def difference(method: dict[str, list[float]], baseline: dict[str, list[float]]) -> str:
    """`paired` as text."""
    interval = paired(method, baseline)
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
