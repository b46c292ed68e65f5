"""A cache of random numbers on tiny grids, for the tests of the streaming rooms."""

from pathlib import Path

import numpy as np

from ganbert.config import Grid
from ganbert.data.index import SCHEMA_VERSION, CachedImage, Index, Row, file_sha256
from ganbert.data.nifti import write_cache
from ganbert.data.volume import Volume

MRI_GRID = Grid(shape=(5, 6, 7), spacing_mm=(8.0, 8.0, 8.0))
PET_GRID = Grid(shape=(3, 4, 2), spacing_mm=(16.0, 16.0, 16.0))


def _image(folder: Path, name: str, array: np.ndarray, dtype: type) -> CachedImage:
    volume = Volume(array.astype(np.float32), np.eye(4), "SUVR")
    write_cache(folder / name, volume, dtype=dtype)
    return CachedImage(
        path=name,
        affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        sha256=file_sha256(folder / name),
        mean=float(array.mean()),
        std=float(array.std()),
        minimum=float(array.min()),
        maximum=float(array.max()),
        p999=float(array.max()),
    )


def write_tiny_cache(
    folder: Path, num_rows: int, mri_grid: Grid = MRI_GRID, pet_grid: Grid = PET_GRID
) -> Index:
    """Write `num_rows` training rows and one validation row."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_rows + 1):
        mri = rng.integers(0, 256, (1, *mri_grid.shape))
        pet = rng.random((2, *pet_grid.shape)) * 3
        row = Row(
            subject=f"{number:02d}",
            session=None,
            tracer="FDG",
            unit="SUVR",
            split="train" if number < num_rows else "val",
            frame_start_s=(0.0, 60.0),
            frame_duration_s=(60.0, 60.0),
            mri=_image(folder, f"{number}_T1w.nii", mri, np.uint8),
            pet=_image(folder, f"{number}_pet.nii", pet, np.float32),
            truth=None,
            dseg=None,
            sources=(),
        )
        rows.append(row)
    return Index(
        schema_version=SCHEMA_VERSION,
        mri_grid=mri_grid,
        pet_grid=pet_grid,
        intensity_ratio={"FDG": 0.01},
        rows=tuple(rows),
        versions={},
    )
