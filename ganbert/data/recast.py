"""What becomes of the frames and the unit of a PET: planned from the sidecar, then done to it.

The plan needs no image, so that a missing key shows before hours of work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ganbert.data.frames import AS_IS, FRAME_RULES, choose_frames
from ganbert.data.nifti import resample
from ganbert.data.refusals import Refusal
from ganbert.data.regions import reference_labels
from ganbert.data.units import (
    check_target,
    is_decay_assumed,
    needs_reference,
    suvr,
    unit_factors,
)
from ganbert.data.volume import Pair, Recast, Volume
from ganbert.errors import ConfigError, DatasetError
from ganbert.tracers import TRACERS

# After as many, less than a millionth of the activity is left.
_MAX_HALF_LIVES = 20


@dataclass(frozen=True)
class RecastOptions:
    """What the user wants the PETs of a dataset to be.

    Attributes
    ----------
    frames : key of `FRAME_RULES`
    unit : one of `units.TARGETS`; None: as the sidecar says
    reference_regions : for SUVR, names of regions that make one; empty: the tracer's
    reference_mask : for SUVR, path of the subject's mask of the reference region, absolute or
        relative to the dataset, with {subject}, {session} and {tracer} where it needs them
    """

    frames: str = AS_IS
    unit: str | None = None
    reference_regions: tuple[str, ...] = ()
    reference_mask: str | None = None

    def __post_init__(self) -> None:
        if self.frames not in FRAME_RULES:
            expected = f"one of {', '.join(FRAME_RULES)}"
            raise ConfigError("--frames", expected=expected, found=self.frames, remedy="choose one")
        check_target(self.unit)
        has_reference = bool(self.reference_regions or self.reference_mask)
        if has_reference and self.unit != "SUVR":
            raise ConfigError(
                "--unit",
                expected="SUVR, since a reference region is given",
                found=self.unit or "none",
                remedy="add --unit SUVR, or leave the reference region out",
            )
        if self.reference_regions and self.reference_mask:
            raise ConfigError(
                "--reference-region",
                expected="names of regions or a mask",
                found="both",
                remedy="leave out one of the two",
            )
        if self.reference_mask:
            _fill_in(self.reference_mask, "", "", "")


NO_RECAST = RecastOptions()


def plan_recasts(
    pairs: Sequence[Pair], options: RecastOptions, region_names: Mapping[int, str], dataset: Path
) -> tuple[list[Pair], list[Refusal]]:
    """Plan each pair, see `plan_recast`; one that cannot become what is asked for is refused."""
    planned, unfit = [], []
    for pair in pairs:
        try:
            planned.append(plan_recast(pair, options, region_names, dataset))
        except DatasetError as error:
            unfit.append(Refusal(pair.subject, pair.session, pair.tracer, error))
    return planned, unfit


def reference_names(pairs: Sequence[Pair], options: RecastOptions) -> dict[str, str]:
    """Return tracer -> what its SUVR refers to, where a recast makes it."""
    names = {}
    for pair in pairs:
        if pair.reference_mask:
            names[pair.tracer] = options.reference_mask or ""
        elif pair.recast and pair.recast.reference_labels:
            names[pair.tracer] = " + ".join(_regions(pair, options))
    return names


def _regions(pair: Pair, options: RecastOptions) -> tuple[str, ...]:
    return options.reference_regions or (TRACERS[pair.tracer].reference_region,)


def plan_recast(
    pair: Pair, options: RecastOptions, region_names: Mapping[int, str], dataset: Path
) -> Pair:
    """Return the pair with its `recast`, and with its `reference_mask` where one is asked for.

    Parameters
    ----------
    region_names : of the labels of the dataset's segmentations
    dataset : folder that a relative `reference_mask` starts from

    Raises
    ------
    DatasetError
        Naming the PET, if its frames or its unit cannot become what is asked for.
    """
    choice = choose_frames(pair.pet, options.frames, pair.frame_start_s, pair.frame_duration_s)
    weights = choice.weights
    _check_activity(pair, weights)
    labels: tuple[int, ...] = ()
    mask: str | None = None
    if options.unit is not None:
        factors = unit_factors(pair, options.unit)
        weights = tuple(
            tuple(weight * factor for weight, factor in zip(row, factors, strict=True))
            for row in weights
        )
        if needs_reference(pair.unit, options.unit):
            labels, mask = _reference(pair, options, region_names, dataset)
    recast = Recast(
        matrix=weights,
        unit=options.unit or pair.unit,
        frame_start_s=choice.start_s,
        frame_duration_s=choice.duration_s,
        reference_labels=labels,
    )
    return replace(pair, recast=recast, reference_mask=mask)


def describe_assumption(pair: Pair) -> str | None:
    """Say what the recast of a pair takes for granted; None if nothing.

    A single frame's SUVR does not depend on its decay. In an average of frames that are not
    corrected, later ones count less than their durations say.
    """
    recast = pair.recast
    if recast is None or not is_decay_assumed(pair, recast.unit):
        return None
    if all(sum(map(bool, row)) <= 1 for row in recast.matrix):
        return None
    return (
        "its frames are averaged as decay-corrected, which nothing says: 'ImageDecayCorrected', "
        "which BIDS-PET requires, is missing"
    )


def _check_activity(pair: Pair, weights: Sequence[Sequence[float]]) -> None:
    """Refuse frames in which there can be no tracer: milliseconds, times of day and the like.

    A scan may begin before the injection, as long as those frames are not used. None ends as late
    as that, used or not: the others are then in milliseconds, too.
    """
    last = _MAX_HALF_LIVES * TRACERS[pair.tracer].half_life_s
    used = map(any, zip(*weights, strict=True))
    frames = zip(pair.frame_start_s, pair.frame_duration_s, used, strict=True)
    for start, duration, is_used in frames:
        if (is_used and start + duration <= 0) or start + duration > last:
            raise DatasetError(
                pair.pet,
                expected=f"frames in the {last:g} s ({_MAX_HALF_LIVES} half-lives) after injection",
                found=f"one from {start:g} s to {start + duration:g} s",
                remedy="mend FrameTimesStart, FrameDuration (s) or InjectionStart",
            )


def _reference(
    pair: Pair, options: RecastOptions, region_names: Mapping[int, str], dataset: Path
) -> tuple[tuple[int, ...], str | None]:
    """Return the labels of the reference region, or its mask."""
    if options.reference_mask:
        name = _fill_in(options.reference_mask, pair.subject, pair.session or "", pair.tracer)
        path = dataset / name
        if not path.is_file():
            remedy = "add it, or mend --reference-mask"
            raise DatasetError(path, expected="a reference mask", found="nothing", remedy=remedy)
        return (), str(path)
    if pair.dseg is None:
        raise DatasetError(
            pair.pet,
            expected="a segmentation of the subject, to find the reference region of SUVR in",
            found="none",
            remedy="give masks with --reference-mask",
        )
    try:
        return reference_labels(region_names, _regions(pair, options)), None
    except DatasetError as error:
        # A function on names does not know the file.
        raise DatasetError(
            pair.pet, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def _fill_in(pattern: str, subject: str, session: str, tracer: str) -> str:
    try:
        return pattern.format(subject=subject, session=session, tracer=tracer)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ConfigError(
            "--reference-mask",
            expected="a path with no other placeholders than {subject}, {session} and {tracer}",
            found=pattern,
            remedy="mend it",
        ) from error


def recast_frames(pet: Volume, recast: Recast) -> Volume:
    """Make the frames of the result from those on disk.

    Parameters
    ----------
    pet : (N, D, H, W), N the columns of the matrix

    Returns
    -------
    Volume
        (2, D, H, W), in the unit of the result up to the division by a reference region.
    """
    matrix = np.array(recast.matrix, np.float32)
    if np.array_equal(matrix, np.eye(len(pet.array), dtype=np.float32)):
        return Volume(pet.array, pet.affine, recast.unit)
    # One frame after the other: a dynamic PET is large, and BLAS would copy it.
    array = np.zeros((len(matrix), *pet.shape), np.float32)
    for target, row in zip(array, matrix, strict=True):
        for weight, frame in zip(row, pet.array, strict=True):
            if weight:
                target += weight * frame
    return Volume(array, pet.affine, recast.unit)


def divide_by_reference(pet: Volume, reference: Volume, labels: tuple[int, ...]) -> Volume:
    """Divide each frame by its mean in the reference region, on the PET's own grid.

    Parameters
    ----------
    pet : (T, D, H, W), any grid
    reference : (1, D, H, W), any grid: labels, or a mask where `labels` is empty
    labels : that make up the region

    Raises
    ------
    DatasetError
        If the region is empty on the PET's grid, or the mean in it is not positive.
    """
    nearest = resample(reference, pet.affine, pet.shape, order=0).array[0]
    mask = np.isin(nearest, labels) if labels else nearest > 0
    return Volume(suvr(pet.array, mask), pet.affine, pet.unit)
