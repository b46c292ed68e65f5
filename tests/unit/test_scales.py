"""SUVR and Centiloid at values known beforehand, and what they refuse."""

import numpy as np
import pytest

from ganbert.errors import ConfigError, DatasetError
from ganbert.scales import centiloid, suvr


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2, (2, 5, 6, 7)).astype(np.float32)


def test_each_frame_is_divided_by_its_own_reference() -> None:
    pet = noise(0) + 1
    mask = np.zeros((5, 6, 7), bool)
    mask[1:3, 2:4, 3] = True
    ratio = suvr(pet, mask)
    np.testing.assert_allclose(ratio[:, mask].mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(ratio[1], pet[1] / pet[1][mask].mean(), rtol=1e-5)
    assert ratio.dtype == np.float32


def test_a_reference_region_without_voxels_or_uptake_is_refused() -> None:
    everywhere = np.ones((5, 6, 7), bool)
    with pytest.raises(DatasetError, match="found none"):
        suvr(noise(0), ~everywhere)
    for pet in (-noise(0), np.zeros_like(noise(0)), noise(0) * np.float32("nan")):
        with pytest.raises(DatasetError, match="positive mean"):
            suvr(pet, everywhere)
    with pytest.raises(ValueError, match="D, H, W"):
        suvr(noise(0), everywhere[:2])


def test_centiloid_of_florbetapir() -> None:
    assert centiloid(1.0, "AV45") == pytest.approx(5.81)
    # The published threshold of positivity, SUVR 1.10, is about 24 Centiloid.
    assert centiloid(1.10, "florbetapir") == pytest.approx(24.117)


@pytest.mark.parametrize("tracer", ["AV1451", "FDG"])
def test_centiloid_of_another_target_is_refused(tracer: str) -> None:
    with pytest.raises(ConfigError, match=f"{tracer} which is not amyloid"):
        centiloid(1.2, tracer)
