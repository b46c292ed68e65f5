"""What the numbers say: the verdict, the key-number tiles and the metrics tables.

The verdict is about the difference between GANBERT and the mean of the training PETs, paired over
held-out subjects, and it says so when GANBERT loses or when the interval does not exclude zero.
"""

import math
from dataclasses import dataclass

import numpy as np

from ganbert import metrics
from ganbert.report.run import REAL, MetricRow, TrainingLog

GANBERT, BASELINE = "ganbert", "mean_of_training"
METHOD_NAMES = {
    GANBERT: "GANBERT",
    BASELINE: "Mean of training PETs",
    "zero": "Zero (empty image)",
}
MASK_NAMES = {"fov": "whole field of view", "head": "head only"}
REFERENCE_NAMES = {REAL: "the real PET", "truth": "the phantom's noise-free truth"}
# Metric: (heading, decimals, whether it carries the PET's unit, 1 if higher is better else -1).
METRIC_HEADS = {
    "psnr": ("PSNR, dB", 2, False, 1),
    "ssim": ("SSIM", 3, False, 1),
    "rmse": ("RMSE", 4, True, -1),
    "mae": ("MAE", 4, True, -1),
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
    tracer: str
    data_range: str
    num: int
    heads: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]


def headline_rows(rows: list[MetricRow]) -> list[MetricRow]:
    """Keep the rows that the verdict rests on: against the real PET, within the head if known."""
    rows = [row for row in rows if row.reference == REAL]
    masks = [row.mask for row in rows]
    mask = "head" if "head" in masks else next(iter(masks), "")
    return [row for row in rows if row.mask == mask]


def _paired(rows: list[MetricRow], metric: str) -> tuple[list[float], list[float]]:
    """Values of GANBERT and of the baseline, image by image."""
    first = {row.image: row.values[metric] for row in rows if row.method == GANBERT}
    second = {row.image: row.values[metric] for row in rows if row.method == BASELINE}
    images = [image for image in first if image in second]
    return [first[image] for image in images], [second[image] for image in images]


def judge(rows: list[MetricRow]) -> Verdict:
    ours, baseline = _paired(rows, "psnr")
    if not ours:
        return Verdict("none", "Not evaluated yet", "This run has not been evaluated on held-out "
                       "subjects, so nothing is known about the quality of its images.")  # fmt: skip
    gain = metrics.paired_difference(ours, baseline)
    where = MASK_NAMES.get(rows[0].mask, rows[0].mask)
    subjects = len({row.subject for row in rows})
    sentence = (
        f"PSNR {np.mean(ours):.2f} dB against {np.mean(baseline):.2f} dB for the mean of the "
        f"training PETs ({where}): {_interval(gain, 2, signed=True)} dB, paired over "
        f"{subjects} held-out subject{'s' if subjects != 1 else ''}, 95% confidence interval."
    )
    if math.isnan(gain.low):
        return Verdict("unclear", "One subject gives no interval", sentence)
    if gain.low > 0:
        return Verdict("better", "GANBERT beats the mean of the training PETs", sentence)
    if gain.high < 0:
        return Verdict("worse", "GANBERT is worse than the mean of the training PETs", sentence)
    return Verdict(
        "unclear", "GANBERT cannot be told from the mean of the training PETs", sentence
    )


