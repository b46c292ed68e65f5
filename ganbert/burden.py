"""A subject's burden: SUVR of a composite of regions, and Centiloid where the tracer has a line.

It is read in the last frame, the late uptake, and every PET is divided by the mean of its *own*
reference region: a synthesised PET that is wrong by a factor everywhere has the right burden.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ganbert.data.regions import find_region, name_regions
from ganbert.data.volume import FloatArray
from ganbert.errors import ConfigError, DatasetError
from ganbert.scales import centiloid, suvr
from ganbert.strict import nearest
from ganbert.tables import Line
from ganbert.tracers import CentiloidScale, get_tracer

BURDEN_KEYS = ("tracer", "reference", "method", "measure")
TARGET_OPTION, REFERENCE_OPTION = "--target-regions", "--reference-regions"
_ASKED_FOR = "as asked for"
Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class BurdenPlan:
    """Which regions of a dataset make the burden.

    Attributes
    ----------
    tracer : short name, a key of `ganbert.tracers.TRACERS`
    target, reference : names of the regions, as the dataset writes them
    target_labels, reference_labels : their labels in the segmentation
    source : where the choice comes from
    is_standard : whether they are those of the tracer table, the only ones that Centiloid is for
    """

    tracer: str
    target: tuple[str, ...]
    reference: tuple[str, ...]
    target_labels: tuple[int, ...]
    reference_labels: tuple[int, ...]
    source: str
    is_standard: bool


def plan_burden(
    tracer: str,
    region_names: Mapping[int, str],
    target: Sequence[str] | None = None,
    reference: Sequence[str] | None = None,
) -> BurdenPlan | None:
    """Choose the regions: those that are asked for, else those of the tracer table.

    Parameters
    ----------
    tracer : short name, a key of `ganbert.tracers.TRACERS`
    region_names : label -> name, of the prepared folder's index
    target, reference : names that are asked for, see `data.regions.find_region`; None: the tracer
        table's, whose first composite of which every name is there is taken

    Returns
    -------
    None if nothing is asked for and the tracer table's names are not there.

    Raises
    ------
    ConfigError
        If a name that is asked for is not there, stands on both sides, or only one side is asked
        for and the tracer table has none for the other.
    """
    row = get_tracer(tracer)
    composites = ((each, _all_or_none(region_names, each.target)) for each in row.burden)
    composite, own_target = next(((c, found) for c, found in composites if found), (None, ()))
    own_reference = find_region(region_names, row.reference_region)
    if target is None and reference is None and not (own_target and own_reference):
        return None
    own = {TARGET_OPTION: own_target, REFERENCE_OPTION: own_reference}
    asked = {TARGET_OPTION: target, REFERENCE_OPTION: reference}
    sides = [_choose(option, asked[option], own[option], tracer, region_names) for option in own]
    both = [label for label in sides[0] if label in sides[1]]
    if both:
        raise ConfigError(
            f"{TARGET_OPTION} and {REFERENCE_OPTION}",
            expected="no region in both",
            found=", ".join(region_names[label] for label in both),
            remedy="take it out of one",
        )
    names = [tuple(dict.fromkeys(region_names[label] for label in side)) for side in sides]
    is_standard = [set(side) for side in sides] == [set(side) for side in own.values()]
    return BurdenPlan(
        tracer=tracer,
        target=names[0],
        reference=names[1],
        target_labels=sides[0],
        reference_labels=sides[1],
        source=composite.source if composite and is_standard else _ASKED_FOR,
        is_standard=is_standard,
    )


def _all_or_none(region_names: Mapping[int, str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Labels of all regions; none if one is not there: half a composite is another one."""
    found = [find_region(region_names, name) for name in wanted]
    return tuple(label for labels in found for label in labels) if all(found) else ()


def _choose(
    option: str,
    asked: Sequence[str] | None,
    own: tuple[int, ...],
    tracer: str,
    region_names: Mapping[int, str],
) -> tuple[int, ...]:
    """Labels of one side: those that are asked for, else the tracer's own."""
    if asked is not None:
        labels = [label for name in asked for label in _find(option, name, region_names)]
        if labels:
            return tuple(dict.fromkeys(labels))
        remedy = "separate them by commas, or give the option several times"
        raise ConfigError(option, expected="names", found="none", remedy=remedy)
    if not own:
        raise ConfigError(
            option,
            expected=f"names of regions, as the dataset has not those that {tracer} has",
            found="none",
            remedy=f"give both {TARGET_OPTION} and {REFERENCE_OPTION}",
        )
    return own


