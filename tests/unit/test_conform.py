"""Conforming: geometry (a point stays where it is in the world) and intensities."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ganbert.config import Grid
from ganbert.data.conform import (
    concentric_affine,
    conform_mri,
    conform_pet,
    grid_affine,
    head_centre,
    mri_scale_offset,
    normalise_mri,
    otsu_threshold,
    pet_scale_offset,
    restore_pet,
    suggest_intensity_ratio,
)
from ganbert.data.nifti import read_volume, resample
from ganbert.data.volume import Volume
from ganbert.errors import ImageError

MRI_GRID = Grid(shape=(24, 22, 20), spacing_mm=(8.0, 8.0, 8.0))
PET_GRID = Grid(shape=(12, 10, 10), spacing_mm=(12.0, 14.0, 16.0))
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SPACING_MM = np.array([6.0, 7.0, 8.0])
SHAPE = (22, 24, 20)  # x, y, z
MARK = (14, 8, 12)


def ball_image() -> nib.Nifti1Image:
    """A ball of 1 that holds a small cube of 3, off all planes of symmetry; 0 outside."""
    axes = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    x, y, z = (s * a for s, a in zip(SPACING_MM, axes, strict=True))
    radius = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    array = (radius < 55).astype(np.float32)
    array[tuple(slice(n - 1, n + 2) for n in MARK)] = 3.0
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = [-40.0, 25.0, 10.0]
    return nib.Nifti1Image(array, affine)


def mark_mm(volume: Volume, ball: float) -> np.ndarray:
    """World position of what is brighter than the ball."""
    excess = (volume.array[0] - 1.1 * ball).clip(0)
    return (volume.affine @ [*ndimage.center_of_mass(excess), 1.0])[:3]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_marked_point_stays_within_half_a_voxel(orientation: np.ndarray, tmp_path: Path) -> None:
    image = ball_image()
    world = (image.affine @ [*MARK, 1.0])[:3]
    image.as_reoriented(orientation).to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    mri = conform_mri(volume, MRI_GRID).volume
    # (D, H, W) spacing to (x, y, z).
    d, h, w = MRI_GRID.spacing_mm
    assert (np.abs(mark_mm(mri, 255 / 3) - world) <= np.array([w, d, h]) / 2).all()
    affine = concentric_affine(mri.affine, MRI_GRID, PET_GRID)
    pet = conform_pet(volume, affine, PET_GRID)
    d, h, w = PET_GRID.spacing_mm
    assert (np.abs(mark_mm(pet, 1.0) - world) <= np.array([w, d, h]) / 2).all()


def test_the_grid_is_centred_and_points_forward_up_and_right() -> None:
    affine = grid_affine((1.0, 2.0, 3.0), PET_GRID)
    np.testing.assert_allclose(affine @ [5.5, 4.5, 4.5, 1], [1, 2, 3, 1])
    np.testing.assert_allclose(
        affine @ [6.5, 4.5, 4.5, 0] - affine @ [5.5, 4.5, 4.5, 0], [0, 12, 0, 0]
    )
    np.testing.assert_allclose(affine[:3, 1], [0, 0, 14])
    np.testing.assert_allclose(affine[:3, 2], [16, 0, 0])


def test_concentric_grids_share_centre_and_directions() -> None:
    mri = grid_affine((1.0, 2.0, 3.0), MRI_GRID)
    pet = concentric_affine(mri, MRI_GRID, PET_GRID)
    np.testing.assert_allclose(pet, grid_affine((1.0, 2.0, 3.0), PET_GRID))
    np.testing.assert_allclose(concentric_affine(pet, PET_GRID, MRI_GRID), mri)


def test_the_head_is_found_wherever_it_lies_and_however_long_the_neck_is() -> None:
    def scan(neck_voxels: int) -> Volume:
        array = np.zeros((1, 40, 60, 40), np.float32)
        array[0, 10:26, 36:54, 20:34] = 100.0  # 72 mm high
        array[0, 16:20, 36 - neck_voxels : 36, 25:29] = 100.0
        array[0, 2, 58, 2] = 100.0  # a stray voxel above the vertex
        return Volume(
            array, grid_affine((0, 0, 0), Grid(shape=(40, 60, 40), spacing_mm=(4, 4, 4))), "a"
        )

    short, long = head_centre(scan(25)), head_centre(scan(36))
    # The head's middle is (w, d, h) = (26.5, 17.5, 44.5) from the grid's (19.5, 19.5, 29.5), 4 mm.
    np.testing.assert_allclose(short, [28, -8, 60], atol=8)
    np.testing.assert_allclose(long, short, atol=0.5)


def test_otsu_separates_two_heaps() -> None:
    array = np.concatenate([np.full(900, 1.0), np.full(100, 9.0)]).astype(np.float32)
    assert 1.0 < otsu_threshold(array) < 9.0


@given(gain=st.floats(0.01, 1000.0), offset=st.floats(-100.0, 100.0))
@settings(max_examples=10, deadline=None)
def test_a_scanner_gain_does_not_matter(gain: float, offset: float) -> None:
    image = np.random.default_rng(0).random((1, 12, 12, 12)).astype(np.float32)
    volume = Volume(
        image, grid_affine((0, 0, 0), Grid(shape=(12, 12, 12), spacing_mm=(8, 8, 8))), "a"
    )
    grid = Grid(shape=(10, 10, 10), spacing_mm=(8.0, 8.0, 8.0))
    plain = conform_mri(volume, grid).volume.array
    scaled = Volume((image * gain + offset * gain).astype(np.float32), volume.affine, "a")
    assert np.abs(conform_mri(scaled, grid).volume.array - plain).max() <= 2


def test_conformed_mri_is_whole_numbers_with_the_statistics_of_its_grid() -> None:
    image = ball_image()
    volume = Volume(
        image.get_fdata(dtype=np.float32).transpose(1, 2, 0)[None],
        image.affine[:, [1, 2, 0, 3]],
        "arbitrary",
    )
    conformed = conform_mri(volume, MRI_GRID)
    array = conformed.volume.array
    assert array.shape == (1, 24, 22, 20)
    assert array.min() == 0.0
    assert array.max() <= 255.0
    np.testing.assert_array_equal(array, np.rint(array))
    assert conformed.mean == pytest.approx(array.mean())
    assert conformed.std == pytest.approx(array.std())


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_mri_without_contrast_is_refused(value: float) -> None:
    flat = Volume(np.full((1, 8, 8, 8), value, np.float32), np.eye(4), "arbitrary")
    with pytest.raises(ImageError, match="contrast"):
        conform_mri(flat, MRI_GRID)


def test_an_mri_of_two_volumes_is_refused() -> None:
    with pytest.raises(ImageError, match="one volume"):
        conform_mri(Volume(np.ones((2, 8, 8, 8), np.float32), np.eye(4), "a"), MRI_GRID)


def test_coarse_pet_keeps_the_mean_activity() -> None:
    rng = np.random.default_rng(0)
    array = rng.random((2, 24, 24, 24)).astype(np.float32)
    source = Grid(shape=(24, 24, 24), spacing_mm=(2.0, 2.0, 2.0))
    target = Grid(shape=(8, 8, 8), spacing_mm=(4.0, 4.0, 4.0))
    pet = conform_pet(
        Volume(array, grid_affine((0, 0, 0), source), "SUVR"),
        grid_affine((0, 0, 0), target),
        target,
    )
    assert pet.array.mean() == pytest.approx(0.5, abs=0.02)
    # Noise of single voxels is averaged, not picked: 1/sqrt(12) before.
    assert pet.array.std() < 0.15
    assert pet.unit == "SUVR"


def test_normalising_by_hand() -> None:
    assert normalise_mri(90.0, 60.0, 30.0) == 1.0
    # (12 - 0.1 * 60) / (0.1 * 30) = 2
    scale, offset = pet_scale_offset(60.0, 30.0, 0.1)
    assert 12.0 * scale + offset == pytest.approx(2.0)
    assert restore_pet(2.0, 60.0, 30.0, 0.1) == pytest.approx(12.0)


@given(
    value=st.floats(-100, 100),
    mean=st.floats(1, 255),
    std=st.floats(1, 100),
    ratio=st.floats(1e-3, 10),
)
def test_restoring_undoes_normalising_for_arrays_and_tensors(
    value: float, mean: float, std: float, ratio: float
) -> None:
    for pet in (np.array(value), torch.tensor(value, dtype=torch.float64)):
        scale, offset = pet_scale_offset(mean, std, ratio)
        normalised = pet * scale + offset
        assert float(restore_pet(normalised, mean, std, ratio)) == pytest.approx(value, abs=1e-6)
    scale, offset = mri_scale_offset(mean, std)
    assert value * scale + offset == pytest.approx(normalise_mri(value, mean, std), abs=1e-6)


def test_the_suggested_ratio_puts_bright_voxels_at_nine() -> None:
    ratio = suggest_intensity_ratio([2.0], [30.0], [60.0])
    scale, offset = pet_scale_offset(30.0, 60.0, ratio)
    assert 2.0 * scale + offset == pytest.approx(9.0)
    # A single outlier does not move a cohort's ratio.
    assert suggest_intensity_ratio([2.0, 2.0, 50.0], [30.0] * 3, [60.0] * 3) == pytest.approx(ratio)


def test_oblique_thick_slices_are_not_smoothed_across() -> None:
    # Source voxels of 1 x 1 x 4 mm, turned by 40 degrees about H, onto 4 mm: only the two fine axes
    # need a wider voxel, and along these the image does not change.
    cosine, sine = np.cos(np.radians(40)), np.sin(np.radians(40))
    affine = np.eye(4)
    affine[:3, 0] = [sine, cosine, 0.0]
    affine[:3, 1] = [0.0, 0.0, 1.0]
    affine[:3, 2] = [4 * cosine, -4 * sine, 0.0]
    wave = np.sin(np.arange(32) * np.pi / 2).astype(np.float32)
    volume = Volume(np.broadcast_to(wave, (1, 96, 96, 32)).copy(), affine, "SUVR")
    grid = Grid(shape=(8, 8, 8), spacing_mm=(4.0, 4.0, 4.0))
    centre = (affine @ [47.5, 47.5, 15.5, 1.0])[:3]
    pet = conform_pet(volume, grid_affine(centre, grid), grid)
    plain = resample(volume, pet.affine, grid.shape)
    assert np.abs(plain.array).max() > 0.9
    np.testing.assert_allclose(pet.array, plain.array, atol=1e-5)
