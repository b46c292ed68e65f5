"""What can be said of a single synthesis without a real PET: flags that come with every output.

A network answers whatever it is asked. So the T1w is measured, the measures are compared with those
of the training images (`ModelCard.seen`), and what is outside of them is said. The output is
compared with the declared range of the tracer and with the vocabulary. No flag is no promise.

Pure functions of arrays and of the model card; no file, no network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ganbert.config import ModelCard, SeenImages
from ganbert.data.conform import (
    ConformedMri,
    concentric_affine,
    mri_scale_offset,
    pet_scale_offset,
)
from ganbert.data.volume import Affine, FloatArray, Volume
from ganbert.errors import ConfigError
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import band_shares
from ganbert.seen import measure_mri
from ganbert.tracers import get_tracer

Severity = Literal["note", "warning"]
# Of the field of view of the PET: less of it inside the T1w is a part of the head that was guessed.
_LEAST_COVERAGE = 0.95
# Of the grid that the network sees; a thicker slice is interpolated.
_COARSEST_VOXEL = 1.6
_MOST_OVERFLOW = 0.01
_MOST_AT_EDGE = 0.001
_BELOW_RANGE = 0.05  # of the range's width
# How far outside of the training images a measure may lie: half of their spread, or this if it is
# more, since few images have little spread. Design decision; docs/inference.md has what it flags.
_MARGINS = {
    "mean": 10.0,
    "std": 8.0,
    "foreground": 0.05,
    "brightness": 0.08,
    "contrast": 0.2,
    "core": 0.15,
    "skew": 0.15,
    "black": 0.15,
}
_NAMES = {
    "mean": "mean intensity of the grid",
    "std": "spread of the intensities",
    "foreground": "share of the grid that is head",
    "brightness": "brightness of the head",
    "contrast": "contrast in the head",
    "core": "brightness of the middle of the brain beside the head's",
    "skew": "shape of the histogram in the brain (mean less median, in standard deviations)",
    "black": "share of the grid that is black",
}
# Measures that tell how a sequence looks, apart from the size and the place of the head.
_OF_CONTRAST = ("contrast", "core", "skew")


@dataclass(frozen=True)
class Flag:
    """One thing that a user should know of one output.

    Attributes
    ----------
    name : stable, for programs: field-of-view, resolution, contrast, intensity, tracer, tokens,
        range, unknown
    severity : "warning": do not use the image without a look at why; "note": worth knowing
    text : one line for people
    """

    name: str
    severity: Severity
    text: str


@dataclass(frozen=True)
class Quality:
    """Flags of one output and the measures that they were made from.

    Attributes
    ----------
    flags : warnings first
    measures : name -> number; of the MRI as `seen.measure_mri`, and `coverage`, `voxel_mm`,
        `mri_token_overflow`, `pet_token_overflow`, `pet_mean` and `pet_p99` (in the PET's unit),
        `below_range`, `above_range`
    """

    flags: tuple[Flag, ...]
    measures: Mapping[str, float]

    @property
    def num_warnings(self) -> int:
        """Number of flags that are warnings."""
        return sum(flag.severity == "warning" for flag in self.flags)

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold: `{"Flags": [...], "Measures": {...}}`."""
        return {
            "Flags": [
                {"Name": flag.name, "Severity": flag.severity, "Text": flag.text}
                for flag in self.flags
            ],
            "Measures": {name: round(value, 6) for name, value in self.measures.items()},
        }


def assess(
    mri: Volume,
    conformed: ConformedMri,
    pet: Volume,
    card: ModelCard,
    *,
    tracers: Sequence[str] = (),
) -> Quality:
    """Judge one synthesis by its input, its output and what its model saw.

    Parameters
    ----------
    mri : (1, D, H, W), the T1w as it was read, any grid
    conformed : the same as the network saw it
    pet : (2, D, H, W), what it made of it, in `card.unit`
    card : of the model
    tracers : names or BIDS labels of tracers that are wanted, or that the dataset has of the
        subject; none: nobody has said

    Source
    ------
    Design decision; thresholds in docs/inference.md.
    """
    measures = measure_mri(conformed.volume.array, card.mri_grid.spacing_mm)
    seen_flags = compare_with_seen(measures, card.seen)
    pet_affine = concentric_affine(conformed.volume.affine, card.mri_grid, card.pet_grid)
    measures["coverage"] = coverage(mri, pet_affine, card.pet_grid.shape)
    measures["voxel_mm"] = max(mri.spacing_mm)
    measures |= _measure_output(conformed, pet, card)
    flags = [
        *seen_flags,
        *_view_flags(measures, max(card.mri_grid.spacing_mm)),
        *tracer_flags(card, tracers),
        *_output_flags(measures, card),
    ]
    flags.sort(key=lambda flag: flag.severity != "warning")
    return Quality(tuple(flags), measures)


def compare_with_seen(measures: Mapping[str, float], seen: SeenImages | None) -> list[Flag]:
    """Return flags for measures of the MRI that lie outside of what the model saw.

    Parameters
    ----------
    measures : of `seen.measure_mri`
    seen : of the model card; None: it was exported without
    """
    if seen is None:
        text = (
            "the model does not say what its training images were like: whether this T1w is like "
            "them is unknown (export it again with `ganbert export`)"
        )
        return [Flag("unknown", "note", text)]
    flags = []
    for name, (low, high) in seen.mri.items():
        margin = max((high - low) / 2, _MARGINS.get(name, 0.0))
        value = measures.get(name, math.nan)
        if low - margin <= value <= high + margin:
            continue
        kind = "contrast" if name in _OF_CONTRAST else "intensity"
        text = (
            f"{_NAMES.get(name, name)} is {value:.3g}; the {seen.num_images} training images that "
            f"were measured have {low:.3g} to {high:.3g}"
        )
        flags.append(Flag(kind, "warning", text))
    return flags


def coverage(mri: Volume, affine: Affine, shape: tuple[int, int, int]) -> float:
    """Return the share, 0..1, of a grid's voxels whose centres lie inside an image.

    Parameters
    ----------
    mri : the image
    affine, shape : of the grid, index (d, h, w, 1) to RAS+ mm
    """
    to_voxels = np.linalg.inv(mri.affine) @ affine
    axes = [np.arange(n, dtype=np.float64) for n in shape]
    inside = np.ones(shape, bool)
    for row, size in zip(to_voxels[:3], mri.shape, strict=True):
        d, h, w = (axis * step for axis, step in zip(axes, row[:3], strict=True))
        index = d[:, None, None] + h[None, :, None] + w[None, None, :] + row[3]
        inside &= (index >= -0.5) & (index <= size - 0.5)
    return float(inside.mean())


def tracer_flags(card: ModelCard, tracers: Sequence[str]) -> list[Flag]:
    """Return a flag if other tracers than the model's are wanted and its own is not."""
    names = [_tracer_name(name) for name in tracers]
    if not names or card.tracer in names:
        return []
    text = f"the model makes {card.tracer}; asked for or acquired: {', '.join(sorted(set(names)))}"
    return [Flag("tracer", "warning", text)]


def _tracer_name(name: str) -> str:
    try:
        return get_tracer(name).name
    except ConfigError:
        return name


def _view_flags(measures: Mapping[str, float], grid_mm: float) -> list[Flag]:
    flags = []
    if measures["coverage"] < _LEAST_COVERAGE:
        text = (
            f"{100 * measures['coverage']:.0f} % of the PET's field of view lies inside the T1w; "
            "the rest was made from nothing"
        )
        flags.append(Flag("field-of-view", "warning", text))
    if measures["voxel_mm"] > _COARSEST_VOXEL * grid_mm:
        text = (
            f"voxels of up to {measures['voxel_mm']:.2g} mm, the model sees {grid_mm:.2g} mm: "
            "the T1w is interpolated"
        )
        flags.append(Flag("resolution", "note", text))
    return flags


def _measure_output(conformed: ConformedMri, pet: Volume, card: ModelCard) -> dict[str, float]:
    mean, std = conformed.mean, conformed.std
    low, high = card.data_range
    slack = _BELOW_RANGE * (high - low)
    return {
        "mri_token_overflow": _overflow(
            summarise_mri(_scaled(conformed.volume.array, *mri_scale_offset(mean, std)))
        ),
        "pet_token_overflow": _overflow(
            summarise_pet(_scaled(pet.array, *pet_scale_offset(mean, std, card.intensity_ratio)))
        ),
        "pet_mean": float(pet.array.mean(dtype=np.float64)),
        "pet_p99": float(np.percentile(pet.array, 99)),
        "below_range": float((pet.array < low - slack).mean()),
        "above_range": float((pet.array >= high).mean()),
    }


def _scaled(array: FloatArray, scale: float, offset: float) -> torch.Tensor:
    return torch.from_numpy(array * np.float32(scale) + np.float32(offset))[None]


def _overflow(values: torch.Tensor) -> float:
    return band_shares(values).overflow


def _output_flags(measures: Mapping[str, float], card: ModelCard) -> list[Flag]:
    flags = []
    for image in ("mri", "pet"):
        share = measures[f"{image}_token_overflow"]
        if share > _MOST_OVERFLOW:
            text = (
                f"{100 * share:.1f} % of the {image.upper()}'s 512 tokens are beyond the "
                "vocabulary: so high beside the T1w's own spread the training images were not"
            )
            flags.append(Flag("tokens", "warning", text))
    low, high = card.data_range
    for name, side in (("below_range", "below"), ("above_range", "above")):
        if measures[name] > _MOST_AT_EDGE:
            text = (
                f"{100 * measures[name]:.2g} % of the voxels lie {side} the declared range of "
                f"{low:g} to {high:g} {card.unit}"
            )
            flags.append(Flag("range", "warning", text))
    return flags
