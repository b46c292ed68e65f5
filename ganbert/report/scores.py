"""What the numbers say: the verdict, the key-number tiles and the metrics tables.

The verdict is about the difference between the run's method and the mean of the training PETs,
paired over held-out subjects, and it says so when the method loses or when the interval does not
exclude zero. Beside the PSNR it says how the burden agrees, where there is one: a PET may be near
in every voxel and carry nothing of what it was made for. Means and intervals are those of
`evaluate`; nothing is averaged here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ganbert.metrics import GAIN, Interval
from ganbert.report.run import REAL, MetricRow, Score, Summary, TrainingLog

# As `evaluate` calls the run's method in its files, whatever it has trained.
OURS, BASELINE = "ganbert", "mean_of_training"
# Method -> figures over subjects and their bounds, see `ganbert.agreement.agreement_lines`.
Agreement = Mapping[str, Mapping[str, float]]
_OTHERS = {BASELINE: "Mean of training PETs", "zero": "Zero (empty image)"}
MASK_NAMES = {"fov": "whole field of view", "head": "head only"}
REFERENCE_NAMES = {REAL: "the real PET", "truth": "the phantom's noise-free truth"}
# Metric: (heading, decimals, whether it carries the PET's unit, 1 if higher is better else -1).
METRIC_HEADS = {
    "psnr": ("PSNR, dB", 2, False, 1),
    "ssim": ("SSIM", 3, False, 1),
    "rmse": ("RMSE", 4, True, -1),
    "mae": ("MAE", 4, True, -1),
    "intensity_distance": ("Wasserstein-1", 4, True, -1),
    "top_recall": ("Recall of top 1 %", 3, False, 1),
}


@dataclass(frozen=True)
class Verdict:
    """The answer of the page. `tone` is "better", "worse", "unclear" or "none"."""

    tone: str
    headline: str
    sentence: str


@dataclass(frozen=True)
class Tile:
    """A key number."""

    value: str
    unit: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """Mean and interval of one metric of one method, as text."""

    mean: str
    interval: str
    is_best: bool


@dataclass(frozen=True)
class Table:
    """Metrics of all methods under one mask and reference.

    Attributes
    ----------
    heads : (heading, "higher" or "lower" is better) of each column
    rows : (method, cells)
    """

    mask: str
    reference: str
    is_real: bool
    tracer: str
    data_range: str
    subjects: str
    heads: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]


def headline_rows(rows: list[MetricRow], mask: str) -> list[MetricRow]:
    """Keep the images' rows that belong to the verdict: against the real PET, within `mask`."""
    return [row for row in rows if (row.reference, row.mask) == (REAL, mask)]


def name_methods(ours: str) -> dict[str, str]:
    """Return method -> its name for people, in the order in which they are shown.

    Parameters
    ----------
    ours : name of the run's own method
    """
    return {OURS: ours, **_OTHERS}


def judge(summary: Summary | None, ours: str, burden: Agreement | None = None) -> Verdict:
    """Compare the run's method with the mean of the training PETs, subject by subject.

    Parameters
    ----------
    ours : name of the run's method
    burden : method -> its agreement with the real PET in SUVR of the composite, if there is one

    Returns
    -------
    Verdict
        "better" only if PSNR is, and Lin's concordance of the burden is not within its interval of
        zero.
    """
    own, baseline, gain = (
        summary.headline(method, "psnr") if summary else None for method in (OURS, BASELINE, GAIN)
    )
    if not (summary and own and baseline and gain):
        text = "This run has not been compared with real PET, so nothing is known about the " \
               "quality of its images."  # fmt: skip
        return Verdict("none", "Not evaluated yet", text)
    mask = MASK_NAMES.get(summary.headline_mask, summary.headline_mask)
    sentence = (
        f"On {name_subjects(gain.num, summary.split)}, {ours} reaches a PSNR of "
        f"{format_number(own.mean, 2)} dB ({mask}), the mean of the training PETs "
        f"{format_number(baseline.mean, 2)} dB: a paired difference of "
        f"{format_number(gain.mean, 2, signed=True)} dB"
    )
    if math.isnan(gain.low):
        tone, text, sentence = "unclear", "No confidence interval: too few subjects", f"{sentence}."
    else:
        low, high = (format_number(v, 2, signed=True) for v in (gain.low, gain.high))
        sentence += f", 95% confidence interval {low} to {high} dB."
        tone, text = _compare_psnr(gain, ours)
    if burden and OURS in burden:
        text += f"; {_burden_clause(burden[OURS])}"
        sentence += _burden_sentence(burden)
        if burden[OURS]["concordance_low"] <= 0 and tone == "better":
            tone = "unclear"
    return Verdict(tone, text, sentence)


