"""The images of a row from files on disk, where a pair has more than it needs."""

from pathlib import Path

import numpy as np
import pytest

from ganbert.config import Grid
from ganbert.data.conform import grid_affine
from ganbert.data.nifti import write_volume
from ganbert.data.row_images import conform_pair
from ganbert.data.volume import Pair, Recast, Volume

GRID = Grid(shape=(16, 16, 16), spacing_mm=(8.0, 8.0, 8.0))
AFFINE = grid_affine((0, 0, 0), GRID)


def save(folder: Path, name: str, array: np.ndarray) -> str:
    write_volume(folder / name, Volume(array.astype(np.float32), AFFINE, "arbitrary"))
    return str(folder / name)


def pair_of(folder: Path, *, reference_mask: bool, labels: tuple[int, ...]) -> Pair:
    """A PET of 8, with a region of label 7 and uptake 2, and a mask where the uptake is 4."""
    mri = np.zeros((1, *GRID.shape))
    mri[:, 2:14, 2:14, 2:14] = 200
    pet, dseg, mask = np.full((2, *GRID.shape), 8.0), np.zeros_like(mri), np.zeros_like(mri)
    for array, value in ((pet, 2), (dseg, 7)):
        array[:, 4:6, 4:12, 4:12] = value
    for array, value in ((pet, 4), (mask, 1)):
        array[:, 10:12, 4:12, 4:12] = value
    return Pair(
        subject="01",
        session=None,
        tracer="AV45",
        mri=save(folder, "t1w.nii", mri),
        pet=save(folder, "pet.nii", pet),
        unit="Bq/mL",
        frame_start_s=(0, 60),
        frame_duration_s=(60, 60),
        dseg=save(folder, "dseg.nii", dseg),
        reference_mask=save(folder, "mask.nii", mask) if reference_mask else None,
        recast=Recast(((1, 0), (0, 1)), "SUVR", (0, 60), (60, 60), labels),
    )


@pytest.mark.parametrize(("mask", "labels", "divisor"), [(True, (), 4), (False, (7,), 2)])
def test_a_mask_is_divided_by_also_where_there_is_a_segmentation(
    tmp_path: Path, mask: bool, labels: tuple[int, ...], divisor: int
) -> None:
    images = conform_pair(pair_of(tmp_path, reference_mask=mask, labels=labels), GRID, GRID)
    assert images.pet.array.max() == pytest.approx(8 / divisor, rel=1e-5)
    assert images.pet.array[0, 10, 8, 8] == pytest.approx(4 / divisor, rel=1e-5)
    # The mask is for the division alone; the regions are still those of the segmentation.
    assert images.dseg is not None
    assert set(np.unique(images.dseg.array)) == {0, 7}
