"""What `evaluate` prints: small tables that fit 80 columns, all against the real PET."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ganbert.agreement import IMAGE_FIGURES, SHARES
from ganbert.data.regions import name_regions
from ganbert.metrics import GAIN, METRICS
from ganbert.tables import MIN_SUBJECTS, Line

MASKS = {"fov": "field of view", "head": "head"}
_METHOD_NAMES = {"mean_of_training": "training mean", "zero": "zero", GAIN: "difference"}
_EMPHASISED = ("ganbert", GAIN)
_HEADINGS = {"intensity_distance": "Wasserstein-1", "top_recall": "recall of top 1 %"}
_WITH_UNIT = ("rmse", "mae", "intensity_distance")
# Measure of the burden: its name for people, decimals.
_MEASURES = {"suvr": ("SUVR", 3), "centiloid": ("Centiloid", 1)}


def _new_table(title: str, headings: Sequence[str], caption: str | None = None) -> Table:
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in headings:
        # Of the columns only the names of methods may be broken into two lines.
        table.add_column(heading, no_wrap=bool(heading))
    return table


def _names(ours: str) -> dict[str, str]:
    return {"ganbert": ours, **_METHOD_NAMES}


def _cell(line: Line) -> str:
    """Mean and half the interval, or its ends where it is not symmetric."""
    decimals, half_decimals = {
        "psnr": (".2f", ".2f"), "ssim": (".3f", ".3f"), "top_recall": (".3f", ".3f"),
    }.get(line["metric"], (".3g", ".2g"))  # fmt: skip
    if math.isnan(line["mean"]):
        return "n/a"
    mean = format(line["mean"], decimals)
    if not math.isfinite(line["high"]):
        return mean
    if line["metric"] in SHARES and line["method"] != GAIN:
        return f"{mean} [{line['low']:{decimals}}, {line['high']:{decimals}}]"
    return f"{mean} \u00b1 {line['high'] - line['mean']:{half_decimals}}"


def _heading(metric: str, unit: str) -> str:
    name = _HEADINGS.get(metric, metric.upper())
    if metric == "psnr":
        return f"{name} (dB)"
    return f"{name} ({unit})" if metric in _WITH_UNIT else name


def _add_methods(
    table: Table, summary: Sequence[Line], mask: str, metrics: Sequence[str], ours: str
) -> None:
    for method, name in _names(ours).items():
        cells = {
            line["metric"]: _cell(line)
            for line in summary
            if (line["reference"], line["mask"], line["method"]) == ("real", mask, method)
        }
        style = "bold" if method in _EMPHASISED else None
        table.add_row(Padding(name, (0, 0, 0, 1)), *(cells[m] for m in metrics), style=style)


def show_scores(summary: Sequence[Line], about: Line, console: Console) -> None:
    """Print METRICS under every mask, and IMAGE_FIGURES in the head.

    Parameters
    ----------
    summary : lines of summary.tsv
    about : keys method_name, tracer, unit, split, num_subjects, data_range, ssim_window
    """
    low, high = about["data_range"]
    unit, ours, num = about["unit"], about["method_name"], about["num_subjects"]
    table = _new_table(
        f"{about['tracer']}, {about['num_subjects']} {about['split']} subjects",
        ("", *(_heading(metric, unit) for metric in METRICS)),
        f"Against the real PET: {_means(num)}. "
        f"PSNR and SSIM: data range {low:g} to {high:g} {unit}, SSIM window "
        f"{about['ssim_window']}. Difference: to the training mean, subject by subject.",
    )
    for mask, description in MASKS.items():
        table.add_row(description, style="italic")
        _add_methods(table, summary, mask, METRICS, ours)
        table.add_section()
    console.print(table)
    figures = _new_table(
        "Intensities in the head", ("", *(_heading(metric, unit) for metric in IMAGE_FIGURES))
    )
    _add_methods(figures, summary, "head", IMAGE_FIGURES, ours)
    console.print(figures)
    interval = "; in brackets its 95 % interval, which stays within 0 and 1"
    _explain(
        "Wasserstein-1: distance between the distributions, lower is better. Recall: share of "
        "the real PET's highest 1 % of voxels that are the synthesised PET's highest, too"
        f"{'' if num < MIN_SUBJECTS else interval}.",
        console,
    )


def _means(num: int) -> str:
    """Say what a cell holds."""
    if num < MIN_SUBJECTS:
        return f"mean over subjects, without an interval: n too small (below {MIN_SUBJECTS})"
    return "mean \u00b1 half the 95 % interval over subjects"


def _explain(text: str, console: Console) -> None:
    """Print what belongs to a table that is narrower than its explanation."""
    console.print(Padding(text, (0, 1, 1, 1)), style="dim italic", markup=False, highlight=False)


def show_burden(about: Line, agreement: Sequence[Line], ours: str, console: Console) -> None:
    """Print the agreement of the burden over subjects.

    Parameters
    ----------
    about : see `burden.describe_burden`
    agreement : lines of burden_agreement.tsv
    ours : name of the generator's method
    """
    shown = [line for line in agreement if line["reference"] == "real"]
    num = min(line["num"] for line in shown)
    target, reference = (name_regions(about[f"{side}_regions"]) for side in ("target", "reference"))
    figures = (
        "Bias: synthesised - real, \u00b1 half its 95 % interval; limits: \u00b1 1.96 SD around "
        "it; Lin: concordance, with its 95 % interval."
    )
    if num < MIN_SUBJECTS:
        figures = f"Bias: synthesised - real; the rest: n too small (below {MIN_SUBJECTS})."
    caption = (
        f"SUVR of {target} over {reference}, each PET over its own, in frame "
        f"{about['frame']} (the last); {num} of {about['num_subjects']} subjects have one. "
        f"{figures}"
    )
    if about["centiloid_note"]:
        caption += f" {about['centiloid_note']}"
    table = _new_table("Burden", ("", "bias", "limits", "Pearson", "Lin"))
    for measure, (title, decimals) in _MEASURES.items():
        of_measure = [line for line in shown if line["measure"] == measure]
        if of_measure:
            table.add_row(title, style="italic")
        for line in of_measure:
            style = "bold" if line["method"] in _EMPHASISED else None
            name = Padding(_names(ours)[line["method"]], (0, 0, 0, 1))
            table.add_row(name, *_burden_cells(line, decimals), style=style)
        table.add_section()
    console.print(table)
    _explain(caption, console)


def _burden_cells(line: Line, decimals: int) -> tuple[str, ...]:
    def number(key: str, places: int) -> str:
        return "n/a" if math.isnan(line[key]) else f"{line[key]:.{places}f}"

    bias, lin = number("bias", decimals), number("concordance", 2)
    if not math.isnan(line["bias_high"]):
        bias += f" \u00b1 {line['bias_high'] - line['bias']:.{decimals}f}"
    if not math.isnan(line["concordance_low"]):
        lin += f" [{number('concordance_low', 2)}, {number('concordance_high', 2)}]"
    limits = f"{number('lower_limit', decimals)} to {number('upper_limit', decimals)}"
    if math.isnan(line["lower_limit"]):
        limits = "n/a"
    return bias, limits, number("pearson", 2), lin
