"""The images of a row from files on disk, where a pair has more than it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganbert.config import Grid
from ganbert.data.conform import grid_affine
from ganbert.data.nifti import write_volume
from ganbert.data.row_images import conform_pair
from ganbert.data.volume import Pair, Recast, Volume
from ganbert.errors import ImageError

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


def plain_pair(folder: Path, pet: np.ndarray, **changes: Any) -> Pair:
    """A PET as it is given, that needs no reference region."""
    pair = pair_of(folder, reference_mask=False, labels=())
    frames = tuple(60.0 * number for number in range(len(pet)))
    plain = {"frame_start_s": frames, "frame_duration_s": (60.0,) * len(pet), "recast": None}
    return replace(pair, pet=save(folder, "pet.nii", pet), **(plain | changes))


def frames_with_empty(empty: int, num: int) -> np.ndarray:
    pet = np.zeros((num, *GRID.shape))
    pet[:, 4:12, 4:12, 4:12] = 3
    pet[empty] = 0
    return pet


@pytest.mark.parametrize("empty", [0, 1])
def test_a_frame_without_contrast_is_named(tmp_path: Path, empty: int) -> None:
    pair = plain_pair(tmp_path, frames_with_empty(empty, 2))
    with pytest.raises(ImageError, match=rf"found 0 in all voxels of frame {empty + 1}; "):
        conform_pair(pair, GRID, GRID)


def test_a_frame_without_contrast_may_stand_where_it_is_not_used(tmp_path: Path) -> None:
    last_two = Recast(((0, 1, 0), (0, 0, 1)), "Bq/mL", (60, 120), (60, 60))
    pair = plain_pair(tmp_path, frames_with_empty(0, 3), recast=last_two)
    assert conform_pair(pair, GRID, GRID).pet.array.max() == pytest.approx(3)
    averages = Recast(((0.5, 0.5, 0), (0, 0, 1)), "Bq/mL", (0, 120), (120, 60))
    with pytest.raises(ImageError, match=r"all voxels of frame 1; "):
        conform_pair(replace(pair, recast=averages), GRID, GRID)


def test_a_frame_that_lies_beside_the_head_is_refused(tmp_path: Path) -> None:
    pet = frames_with_empty(0, 2)
    pet[0, 0, 0, 0] = 1  # a speck that the coarse grid does not see
    coarse = Grid(shape=(4, 4, 4), spacing_mm=(4.0, 4.0, 4.0))
    with pytest.raises(ImageError, match=r"a PET that overlaps with t1w\.nii"):
        conform_pair(plain_pair(tmp_path, pet), GRID, coarse)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("labels", r"a mask: 0, and one value above 0, found 1 to 2 beside 0"),
        ("probabilities", r"found 0\.1 to 0\.9 beside 0"),
        ("negative", r"found -1 to -1 beside 0"),
        ("two volumes", r"expected one volume, found 2 volumes"),
    ],
)
def test_what_is_no_mask_is_refused_as_one(tmp_path: Path, mask: str, found: str) -> None:
    array = np.zeros((2 if mask == "two volumes" else 1, *GRID.shape))
    array[:, 10:12, 4:12, 4:12] = {"probabilities": 0.1, "negative": -1}.get(mask, 1)
    if mask in ("labels", "probabilities"):
        array[:, 11, 4:12, 4:12] = 2 if mask == "labels" else 0.9
    pair = pair_of(tmp_path, reference_mask=True, labels=())
    save(tmp_path, "mask.nii", array)
    with pytest.raises(ImageError, match=found):
        conform_pair(pair, GRID, GRID)


def test_a_segmentation_of_two_volumes_is_refused(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, reference_mask=False, labels=(7,))
    save(tmp_path, "dseg.nii", np.ones((2, *GRID.shape)))
    with pytest.raises(ImageError, match=r"dseg\.nii: expected one volume, found 2"):
        conform_pair(pair, GRID, GRID)
