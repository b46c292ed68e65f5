"""Augmentation: the same motion for MRI and PET, drawn by sample, and nothing by default."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.config import GRIDS, AugmentationConfig, Grid
from ganbert.data.augmentation import NO_AUGMENTATION, Transform, draw_transform, to_source
from ganbert.data.conform import concentric_affine, grid_affine

WIDE = AugmentationConfig(flip=0.5, rotation_deg=15.0, translation_mm=8.0, intensity=0.2)
STILL = {"rotation_deg": (0.0, 0.0, 0.0), "translation_mm": (0.0, 0.0, 0.0)}
seeds = st.integers(0, 2**63 - 1)
samples = st.integers(0, 10**9)
angles = st.tuples(*[st.floats(-180, 180)] * 3)
shifts = st.tuples(*[st.floats(-30, 30)] * 3)


def in_mm(matrix: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The motion of voxels as one of the world, (4, 4)."""
    whole = np.vstack((matrix, [0, 0, 0, 1]))
    return affine @ whole @ np.linalg.inv(affine)


@given(st.booleans(), angles, shifts, st.sampled_from(sorted(GRIDS)))
def test_mri_and_pet_move_as_one(
    flip: bool, angles: tuple[float, ...], shifts: tuple[float, ...], size: str
) -> None:
    mri_grid, pet_grid = GRIDS[size]
    mri_affine = grid_affine([3.0, -20.0, 11.0], mri_grid)
    pet_affine = concentric_affine(mri_affine, mri_grid, pet_grid)
    transform = Transform(flip, angles, shifts, 1.0, 0.0)  # type: ignore[arg-type]
    of_mri = in_mm(to_source(transform, mri_grid), mri_affine)
    of_pet = in_mm(to_source(transform, pet_grid), pet_affine)
    np.testing.assert_allclose(of_mri, of_pet, atol=1e-8)
    # Rigid: lengths and angles stay, and only a flip changes handedness.
    np.testing.assert_allclose(of_mri[:3, :3] @ of_mri[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(of_mri[:3, :3]) == pytest.approx(-1.0 if flip else 1.0)


@given(st.booleans(), angles, shifts)
def test_a_motion_is_rigid_in_mm_whatever_the_voxels(
    flip: bool, angles: tuple[float, ...], shifts: tuple[float, ...]
) -> None:
    grid = Grid(shape=(12, 10, 9), spacing_mm=(1.0, 2.0, 5.0))
    transform = Transform(flip, angles, shifts, 1.0, 0.0)  # type: ignore[arg-type]
    motion = in_mm(to_source(transform, grid), grid_affine((0.0, 0.0, 0.0), grid))
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-9)
    # (x, y, z) of the centre, which is at 0, are W, D, H.
    np.testing.assert_allclose(motion[:3, 3], np.array(shifts)[[2, 0, 1]], atol=1e-9)


def test_a_quarter_turn_by_hand() -> None:
    grid = Grid(shape=(3, 5, 5), spacing_mm=(1.0, 2.0, 2.0))
    turn = Transform(False, (90.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0, 0.0)
    matrix = to_source(turn, grid)
    # About D, through the middle (1, 2, 2): D stays, the step (0, 1, 0) along H comes from W.
    np.testing.assert_allclose(matrix @ [0, 2, 2, 1], [0, 2, 2], atol=1e-12)
    np.testing.assert_allclose(matrix @ [0, 3, 2, 1], [0, 2, 3], atol=1e-12)
    shift = Transform(False, (0.0, 0.0, 0.0), (1.0, 4.0, 0.0), 1.0, 0.0)
    np.testing.assert_allclose(to_source(shift, grid) @ [0, 0, 0, 1], [1, 2, 0], atol=1e-12)


@pytest.mark.parametrize("size", sorted(GRIDS))
def test_a_flip_swaps_left_and_right_and_nothing_else(size: str) -> None:
    for grid in GRIDS[size]:
        _, _, width = grid.shape
        matrix = to_source(Transform(True, gain=1.0, offset=0.0, **STILL), grid)  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix @ [4, 5, 1, 1], [4, 5, width - 2], atol=1e-12)


@given(seeds, samples)
def test_draws_stay_within_what_was_asked_for(seed: int, sample: int) -> None:
    drawn = draw_transform(WIDE, seed, sample)
    assert drawn == draw_transform(WIDE, seed, sample)
    assert max(map(abs, drawn.rotation_deg)) <= 15.0
    assert max(map(abs, drawn.translation_mm)) <= 8.0
    assert 0.8 <= drawn.gain <= 1.2
    assert abs(drawn.offset) <= 0.2
    unchanged = draw_transform(NO_AUGMENTATION, seed, sample)
    assert unchanged == Transform(False, gain=1.0, offset=0.0, **STILL)  # type: ignore[arg-type]
    assert not unchanged.moves


def test_draws_are_spread_evenly() -> None:
    drawn = [draw_transform(WIDE, 7, sample) for sample in range(2000)]
    assert 0.45 < np.mean([transform.flip for transform in drawn]) < 0.55
    rotations = np.array([transform.rotation_deg for transform in drawn])
    np.testing.assert_allclose(rotations.mean(axis=0), 0.0, atol=0.7)
    # Of a uniform distribution: the width divided by the root of 12.
    np.testing.assert_allclose(rotations.std(axis=0), 30 / np.sqrt(12), rtol=0.05)
    assert np.abs(np.corrcoef(rotations.T) - np.eye(3)).max() < 0.08


def test_draws_never_change_between_versions() -> None:
    """A resumed run must go on as it was: these numbers are a promise."""
    drawn = draw_transform(AugmentationConfig(flip=1.0, rotation_deg=10.0, intensity=0.5), 42, 3)
    assert drawn.flip
    np.testing.assert_allclose(
        drawn.rotation_deg, (-0.5028217974823224, -3.757972234239717, 6.514906926299345), rtol=1e-12
    )
    assert drawn.gain == pytest.approx(1.1066667126737388, rel=1e-12)