def _compare_psnr(gain: Interval, ours: str) -> tuple[str, str]:
    """Tone and headline."""
    if gain.low > 0:
        return "better", f"{ours} has a higher PSNR than the mean of the training PETs"
    if gain.high < 0:
        return "worse", f"{ours} has a lower PSNR than the mean of the training PETs"
    text = f"The PSNR of {ours} cannot be told from that of the mean of the training PETs"
    return "unclear", text


def _burden_clause(figures: Mapping[str, float]) -> str:
    if math.isnan(figures["bias"]):
        return "no subject has a burden (SUVR of the composite)"
    bias = format_number(figures["bias"], 3, signed=True)
    lin = format_number(figures["concordance"], 2)
    return f"burden (SUVR of the composite): bias {bias}, Lin's concordance {lin}"


def _burden_sentence(burden: Agreement) -> str:
    """Intervals, and how the mean of the training PETs does."""

    def text(name: str, decimals: int, *, signed: bool = False) -> str:
        value, low, high = (
            format_number(burden[OURS][f"{name}{end}"], decimals, signed=signed)
            for end in ("", "_low", "_high")
        )
        return value if low == "n/a" else f"{value} [{low}, {high}]"

    if math.isnan(burden[OURS]["bias"]):
        return ""
    sentence = f" Burden: bias {text('bias', 3, signed=True)} SUVR, "
    sentence += f"Lin's concordance with the real PET {text('concordance', 2)}"
    if BASELINE in burden:
        bias = format_number(burden[BASELINE]["bias"], 3, signed=True)
        lin = format_number(burden[BASELINE]["concordance"], 2)
        sentence += f"; of the mean of the training PETs {bias} and {lin}"
    return f"{sentence}."


def name_subjects(number: int, split: str) -> str:
    """Say how many subjects, and whether training saw them.

    >>> name_subjects(1, "test"), name_subjects(3, "train")
    ('1 held-out subject', '3 training subjects (not held out)')
    """
    subjects = "subject" if number == 1 else "subjects"
    if split == "train":
        return f"{number} training {subjects} (not held out)"
    return f"{number} {'validation' if split == 'val' else 'held-out'} {subjects}"