def _find(option: str, name: str, region_names: Mapping[int, str]) -> tuple[int, ...]:
    if not region_names:
        raise ConfigError(
            option,
            expected="a dataset with names of regions",
            found="none in its index",
            remedy="put a _dseg.tsv beside the segmentations, prepare again and train on that",
        )
    labels = find_region(region_names, name)
    if not labels:
        known = sorted(set(region_names.values()))
        near = nearest(name, known)
        raise ConfigError(
            option,
            expected="names of regions in the segmentation",
            found=repr(name),
            remedy=f"did you mean '{near}'?" if near else f"choose among {name_regions(known)}",
        )
    return labels


def why_left_out(tracer: str, region_names: Mapping[int, str]) -> str:
    """Say in one line why `plan_burden` found nothing."""
    row = get_tracer(tracer)
    if not region_names:
        return "the prepared folder has no names of regions (no _dseg.tsv, or an earlier version)"
    if not row.burden:
        return f"the tracer table names no regions for {tracer}"
    wanted = name_regions((*row.burden[0].target, row.reference_region))
    options = f"{TARGET_OPTION} and {REFERENCE_OPTION}"
    return f"the segmentation lacks regions such as {wanted}; name others with {options}"


def composite_suvr(pet: FloatArray, labels: Labels, plan: BurdenPlan) -> float:
    """Mean SUVR of the target regions in the last frame.

    Parameters
    ----------
    pet : (T, D, H, W) float32, any unit that is proportional to activity
    labels : (D, H, W) integer, of the same grid

    Returns
    -------
    The mean over all voxels of the target (so a region counts by its volume) of the PET divided by
    its mean over all voxels of the reference. NaN if either has no voxel, or the reference's mean
    is not positive.
    """
    target = np.isin(labels, plan.target_labels)
    if not target.any():
        return math.nan
    try:
        late = suvr(pet[-1:], np.isin(labels, plan.reference_labels))
    except DatasetError:
        # One subject of many, and perhaps only its synthesised PET: a gap, not the end.
        return math.nan
    return float(late[0, target].mean(dtype=np.float64))


def burden_lines(
    identity: Line,
    pets: Mapping[str, FloatArray],
    references: Mapping[str, FloatArray],
    labels: Labels,
    plan: BurdenPlan,
) -> Iterator[Line]:
    """Lines of burden.tsv of one image, per reference, method and measure.

    Parameters
    ----------
    identity : first columns: subject, session, tracer
    pets, references : method -> synthesised PET, name -> PET to compare with, (T, D, H, W) float32
    labels : (D, H, W) integer, of the same grid

    Returns
    -------
    `frame` counts from 1. `measure` is "suvr", and "centiloid" where tracer and regions have a
    line. burden_real, burden_fake and bias (their difference) are in it; NaN where the burden is
    not known.
    """
    counts: Line = {
        "frame": len(next(iter(references.values()))),
        "num_target_voxels": int(np.isin(labels, plan.target_labels).sum()),
        "num_reference_voxels": int(np.isin(labels, plan.reference_labels).sum()),
    }
    scaled = _scale(plan) is not None
    values = {name: composite_suvr(p, labels, plan) for name, p in {**pets, **references}.items()}
    for reference in references:
        for method in pets:
            real, fake = values[reference], values[method]
            measures = {"suvr": (real, fake)}
            if scaled:
                measures["centiloid"] = (centiloid(real, plan.tracer), centiloid(fake, plan.tracer))
            for measure, (of_real, of_fake) in measures.items():
                keys = {"method": method, "reference": reference, "measure": measure}
                figures = {"burden_real": of_real, "burden_fake": of_fake}
                yield {**identity, **keys, **counts, **figures, "bias": of_fake - of_real}


def describe_burden(plan: BurdenPlan, lines: Sequence[Line]) -> Line:
    """What summary.json says about the burden, besides its agreement.

    Parameters
    ----------
    lines : of burden.tsv
    """
    scale = _scale(plan)
    return {
        "target_regions": list(plan.target),
        "reference_regions": list(plan.reference),
        "regions_source": plan.source,
        "frame": lines[0]["frame"],
        "num_subjects": len({line["subject"] for line in lines}),
        "centiloid_source": scale.source if scale else None,
        "centiloid_note": _centiloid_note(plan),
    }


def _scale(plan: BurdenPlan) -> CentiloidScale | None:
    """The line to Centiloid; None without one, or where it does not hold for the regions."""
    return get_tracer(plan.tracer).centiloid if plan.is_standard else None


def _centiloid_note(plan: BurdenPlan) -> str:
    """Whose line it is and how far it holds, or why there is none; empty without one."""
    row = get_tracer(plan.tracer)
    if row.centiloid is None:
        return ""
    if not plan.is_standard:
        return (
            "No Centiloid: it is defined for the standard cortical composite over the "
            f"{row.reference_region} alone (Klunk et al. 2015), and other regions were asked for."
        )
    return (
        f"Centiloid: line of {row.centiloid.source}; outside of that pipeline, as here, an "
        "approximation."
    )
