"""What the report reads from a run folder: settings, training log, metrics, predictions.

Every part but the folder itself may be missing: a run that was never evaluated, or was stopped
before its first step, still gets a report that says so. A part that is there but torn is an error.

It draws nothing.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ganbert.data.index import Row
from ganbert.errors import CheckpointError, DatasetError

SETTINGS_NAME, LOG_NAME = "run.json", "log.jsonl"
METRICS_NAME = "evaluation/metrics.tsv"
SUMMARY_NAME = "evaluation/summary.json"
PREDICTIONS_NAME = "evaluation/pet_fake"
METRICS = ("psnr", "ssim", "rmse", "mae")
REAL = "real"

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
    if not (run / SETTINGS_NAME).exists() and not (run / LOG_NAME).exists():
        expected = f"a run folder with {SETTINGS_NAME}"
        raise CheckpointError(run, expected=expected, found="none in it", remedy=remedy)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of the run, such as its settings; empty if the file is missing.

    Raises
    ------
    CheckpointError
        If it is there but is not a JSON object.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _torn(file, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise _torn(file, "a JSON object", type(content).__name__)
    return content


def _torn(file: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(file, expected=expected, found=found, remedy="restore it or train again")


def read_log(run: Path) -> TrainingLog:
    """Read `log.jsonl`; empty if it is missing.

    A resumed run repeats the steps after its checkpoint: the last line of a step wins. A last
    line that was cut off by a crash is left out.

    Raises
    ------
    CheckpointError
        If a line other than the last is not a JSON object with a step.
    """
    file = run / LOG_NAME
    lines = file.read_text().splitlines() if file.exists() else []
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            by_step[int(content["step"])] = content
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise _torn(file, "a JSON object with a step", f"line {number}") from error
    steps = sorted(by_step)
    keys = {key for content in by_step.values() for key in content}
    columns = {
        key: np.array([_number(by_step[step].get(key)) for step in steps]) for key in sorted(keys)
    }
    return TrainingLog(np.array(steps, np.float64), columns)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def read_metrics(run: Path) -> list[MetricRow]:
    """Read `evaluation/metrics.tsv`; empty if it is missing.

    Raises
    ------
    DatasetError
        If a column is missing or a number is not one.
    """
    file = run / METRICS_NAME
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    try:
        return [_metric_row(line) for line in lines]
    except (KeyError, ValueError, TypeError) as error:
        raise DatasetError(
            file,
            expected="the columns and numbers that `ganbert evaluate` writes",
            found=f"{type(error).__name__} {error}",
            remedy="run `ganbert evaluate` again",
        ) from error


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
