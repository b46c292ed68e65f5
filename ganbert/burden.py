"""A subject's burden: SUVR of a composite of regions, and Centiloid where the tracer has a line.

It is read in the last frame, the late uptake, and every PET is divided by the mean of its *own*
reference region: a synthesised PET that is wrong by a factor everywhere has the right burden.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ganbert.data.regions import name_regions
from ganbert.data.volume import FloatArray
from ganbert.errors import ConfigError, DatasetError
from ganbert.scales import centiloid, suvr
from ganbert.tables import Line
from ganbert.tracers import get_tracer

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
    target, reference : names of the regions
    target_labels, reference_labels : their labels in the segmentation
    source : where the choice comes from
    """

    tracer: str
    target: tuple[str, ...]
    reference: tuple[str, ...]
    target_labels: tuple[int, ...]
    reference_labels: tuple[int, ...]
    source: str


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
    target, reference : names that are asked for; None: the tracer table's, whose first entry of
        which every name is there is taken

    Returns
    -------
    None if nothing is asked for and the tracer table's names are not there.

    Raises
    ------
    ConfigError
        If a name that is asked for is not there, stands on both sides, or only one side is asked
        for and the tracer table has none for the other.
    """
    known = set(region_names.values())
    fitting = [r for r in get_tracer(tracer).burden if known.issuperset((*r.target, *r.reference))]
    if target is None and reference is None and not fitting:
        return None
    for option, names in ((TARGET_OPTION, target), (REFERENCE_OPTION, reference)):
        if names is not None:
            _check_names(option, names, sorted(known))
        elif not fitting:
            raise ConfigError(
                option,
                expected=f"names of regions, as the dataset has not those that {tracer} has",
                found="none",
                remedy=f"give both {TARGET_OPTION} and {REFERENCE_OPTION}",
            )
    chosen_target = tuple(fitting[0].target if target is None else target)
    chosen_reference = tuple(fitting[0].reference if reference is None else reference)
    both = sorted(set(chosen_target) & set(chosen_reference))
    if both:
        raise ConfigError(
            f"{TARGET_OPTION} and {REFERENCE_OPTION}",
            expected="no region in both",
            found=", ".join(both),
            remedy="take it out of one",
        )

    def labels(names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(label for label, name in region_names.items() if name in names)

    return BurdenPlan(
        tracer=tracer,
        target=chosen_target,
        reference=chosen_reference,
        target_labels=labels(chosen_target),
        reference_labels=labels(chosen_reference),
        source=fitting[0].source if target is None and reference is None else _ASKED_FOR,
    )


def _check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    if not known:
        raise ConfigError(
            option,
            expected="a dataset with names of regions",
            found="none in its index",
            remedy="put a _dseg.tsv beside the segmentations, prepare again and train on that",
        )
    if not names:
        raise ConfigError(option, expected="names", found="none", remedy="separate them by commas")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            listed = f"choose among {name_regions(known)}"
            raise ConfigError(
                option,
                expected="names of regions in the segmentation",
                found=repr(name),
                remedy=f"did you mean {' or '.join(near)}?" if near else listed,
            )


def why_left_out(tracer: str, region_names: Mapping[int, str]) -> str:
    """Say in one line why `plan_burden` found nothing."""
    row = get_tracer(tracer)
    if not region_names:
        return "the prepared folder has no names of regions (no _dseg.tsv, or an earlier version)"
    if not row.burden:
        return f"the tracer table names no regions for {tracer}"
    wanted = name_regions((*row.burden[0].target, *row.burden[0].reference))
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
    `measure` is "suvr", and "centiloid" where the tracer has a line. burden_real, burden_fake and
    bias (their difference) are in it; NaN where the burden is not known.
    """
    counts: Line = {
        "frame": len(next(iter(references.values()))) - 1,
        "num_target_voxels": int(np.isin(labels, plan.target_labels).sum()),
        "num_reference_voxels": int(np.isin(labels, plan.reference_labels).sum()),
    }
    scaled = get_tracer(plan.tracer).centiloid is not None
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
    scale = get_tracer(plan.tracer).centiloid
    return {
        "target_regions": list(plan.target),
        "reference_regions": list(plan.reference),
        "regions_source": plan.source,
        "frame": lines[0]["frame"],
        "num_subjects": len({line["subject"] for line in lines}),
        "centiloid_source": scale.source if scale else None,
        "centiloid_note": _centiloid_note(plan),
    }


def _centiloid_note(plan: BurdenPlan) -> str:
    """Whose line it is and how far it holds; empty without one."""
    row = get_tracer(plan.tracer)
    if row.centiloid is None:
        return ""
    note = (
        f"Centiloid: line of {row.centiloid.source}; outside of that pipeline, as here, an "
        "approximation"
    )
    if plan.source == _ASKED_FOR:
        # A slope to another reference region is another slope.
        note += f", and none unless what was asked for is cortex over {row.reference_region}"
    return f"{note}."