def format_number(value: float, decimals: int, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "\u221e"
    sign = "+" if signed and value >= 0 else ""
    return f"{sign}{value:.{decimals}f}".replace("-", "\u2212")


def _interval(value: metrics.Interval, decimals: int, *, signed: bool = False) -> str:
    mean = format_number(value.mean, decimals, signed=signed)
    if math.isnan(value.low):
        return mean
    low = format_number(value.low, decimals, signed=signed)
    return f"{mean} [{low}, {format_number(value.high, decimals, signed=signed)}]"


def score_tiles(rows: list[MetricRow]) -> list[Tile]:
    tiles = []
    ours = [row for row in rows if row.method == GANBERT]
    for metric, unit in (("psnr", "dB"), ("ssim", "")):
        if ours:
            values = metrics.confidence_interval([row.values[metric] for row in ours])
            _, decimals, *_ = METRIC_HEADS[metric]
            note = f"95% CI {format_number(values.low, decimals)} to " \
                   f"{format_number(values.high, decimals)}"  # fmt: skip
            tiles.append(Tile(format_number(values.mean, decimals), unit, metric.upper(), note))
    gain = metrics.paired_difference(*_paired(rows, "psnr"))
    if gain.num:
        note = f"95% CI {format_number(gain.low, 2, signed=True)} to {format_number(gain.high, 2, signed=True)}"
        tiles.append(Tile(format_number(gain.mean, 2, signed=True), "dB", "PSNR over baseline", note))
        tiles.append(Tile(str(len({row.subject for row in rows})), "", "held-out subjects"))
    return tiles


def training_tiles(log: TrainingLog) -> list[Tile]:
    if not log.steps.size:
        return []
    tiles = [Tile(f"{int(log.steps[-1]):,}", "", "optimiser steps")]
    if log.has("samples_seen"):
        epochs = f"{log.last('epoch'):.1f} epochs" if log.has("epoch") else ""
        tiles.append(Tile(f"{int(log.last('samples_seen')):,}", "", "volumes seen", epochs))
    if log.has("volumes_per_second"):
        # The first steps carry start-up and compilation.
        settled = log.columns["volumes_per_second"][min(5, log.steps.size // 2) :]
        tiles.append(Tile(f"{np.nanmedian(settled):.3g}", "vol/s", "median throughput"))
    if log.has("seconds"):
        minutes = float(np.nansum(log.columns["seconds"])) / 60
        tiles.append(Tile(f"{minutes:.3g}", "min", "in optimiser steps"))
    return tiles


def make_tables(rows: list[MetricRow], unit: str) -> list[Table]:
    """Make one table per tracer, mask, reference and data range.

    Parameters
    ----------
    unit : of the PET, for RMSE and MAE
    """
    groups: dict[tuple[object, ...], list[MetricRow]] = {}
    for row in rows:
        key = (row.tracer, row.mask, row.reference, row.data_range)
        groups.setdefault(key, []).append(row)
    return [_make_table(group, unit) for group in groups.values()]


def _make_table(rows: list[MetricRow], unit: str) -> Table:
    first = rows[0]
    low, high = first.data_range
    methods = sorted({row.method for row in rows}, key=_method_order)
    summary = {
        (method, metric): metrics.confidence_interval(
            [row.values[metric] for row in rows if row.method == method]
        )
        for method in methods
        for metric in METRIC_HEADS
    }
    best = {m: max(methods, key=lambda k, m=m: _goodness(summary[k, m], m)) for m in METRIC_HEADS}
    cells = {
        method: [
            Cell(*_split_interval(summary[method, m], METRIC_HEADS[m][1]), best[m] == method)
            for m in METRIC_HEADS
        ]
        for method in methods
    }
    return Table(
        mask=MASK_NAMES.get(first.mask, first.mask),
        reference=REFERENCE_NAMES.get(first.reference, first.reference),
        tracer=first.tracer,
        data_range=f"{low:g} to {high:g} {unit}",
        num=len({row.image for row in rows}),
        heads=[_head(metric, unit) for metric in METRIC_HEADS],
        rows=[(METHOD_NAMES.get(method, method), line) for method, line in cells.items()],
    )


def _method_order(method: str) -> tuple[int, str]:
    known = list(METHOD_NAMES)
    return (known.index(method) if method in known else len(known), method)


def _goodness(value: metrics.Interval, metric: str) -> float:
    return -math.inf if math.isnan(value.mean) else METRIC_HEADS[metric][3] * value.mean


def _split_interval(value: metrics.Interval, decimals: int) -> tuple[str, str]:
    mean = format_number(value.mean, decimals)
    if math.isnan(value.low):
        return mean, ""
    return mean, f"[{format_number(value.low, decimals)}, {format_number(value.high, decimals)}]"


def _head(metric: str, unit: str) -> tuple[str, str]:
    text, _, has_unit, direction = METRIC_HEADS[metric]
    return (f"{text}, {unit}" if has_unit else text, "higher" if direction > 0 else "lower")
