"""Where the training images' tokens fall among the paper's bands of ids (section 4.2).

Summarises what training would summarise: the cached training rows, normalised as the loader does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ganbert.data.conform import mri_scale_offset, pet_scale_offset
from ganbert.data.direct import read_image
from ganbert.data.index import CachedImage, Index, Row
from ganbert.data.volume import FloatArray
from ganbert.errors import ConfigError, DatasetError
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import (
    BandShares,
    band_shares,
    integers_to_ids,
    values_to_integers,
)

PAPER_RATIO = 0.1
# Far beyond any token; well within what int64 holds of value x 1000.
_LARGEST_VALUE = 1e12


@dataclass(frozen=True)
class Occupancy:
    """How the training images of one tracer fill the vocabulary.

    Attributes
    ----------
    intensity_ratio : with which the PET was normalised; None for the MRI, which has none
    num_images : summarised, 512 tokens each
    shares : of tokens in each band, 0..1
    distinct_ids : ids that occur at all
    unambiguous : share of tokens, 0..1, mean over images, whose id stands for one number only among
        all tokens counted here; the others are aliased
    """

    tracer: str
    image: Literal["MRI", "PET"]
    intensity_ratio: float | None
    num_images: int
    shares: BandShares
    distinct_ids: int
    unambiguous: float


def training_occupancy(folder: Path, index: Index, ratio: float | None = None) -> list[Occupancy]:
    """Summarise the training rows, and count; for each tracer the MRI first, then PET by ratio.

    Parameters
    ----------
    folder : of the index
    ratio : with which to normalise PET; None for the paper's and the suggested one of each tracer

    Raises
    ------
    DatasetError
        If there are no training rows, or a file is not on the grid of the index.
    ImageError
        If a file of the cache is missing or not readable.
    ConfigError
        If a ratio makes values that are no finite token.
    """
    rows = index.select("train")
    if not rows:
        remedy = "prepare more subjects"
        raise DatasetError(folder, expected="training rows", found="none", remedy=remedy)
    ratios = {row.tracer: _ratios(index, row.tracer, ratio) for row in rows}
    values: dict[tuple[str, float | None], list[Tensor]] = {}
    progress = Console(stderr=True)
    for row in track(rows, description="Summarising training rows", console=progress):
        values.setdefault((row.tracer, None), []).append(_mri_values(folder, index, row))
        for each, pet in _pet_values(folder, index, row, ratios[row.tracer]):
            values.setdefault((row.tracer, each), []).append(pet)
    return [
        occupancy(torch.cat(values[tracer, each]), tracer=tracer, ratio=each)
        for tracer in sorted(ratios)
        for each in (None, *ratios[tracer])
    ]


def occupancy(values: Tensor, *, tracer: str, ratio: float | None) -> Occupancy:
    """Count the tokens of one kind of image.

    Parameters
    ----------
    values : Tensor (N, 512), float32, summarised normalised images
    ratio : with which PET was normalised; None if these are MRI
    """
    numbers = values_to_integers(values)
    # Distinct numbers, so that an id met twice among them stands for two.
    ids, meanings = torch.unique(integers_to_ids(torch.unique(numbers)), return_counts=True)
    clear = torch.isin(integers_to_ids(numbers), ids[meanings == 1])
    return Occupancy(
        tracer=tracer,
        image="MRI" if ratio is None else "PET",
        intensity_ratio=ratio,
        num_images=len(values),
        shares=band_shares(values),
        distinct_ids=len(ids),
        unambiguous=float(clear.double().mean()),
    )


def _ratios(index: Index, tracer: str, ratio: float | None) -> list[float]:
    if ratio is not None:
        return [ratio]
    suggested = index.intensity_ratio.get(tracer)
    return list(dict.fromkeys([PAPER_RATIO] + ([] if suggested is None else [suggested])))


def _mri_values(folder: Path, index: Index, row: Row) -> Tensor:
    array = _read(folder, row.mri, (1, *index.mri_grid.shape))
    return summarise_mri(_normalise(array, *mri_scale_offset(row.mri.mean, row.mri.std)))


def _pet_values(
    folder: Path, index: Index, row: Row, ratios: Sequence[float]
) -> list[tuple[float, Tensor]]:
    array = _read(folder, row.pet, (len(row.frame_start_s), *index.pet_grid.shape))
    values = []
    for ratio in ratios:
        factors = pet_scale_offset(row.mri.mean, row.mri.std, ratio)
        values.append((ratio, summarise_pet(_normalise(array, *factors))))
        _check_values(values[-1][1], ratio)
    return values


def _check_values(values: Tensor, ratio: float) -> None:
    # Not `>=`: NaN must not pass.
    if not float(values.abs().max()) < _LARGEST_VALUE:
        raise ConfigError(
            "intensity_ratio",
            expected=f"normalised PET below {_LARGEST_VALUE:g}",
            found=f"more with a ratio of {ratio:g}",
            remedy="take a larger one",
        )


def _read(folder: Path, image: CachedImage, shape: tuple[int, ...]) -> FloatArray:
    array = read_image(folder, image).array
    if array.shape != shape:
        raise DatasetError(
            folder / image.path,
            expected=f"(C, D, H, W) = {shape}, as the index says",
            found=f"{array.shape}",
            remedy="run `ganbert prepare` again into a new folder",
        )
    return array


def _normalise(array: FloatArray, scale: float, offset: float) -> Tensor:
    """Multiply and add in float32, as the streaming graph does; return (1, C, D, H, W)."""
    with np.errstate(over="ignore", invalid="ignore"):
        normalised = array * np.float32(scale) + np.float32(offset)
    return torch.from_numpy(normalised)[None]