def format_number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write a number with a true minus sign; "n/a" for NaN.

    >>> format_number(1.005, 1, signed=True), format_number(-0.001, 2), format_number(math.nan, 2)
    ('+1.0', '0.00', 'n/a')
    """
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "\u221e"
    value = round(value, decimals) + 0.0  # there is no minus zero for people
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{value:.{decimals}f}".replace("-", "\u2212")


def score_tiles(summary: Summary | None) -> list[Tile]:
    """Make the tiles of the evaluation; none without one."""
    tiles, num = [], 0
    for name, method, metric, unit, decimals in (
        ("PSNR", OURS, "psnr", "dB", 2),
        ("SSIM", OURS, "ssim", "", 3),
        ("PSNR above the mean PET", GAIN, "psnr", "dB", 2),
    ):
        value = summary.headline(method, metric) if summary else None
        if value is None:
            continue
        signed, num = method == GAIN, value.num
        mean = format_number(value.mean, decimals, signed=signed)
        tiles.append(Tile(mean, unit, name, _bounds(value, decimals, signed=signed)))
    if summary and tiles:
        number, _, kind = name_subjects(num, summary.split).partition(" ")
        tiles.append(Tile(number, "", kind.capitalize()))
    return tiles


def _bounds(value: Interval, decimals: int, *, signed: bool = False) -> str:
    if math.isnan(value.low):
        return ""
    low, high = (format_number(v, decimals, signed=signed) for v in (value.low, value.high))
    return f"95% CI {low} to {high}"


def training_tiles(log: TrainingLog) -> list[Tile]:
    """Make the tiles of the training; none without a log."""
    if not log.steps.size:
        return []
    tiles = [Tile(f"{int(log.steps[-1]):,}", "", "Optimiser steps")]
    if log.has("samples_seen"):
        epochs = f"{log.last('epoch'):.3g} epochs" if log.has("epoch") else ""
        tiles.append(Tile(f"{int(log.last('samples_seen')):,}", "", "Volumes seen", epochs))
    if log.has("volumes_per_second"):
        # The first steps carry start-up and compilation.
        settled = log.columns["volumes_per_second"][min(5, log.steps.size // 2) :]
        value = f"{np.nanmedian(settled):.3g}"
        tiles.append(Tile(value, "vol/s", "Median throughput", _waiting(log)))
    if log.has("seconds"):
        tiles.append(_duration(float(np.nansum(log.columns["seconds"]))))
    return tiles


def _waiting(log: TrainingLog) -> str:
    if not log.has("data_wait_seconds") or not log.has("seconds"):
        return ""
    waited, total = (np.nansum(log.columns[key]) for key in ("data_wait_seconds", "seconds"))
    return f"{waited / total:.1%} of time waiting for data" if total > 0 else ""


def _duration(seconds: float) -> Tile:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return Tile(f"{seconds / size:.1f}", unit, "Training time")
    return Tile(f"{seconds:.0f}", "s", "Training time")


def make_tables(summary: Summary | None, ours: str) -> list[Table]:
    """Make one table per tracer, mask and reference.

    Parameters
    ----------
    ours : name of the run's method
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in summary.scores if summary else ():
        groups.setdefault((score.tracer, score.mask, score.reference), []).append(score)
    names = name_methods(ours)
    return [_make_table(group, summary, names) for group in groups.values() if summary]


def _make_table(scores: list[Score], summary: Summary, names: dict[str, str]) -> Table:
    first = scores[0]
    low, high = summary.data_range
    values = {(score.method, score.metric): score.interval for score in scores}
    order = list(names)
    methods = sorted(
        {score.method for score in scores} - {GAIN},
        key=lambda method: (order.index(method) if method in names else len(order), method),
    )
    # Runs from before a metric was computed do not have it.
    known = [m for m in METRIC_HEADS if all((k, m) in values for k in methods)]
    best = {m: _best(methods, {k: values[k, m] for k in methods}, m) for m in known}
    cells = {
        method: [
            Cell(*_split_interval(values[method, m], METRIC_HEADS[m][1]), best[m] == method)
            for m in known
        ]
        for method in methods
    }
    return Table(
        mask=MASK_NAMES.get(first.mask, first.mask),
        is_real=first.reference == REAL,
        reference=REFERENCE_NAMES.get(first.reference, first.reference),
        tracer=first.tracer,
        data_range=f"{low:g} to {high:g} {summary.unit}",
        subjects=name_subjects(first.interval.num, summary.split),
        heads=[name_metric(metric, summary.unit) for metric in known],
        rows=[(names.get(method, method), line) for method, line in cells.items()],
    )


def _best(methods: list[str], values: dict[str, Interval], metric: str) -> str:
    direction = METRIC_HEADS[metric][3]
    means = {method: direction * values[method].mean for method in methods}
    return max(methods, key=lambda method: (not math.isnan(means[method]), means[method]))


def _split_interval(value: Interval, decimals: int) -> tuple[str, str]:
    mean = format_number(value.mean, decimals)
    if math.isnan(value.low):
        return mean, ""
    return mean, f"[{format_number(value.low, decimals)}, {format_number(value.high, decimals)}]"


def name_metric(metric: str, unit: str) -> tuple[str, str]:
    """Return a metric's heading with its unit, and "higher" or "lower" for what is better."""
    text, _, has_unit, direction = METRIC_HEADS[metric]
    return (f"{text}, {unit}" if has_unit else text, "higher" if direction > 0 else "lower")
