"""What the report reads from a run folder: settings, training log, metrics, predictions.

Every part but the folder itself may be missing: a run that was never evaluated, or was stopped
before its first step, still gets a report that says so. A part that is there but torn is an error.

It draws nothing.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ganbert.data.index import Row
from ganbert.errors import CheckpointError, DatasetError
from ganbert.metrics import METRICS, Interval
from ganbert.model_card import read_card
from ganbert.run_folder import (
    CARD_NAME,
    DESCRIPTION_NAME,
    EXPORT_NAME,
    describe_damage,
    read_description,
    read_object,
)
from ganbert.tables import read_tsv

LOG_NAME = "log.jsonl"
METRICS_NAME = "evaluation/metrics.tsv"
SUMMARY_NAME = "evaluation/summary.json"
PREDICTIONS_NAME = "evaluation/pet_fake"
REAL = "real"
# What reading a file that is cut off or damaged raises.
DAMAGES = (KeyError, ValueError, TypeError, AttributeError, OverflowError)
_EXPECTED, _REMEDY = "what `ganbert evaluate` writes", "run `ganbert evaluate` again"

Made = TypeVar("Made")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricRow:
    """One line of `metrics.tsv`.

    Attributes
    ----------
    subject, session : BIDS labels without `sub-` and `ses-`
    reference : what the PET was compared with: "real", or the phantom's noise-free "truth"
    data_range : (low, high), in the PET's unit
    values : of each name in `METRICS`
    """

    subject: str
    session: str | None
    tracer: str
    method: str
    mask: str
    reference: str
    data_range: tuple[float, float]
    values: dict[str, float]

    @property
    def image(self) -> tuple[str, str | None, str]:
        """What identifies the image: subject, session, tracer."""
        return (self.subject, self.session, self.tracer)


@dataclass(frozen=True)
class Score:
    """One line of the summary: a mean over subjects and its interval, as `evaluate` computed it.

    Attributes
    ----------
    method : also `metrics.GAIN`, the paired difference between GANBERT and the mean PET
    """

    tracer: str
    reference: str
    mask: str
    method: str
    metric: str
    interval: Interval


@dataclass(frozen=True)
class Summary:
    """`summary.json`.

    Attributes
    ----------
    split : "test", "val" or "train", as evaluated
    unit : of the PET, for RMSE and MAE
    data_range : (low, high), in that unit
    num_steps, weights_sha256 : of the generator that was evaluated; None in files of old
    """

    split: str
    unit: str
    data_range: tuple[float, float]
    scores: tuple[Score, ...]
    num_steps: int | None = None
    weights_sha256: str | None = None

    @property
    def headline_mask(self) -> str:
        """The mask that the verdict rests on: the head if known."""
        masks = [score.mask for score in self.scores]
        return "head" if "head" in masks else next(iter(masks), "")

    def headline(self, method: str, metric: str) -> Interval | None:
        """Interval against the real PET within `headline_mask`; None if it was not computed."""
        wanted = (REAL, self.headline_mask, method, metric)
        for score in self.scores:
            if (score.reference, score.mask, score.method, score.metric) == wanted:
                return score.interval
        return None


@dataclass(frozen=True)
class TrainingLog:
    """The training log, one value per optimiser step, in the order of the steps.

    Attributes
    ----------
    columns : key of `log.jsonl` -> (N,) float64, NaN where a step lacks it
    """

    steps: Array
    columns: dict[str, Array]

    def has(self, key: str) -> bool:
        """Whether any step carries a finite value of `key`."""
        return key in self.columns and bool(np.isfinite(self.columns[key]).any())

    def last(self, key: str) -> float:
        """Last finite value of `key`, NaN if there is none."""
        if not self.has(key):
            return math.nan
        values = self.columns[key]
        return float(values[np.isfinite(values)][-1])


def check_run(run: Path) -> None:
    """Check that `run` is the folder of a training run.

    Raises
    ------
    CheckpointError
        If it does not exist, or holds neither settings nor a log.
    """
    remedy = "give the output folder of ganbert/train.py"
    if not run.is_dir():
        found = "a file" if run.exists() else "nothing"
        raise CheckpointError(run, expected="a run folder", found=found, remedy=remedy)
    if not (run / DESCRIPTION_NAME).exists() and not (run / LOG_NAME).exists():
        expected = f"a run folder with {DESCRIPTION_NAME}"
        raise CheckpointError(run, expected=expected, found="none in it", remedy=remedy)


def read_settings(run: Path) -> dict[str, Any]:
    """Read the description of the run; empty if it is missing.

    Raises
    ------
    CheckpointError
        If it is there but torn.
    """
    return read_description(run) if (run / DESCRIPTION_NAME).exists() else {}


def read_log(run: Path) -> TrainingLog:
    """Read `log.jsonl`; empty if it is missing.

    A resumed run repeats the steps after its checkpoint: the last line of a step wins. A last
    line that was cut off by a crash is left out.

    Raises
    ------
    CheckpointError
        If it cannot be read, or a line other than the last is not a JSON object with a step.
    """
    file = run / LOG_NAME
    by_step: dict[int, dict[str, Any]] = {}
    lines = _read_lines(file)
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            by_step[int(content["step"])] = content
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise CheckpointError(
                file,
                expected="a JSON object with a step in each line",
                found=f"line {number}, which is cut off or damaged",
                remedy="remove that line",
            ) from error
    steps = sorted(by_step)
    keys = {key for content in by_step.values() for key in content}
    columns = {
        key: np.array([_number(by_step[step].get(key)) for step in steps]) for key in sorted(keys)
    }
    return TrainingLog(np.array(steps, np.float64), columns)


def _read_lines(file: Path) -> list[str]:
    if not file.exists():
        return []
    try:
        # What is no text makes a line that is no JSON, which has its own error.
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        remedy = "make it readable, or move it away"
        raise CheckpointError(
            file, expected="a training log", found=describe_damage(error), remedy=remedy
        ) from error


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def read_summary(run: Path) -> Summary | None:
    """Read `evaluation/summary.json`; None if the run was not evaluated.

    Raises
    ------
    DatasetError
        If it is torn.
    """
    file = run / SUMMARY_NAME
    if not file.exists():
        return None
    content = read_evaluated(file)
    try:
        low, high = (float(end) for end in content["data_range"])
        scores = tuple(_score(line) for line in content["results"])
        return Summary(
            split=str(content["split"]),
            unit=str(content["unit"]),
            data_range=(low, high),
            scores=scores,
            num_steps=content.get("num_steps"),
            weights_sha256=content.get("weights_sha256"),
        )
    except DAMAGES as error:
        raise not_of_evaluate(file, describe_damage(error)) from error


def _score(line: dict[str, Any]) -> Score:
    # JSON has no NaN: it is written as null.
    mean, low, high = (
        math.nan if line[key] is None else float(line[key]) for key in ("mean", "low", "high")
    )
    names = ("tracer", "reference", "mask", "method", "metric")
    interval = Interval(mean, low, high, int(line["num"]))
    return Score(**{name: str(line[name]) for name in names}, interval=interval)


def read_evaluated(file: Path) -> dict[str, Any]:
    """Read a JSON object that `evaluate` has written.

    Raises
    ------
    DatasetError
        If it is cut off or damaged.
    """
    return read_object(file, expected=_EXPECTED, remedy=_REMEDY, kind=DatasetError)


def not_of_evaluate(file: Path, found: str) -> DatasetError:
    """Return the error that says that a file is cut off or damaged."""
    return DatasetError(file, expected=_EXPECTED, found=found, remedy=_REMEDY)


def read_metrics(run: Path) -> list[MetricRow]:
    """Read `evaluation/metrics.tsv`; empty if it is missing.

    Raises
    ------
    DatasetError
        If a column is missing, a number is not one or a line is cut off.
    """
    file = run / METRICS_NAME
    return read_lines(file, _metric_row) if file.exists() else []


def read_lines(file: Path, convert: Callable[[dict[str, str]], Made]) -> list[Made]:
    """Read a table that `evaluate` has written, and make something of each line.

    Raises
    ------
    DatasetError
        If it cannot be read, or `convert` finds a column missing or a value that is none.
    """
    try:
        lines = read_tsv(file)
    except (OSError, ValueError) as error:
        raise not_of_evaluate(file, describe_damage(error)) from error
    made = []
    for number, line in enumerate(lines, start=2):
        try:
            made.append(convert(line))
        except DAMAGES as error:
            found = f"line {number}, which is cut off or damaged"
            if isinstance(error, KeyError):
                found = describe_damage(error)
            raise not_of_evaluate(file, found) from error
    return made


def _metric_row(line: dict[str, str]) -> MetricRow:
    session = line["session"]
    return MetricRow(
        subject=line["subject"],
        session=None if session in ("", "n/a") else session,
        tracer=line["tracer"],
        method=line["method"],
        mask=line["mask"],
        reference=line.get("reference") or REAL,
        data_range=(float(line["data_range_low"]), float(line["data_range_high"])),
        values={name: _metric(line[name]) for name in METRICS},
    )


def _metric(text: str) -> float:
    return math.nan if text in ("", "n/a") else float(text)


def compare_weights(run: Path, summary: Summary | None) -> str:
    """Say that an evaluation is not of the generator that the run has now.

    Returns
    -------
    A sentence; empty if it is, or if there is no evaluation or no generator to compare.

    Raises
    ------
    CheckpointError
        If the generator's card is torn.
    """
    if summary is None or not (run / EXPORT_NAME / CARD_NAME).exists():
        return ""
    card = read_card(run / EXPORT_NAME)
    if card.weights_sha256 == summary.weights_sha256:
        return ""
    again = "run `ganbert evaluate RUN` again"
    if summary.weights_sha256 is None:
        return f"This evaluation does not say which weights it is of; {again}."
    return (
        f"This evaluation is of other weights (step {summary.num_steps}) than the run has now "
        f"(step {card.num_steps}); {again}."
    )


def find_prediction(run: Path, row: Row) -> Path:
    """Return the synthesised PET that `evaluate` kept for a row of the index.

    Raises
    ------
    DatasetError
        If it is not there.
    """
    session = f"_ses-{row.session}" if row.session else ""
    file = run / PREDICTIONS_NAME / f"sub-{row.subject}{session}.nii"
    if not file.exists():
        raise DatasetError(
            file,
            expected="the synthesised PET that `ganbert evaluate` keeps",
            found="nothing",
            remedy="run `ganbert evaluate` again",
        )
    return file
