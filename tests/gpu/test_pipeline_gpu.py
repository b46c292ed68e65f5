"""The graph on a GPU against the NumPy oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ganbert.config import AugmentationConfig
from ganbert.data.loader import build_loader
from ganbert.data.reference import reference_batch
from tests.tiny_cache import MRI_GRID, PET_GRID, write_tiny_cache
from tests.unit.test_pipeline import CHANGES, assert_changed_as_the_oracle_does

RATIO = 0.013


def test_dali_on_the_gpu_equals_the_oracle_and_stays_on_the_gpu(tmp_path: Path) -> None:
    index = write_tiny_cache(tmp_path, 7)
    rows = index.select("train")
    kept = []
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
        num_micro_steps=12,
        device_id=0,
    ) as loader:
        kept.extend(loader)
    # Compared only now: no batch may be overwritten by the ones after it.
    for batch in kept:
        assert batch.mri.device == batch.pet_real.device == torch.device("cuda:0")
        chosen = [rows[position] for position in batch.rows]
        mri, pet = reference_batch(tmp_path, chosen, RATIO, mri_grid=MRI_GRID, pet_grid=PET_GRID)
        # A GPU may fuse multiply and add: one rounding less.
        np.testing.assert_allclose(batch.mri.cpu().numpy(), mri, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.pet_real.cpu().numpy(), pet, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("config", CHANGES, ids=["flip", "intensity", "all"])
def test_dali_on_the_gpu_changes_images_as_the_oracle_does(
    config: AugmentationConfig, tmp_path: Path
) -> None:
    tolerance = 2e-4 if config.rotation_deg else 1e-6
    assert_changed_as_the_oracle_does(config, tmp_path, device_id=0, tolerance=tolerance)
