"""The part of the report on subjects: agreement of regional uptake and of the burden.

It stands on what `evaluate` wrote (summary.json and burden.tsv) and computes nothing but the mean
over the sessions of a subject. A run from before these figures has none of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ganbert.data.regions import name_regions
from ganbert.report.charts import Drawing, draw_bland_altman
from ganbert.report.run import (
    DAMAGES,
    REAL,
    SUMMARY_NAME,
    not_of_evaluate,
    read_evaluated,
    read_lines,
)
from ganbert.report.scores import BASELINE, OURS, Agreement, format_number, name_methods
from ganbert.run_folder import describe_damage

BURDEN_NAME = "evaluation/burden.tsv"
# Measure: (name for people, unit of its differences, decimals).
_MEASURES = {"suvr": ("SUVR", "SUVR", 3), "centiloid": ("Centiloid", "CL", 1)}
_FIGURES = ("bias", "lower_limit", "upper_limit", "pearson", "concordance")
_METHODS = (OURS, BASELINE)


@dataclass(frozen=True)
class AgreementLine:
    """One line of agreement over subjects, as `evaluate` computed it.

    Attributes
    ----------
    keys : method, reference, and region, name, frame or measure
    values : of each figure and of its bounds (`_low`, `_high`); NaN where it is not known
    """

    keys: dict[str, Any]
    num: int
    values: dict[str, float]


@dataclass(frozen=True)
class AgreementTable:
    """Figures of agreement, as text.

    Attributes
    ----------
    rows : (what, (figure, its interval or ""), ...)
    """

    label: str
    heads: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Subjects:
    """What the page shows of agreement over subjects. Texts are empty where there is nothing.

    Attributes
    ----------
    regions : agreement by region in the last frame, if the dataset has regions
    burden : agreement of the burden by measure and method
    plots : Bland-Altman plots of the burden
    about : which regions make the burden, in which frame, of how many subjects
    centiloid : whose line to Centiloid, and how far it holds
    suvr : method -> figures of the burden's agreement in SUVR
    """

    regions: AgreementTable | None
    burden: AgreementTable | None
    plots: list[Drawing]
    about: str
    centiloid: str
    suvr: Agreement


def read_subjects(run: Path, unit: str, ours: str) -> Subjects | None:
    """Read what `evaluate` found over subjects; None if it found nothing of the kind.

    Parameters
    ----------
    unit : of the PET
    ours : name of the run's method

    Raises
    ------
    DatasetError
        If `summary.json` or `burden.tsv` is torn.
    """
    file = run / SUMMARY_NAME
    if not file.exists():
        return None
    content = read_evaluated(file)
    try:
        regions = _lines(content.get("agreement") or [])
        burden = content.get("burden")
        of_burden = _lines(burden["agreement"]) if burden else []
        about, centiloid = _about(burden, of_burden) if burden else ("", "")
    except DAMAGES as error:
        raise not_of_evaluate(file, describe_damage(error)) from error
    if not regions and not burden:
        return None
    return Subjects(
        regions=_region_table(regions, unit, ours),
        burden=_burden_table(of_burden, ours),
        plots=_plots(run, of_burden, ours),
        about=about,
        centiloid=centiloid,
        suvr={
            str(line.keys["method"]): line.values
            for line in of_burden
            if line.keys["measure"] == "suvr"
        },
    )


def _lines(content: Sequence[dict[str, Any]]) -> list[AgreementLine]:
    """Lines against the real PET; JSON has no NaN, it is written as null."""
    lines = []
    for line in content:
        values = {
            f"{name}{bound}": math.nan if (v := line[f"{name}{bound}"]) is None else float(v)
            for name in _FIGURES
            for bound in ("", "_low", "_high")
        }
        keys = {name: value for name, value in line.items() if name not in values}
        if line["reference"] == REAL:
            lines.append(AgreementLine(keys, int(line["num"]), values))
    return lines


def _about(burden: dict[str, Any], lines: Sequence[AgreementLine]) -> tuple[str, str]:
    num = min((line.num for line in lines), default=0)
    target, reference = (
        name_regions(burden[f"{side}_regions"]) for side in ("target", "reference")
    )
    about = (
        f"Mean SUVR of {target} over {reference}, each PET divided by its own reference, in frame "
        f"{burden['frame']} (the last, late uptake); {num} of {burden['num_subjects']} "
        f"subjects have one. Regions: {burden['regions_source']}."
    )
    return about, str(burden["centiloid_note"])


def _figures(line: AgreementLine, decimals: int) -> list[tuple[str, str]]:
    """Bias, limits, Pearson and Lin with their intervals."""

    def text(name: str, places: int, *, signed: bool = False) -> tuple[str, str]:
        value, low, high = (
            format_number(line.values[name + bound], places, signed=signed)
            for bound in ("", "_low", "_high")
        )
        known = math.isfinite(line.values[f"{name}_low"])
        return value, f"[{low}, {high}]" if known else ""

    lower, upper = (text(f"{end}_limit", decimals, signed=True)[0] for end in ("lower", "upper"))
    limits = "n/a" if lower == "n/a" else f"{lower} to {upper}"
    return [
        text("bias", decimals, signed=True),
        (limits, ""),
        text("pearson", 2),
        text("concordance", 2),
    ]


def _heads(unit: str) -> list[str]:
    suffix = f", {unit}" if unit else ""
    return [f"Bias{suffix}", f"Limits of agreement{suffix}", "Pearson", "Lin"]


def _region_table(lines: Sequence[AgreementLine], unit: str, ours: str) -> AgreementTable | None:
    own = [line for line in lines if line.keys["method"] == OURS]
    last = max((line.keys["frame"] for line in own), default=0)
    rows = []
    for line in own:
        if line.keys["frame"] == last:
            name, region = str(line.keys.get("name", "n/a")), line.keys["region"]
            rows.append((f"region {region}" if name == "n/a" else name, _figures(line, 3)))
    label = f"Agreement of regional means, {ours}, frame {int(last)}"
    return AgreementTable(label, _heads(unit), rows) if rows else None


def _burden_table(lines: Sequence[AgreementLine], ours: str) -> AgreementTable | None:
    rows, names = [], name_methods(ours)
    for measure, (name, unit, decimals) in _MEASURES.items():
        for line in lines:
            if line.keys["measure"] == measure:
                method = names.get(line.keys["method"], line.keys["method"])
                what = f"{method}, {name}" + (f" ({unit})" if unit != name else "")
                rows.append((what, _figures(line, decimals)))
    return AgreementTable("Agreement of the burden", _heads(""), rows) if rows else None


def _plots(run: Path, lines: Sequence[AgreementLine], ours: str) -> list[Drawing]:
    """Draw the last measure that there is (Centiloid before SUVR), one plot a method."""
    measures = {line.keys["measure"] for line in lines}
    measure = next((name for name in reversed(_MEASURES) if name in measures), "")
    file = run / BURDEN_NAME
    if not measure or not file.exists():
        return []
    name, unit, decimals = _MEASURES[measure]
    drawn, names = [], name_methods(ours)
    for line in lines:
        method = line.keys["method"]
        if line.keys["measure"] != measure or method not in _METHODS:
            continue
        pairs = _pairs(file, method, measure)
        if not len(pairs):
            continue
        lower, bias, upper = (line.values[k] for k in ("lower_limit", "bias", "upper_limit"))
        title = f"Burden ({name}): {names[method]}"
        low, middle, high = (format_number(v, decimals, signed=True) for v in (lower, bias, upper))
        text = (
            f"Bland-Altman plot of the {name} burden, {names[method]} against the real PET, "
            f"{len(pairs)} subjects: bias {middle} {unit}, limits of agreement {low} to {high}"
        )
        svg = draw_bland_altman(
            pairs.mean(axis=1), pairs[:, 0] - pairs[:, 1], (lower, bias, upper), unit,
            key=f"burden-{method}",
        )  # fmt: skip
        drawn.append(Drawing(title, text, svg))
    return drawn


def _pairs(file: Path, method: str, measure: str) -> np.ndarray:
    """Synthesised and real burden, (subjects, 2); the mean over the sessions of each."""
    wanted = (REAL, method, measure)

    def pair(line: dict[str, str]) -> tuple[str, tuple[float, float]] | None:
        texts = (line["burden_fake"], line["burden_real"])
        keys = (line["reference"], line["method"], line["measure"])
        if keys != wanted or "n/a" in texts:
            return None
        return line["subject"], (float(texts[0]), float(texts[1]))

    by_subject: dict[str, list[tuple[float, float]]] = {}
    for subject, values in filter(None, read_lines(file, pair)):
        by_subject.setdefault(subject, []).append(values)
    return np.array([np.mean(pairs, axis=0) for pairs in by_subject.values()], np.float64)
