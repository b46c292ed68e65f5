"""The NumPy oracle against the paper's formula, and DALI's graph against the oracle."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ganbert.config import AugmentationConfig
from ganbert.data.augmentation import draw_transform
from ganbert.data.conform import normalise_mri
from ganbert.data.loader import build_loader
from ganbert.data.nifti import read_cache
from ganbert.data.pipeline import Change, ImageStream, build_pipeline
from ganbert.data.reference import reference_batch
from ganbert.data.sample_order import share_of
from ganbert.errors import PlatformError
from tests.tiny_cache import MRI_GRID, PET_GRID, write_tiny_cache

RATIO = 0.013


def test_the_oracle_is_the_formula_of_the_paper(tmp_path: Path) -> None:
    rows = write_tiny_cache(tmp_path, 3).rows
    mri, pet = reference_batch(tmp_path, rows, RATIO, mri_grid=MRI_GRID, pet_grid=PET_GRID)
    assert mri.shape == (4, 1, 5, 6, 7)
    assert pet.shape == (4, 2, 3, 4, 2)
    assert mri.dtype == pet.dtype == np.float32
    for row, row_mri, row_pet in zip(rows, mri, pet, strict=True):
        mean, std = row.mri.mean, row.mri.std
        raw_mri, raw_pet = (
            read_cache(tmp_path / image.path).array.astype(np.float64)
            for image in (row.mri, row.pet)
        )
        np.testing.assert_allclose(row_mri, normalise_mri(raw_mri, mean, std), atol=1e-6)
        expected = (raw_pet - RATIO * mean) / (RATIO * std)
        np.testing.assert_allclose(row_pet, expected, atol=1e-5)


def test_dali_equals_the_oracle_bit_by_bit(tmp_path: Path) -> None:
    index = write_tiny_cache(tmp_path, 7)
    rows = index.select("train")
    with build_loader(
        tmp_path,
        index,
        "train",
        intensity_ratio=RATIO,
        micro_batch=3,
        rank=0,
        world_size=1,
        seed=1,
        start_micro_step=0,
        num_micro_steps=5,
        device_id=None,
    ) as loader:
        for batch in loader:
            chosen = [rows[position] for position in batch.rows]
            mri, pet = reference_batch(
                tmp_path, chosen, RATIO, mri_grid=MRI_GRID, pet_grid=PET_GRID
            )
            np.testing.assert_array_equal(batch.mri.numpy(), mri)
            np.testing.assert_array_equal(batch.pet_real.numpy(), pet)


CHANGES = [
    AugmentationConfig(flip=0.5),
    AugmentationConfig(intensity=0.3),
    AugmentationConfig(flip=0.5, intensity=0.2, rotation_deg=20.0, translation_mm=3.0),
]


def assert_changed_as_the_oracle_does(
    config: AugmentationConfig, folder: Path, *, device_id: int | None, tolerance: float
) -> None:
    """Hold augmented batches to NumPy's; the tolerance is a share of each image's range."""
    index = write_tiny_cache(folder, 7)
    rows = index.select("train")
    options = {"intensity_ratio": RATIO, "micro_batch": 2, "rank": 1, "world_size": 2, "seed": 3}
    window = {"start_micro_step": 4, "num_micro_steps": 6, "device_id": device_id}
    loader = build_loader(folder, index, "train", augmentation=config, **options, **window)
    for step, batch in enumerate(loader, start=4):
        samples = share_of(step, rank=1, world_size=2, micro_batch=2)
        mri, pet = reference_batch(
            folder,
            [rows[position] for position in batch.rows],
            RATIO,
            mri_grid=MRI_GRID,
            pet_grid=PET_GRID,
            transforms=[draw_transform(config, 3, k) for k in samples],
        )
        for found, expected in ((batch.mri, mri), (batch.pet_real, pet)):
            allowed = tolerance * np.ptp(expected)
            np.testing.assert_allclose(found.cpu(), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("config", CHANGES, ids=["flip", "intensity", "all"])
def test_dali_changes_images_as_the_oracle_does(config: AugmentationConfig, tmp_path: Path) -> None:
    # Without interpolation bit by bit; with it DALI's positions are float32.
    tolerance = 2e-4 if config.rotation_deg else 0.0
    assert_changed_as_the_oracle_does(config, tmp_path, device_id=None, tolerance=tolerance)


def test_without_dali_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    stream = ImageStream(["a"], [0], (1, 1, 1, 1), np.uint8, lambda _: Change(1.0, 0.0))
    with pytest.raises(PlatformError, match="nvidia-dali-cuda120"):
        build_pipeline(stream, stream, micro_batch=1, device_id=None)
