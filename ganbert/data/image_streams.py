"""From rows of an index to what `pipeline.py` streams: files of the cache, factors and motions."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ganbert.config import Grid
from ganbert.data.augmentation import Transform, to_source
from ganbert.data.conform import mri_scale_offset, pet_scale_offset
from ganbert.data.index import Index, Row, Split
from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.pipeline import Change, ImageStream, Motion, Shape
from ganbert.data.volume import Array
from ganbert.errors import DatasetError

PREPARE_AGAIN = "run `ganbert prepare` again"


def image_streams(
    folder: Path,
    index: Index,
    rows: Sequence[Row],
    positions: Sequence[int],
    intensity_ratio: float,
    draw: Callable[[int], Transform],
    motion: Motion,
) -> tuple[ImageStream, ImageStream]:
    """Return the streams of MRI and PET.

    Parameters
    ----------
    folder : of the index
    positions : in `rows`, one per sample, in order; they are the labels of both streams
    intensity_ratio : the tenth of paper section 3.1
    draw : what is done to the pair at a place in `positions`
    motion : what `draw` may ask for
    """
    mri_shape, pet_shape = payload_shapes(index, rows[0])

    def to_source_on(grid: Grid, transform: Transform) -> Array | None:
        return to_source(transform, grid) if motion == "warp" else None

    def change_mri(place: int) -> Change:
        image, drawn = rows[positions[place]].mri, draw(place)
        scale, offset = mri_scale_offset(image.mean, image.std)
        scale, offset = drawn.gain * scale, drawn.gain * offset + drawn.offset
        return Change(scale, offset, drawn.flip, to_source_on(index.mri_grid, drawn))

    def change_pet(place: int) -> Change:
        image, drawn = rows[positions[place]].mri, draw(place)
        scale, offset = pet_scale_offset(image.mean, image.std, intensity_ratio)
        return Change(scale, offset, drawn.flip, to_source_on(index.pet_grid, drawn))

    def files(name: str) -> list[str]:
        of_row = [str(folder / getattr(row, name).path) for row in rows]
        return [of_row[position] for position in positions]

    labels = list(positions)
    return (
        ImageStream(files("mri"), labels, mri_shape, np.uint8, change_mri, motion),
        ImageStream(files("pet"), labels, pet_shape, np.float32, change_pet, motion),
    )


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
