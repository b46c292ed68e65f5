"""From rows of an index to what `pipeline.py` streams: files of the cache, factors and motions."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganbert.config import Grid
from ganbert.data.augmentation import Transform, to_source
from ganbert.data.conform import mri_scale_offset, pet_scale_offset
from ganbert.data.index import CachedImage, Index, Row, Split
from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.pipeline import ImageStream, Shape
from ganbert.data.volume import Array
from ganbert.errors import DatasetError

PREPARE_AGAIN = "run `ganbert prepare` again"


def cache_streams(
    folder: Path,
    index: Index,
    rows: Sequence[Row],
    positions: Sequence[int],
    intensity_ratio: float,
    transforms: Sequence[Transform] | None = None,
) -> tuple[ImageStream, ImageStream]:
    """Return the streams of MRI and PET.

    Parameters
    ----------
    folder : of the index
    positions : in `rows`, one per sample, in order; they are the labels of both streams
    intensity_ratio : the tenth of paper section 3.1
    transforms : what is done to each sample; None: nothing
    """
    mri_shape, pet_shape = payload_shapes(index, rows[0])
    mris, pets = ([getattr(rows[k], name) for k in positions] for name in ("mri", "pet"))
    of_mri = np.array([mri_scale_offset(image.mean, image.std) for image in mris])
    of_pet = np.array([pet_scale_offset(i.mean, i.std, intensity_ratio) for i in mris])
    if transforms is not None:
        gain, offset = np.array([(t.gain, t.offset) for t in transforms]).T
        of_mri = np.column_stack((gain * of_mri[:, 0], gain * of_mri[:, 1] + offset))

    def stream(images: list[CachedImage], factors: Array, shape: Shape, dtype: type) -> ImageStream:
        scale, shift = np.ascontiguousarray(factors.T, np.float32)
        return ImageStream(
            files=[str(folder / image.path) for image in images],
            labels=list(positions),
            shape=shape,
            dtype=dtype,
            scale=scale,
            offset=shift,
        )

    mri = stream(mris, of_mri, mri_shape, np.uint8)
    pet = stream(pets, of_pet, pet_shape, np.float32)
    if transforms is None:
        return mri, pet
    return _moved(mri, index.mri_grid, transforms), _moved(pet, index.pet_grid, transforms)


def _moved(stream: ImageStream, grid: Grid, transforms: Sequence[Transform]) -> ImageStream:
    if any(transform.moves for transform in transforms):
        matrices = np.stack([to_source(transform, grid) for transform in transforms])
        return dataclasses.replace(stream, to_source=matrices)
    flips = np.array([transform.flip for transform in transforms])
    return dataclasses.replace(stream, flips=flips) if flips.any() else stream


def payload_shapes(index: Index, row: Row) -> tuple[Shape, Shape]:
    """Return (C, D, H, W) of the MRI and of the PET."""
    return (1, *index.mri_grid.shape), (len(row.frame_start_s), *index.pet_grid.shape)


def check_rows(folder: Path, rows: Sequence[Row], split: Split) -> None:
    """Refuse an empty split.

    Raises
    ------
    DatasetError
        If there is no row.
    """
    if not rows:
        raise DatasetError(
            folder, expected=f"rows in split '{split}'", found="none", remedy="add subjects"
        )


def check_cache(folder: Path, index: Index, rows: Sequence[Row]) -> None:
    """Look at each file once, so that a hole in the cache shows before any training work.

    Raises
    ------
    DatasetError
        If a file is missing or of the wrong size.
    """
    shapes = payload_shapes(index, rows[0])
    for row in rows:
        for image, shape, itemsize in zip((row.mri, row.pet), shapes, (1, 4), strict=True):
            _check_file(folder / image.path, HEADER_BYTES + itemsize * math.prod(shape))


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DatasetError(
            path, expected="a cached image", found=reason, remedy=PREPARE_AGAIN
        ) from error
    if found != size:
        raise DatasetError(
            path, expected=f"{size} bytes", found=f"{found} bytes", remedy=PREPARE_AGAIN
        )
