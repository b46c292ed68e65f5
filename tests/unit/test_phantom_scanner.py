import numpy as np
import pytest

from ganbert.data.phantom_anatomy import Anatomy, centred_affine
from ganbert.data.phantom_scanner import PetScan, scan_mri, scan_pet
from ganbert.data.phantom_template import NUM_LABELS

SHAPE = (40, 40, 40)
AFFINE = centred_affine(SHAPE, (4.0, 4.0, 4.0))
FULL = np.ones(SHAPE, dtype=np.float32)


def scan(
    activity: np.ndarray, seed: int = 0, durations_s: tuple[float, float] = (600, 600)
) -> PetScan:
    return scan_pet(
        np.stack([activity, activity]).astype(np.float32),
        FULL,
        AFFINE,
        grid_shape=(30, 30, 30),
        grid_affine=centred_affine((30, 30, 30), (4.0, 4.0, 4.0)),
        durations_s=durations_s,
        rng=np.random.default_rng(seed),
    )


def head(grey: float = 0.0, white: float = 0.0, fluid: float = 0.0) -> Anatomy:
    """A brain of one mixture throughout, in the middle of the grid."""
    inside = np.zeros(SHAPE, dtype=np.float32)
    inside[8:-8, 8:-8, 8:-8] = 1
    nothing, labels = np.zeros(NUM_LABELS, np.float32), np.zeros(SHAPE, np.uint8)
    return Anatomy(
        grey=grey * inside,
        white=white * inside,
        fluid=fluid * inside,
        t1_detail=0 * inside,
        territory=labels,
        dseg=labels,
        atrophy=nothing,
        expected_atrophy=nothing,
        affine=AFFINE,
    )


def test_reference_region_has_the_mean_one() -> None:
    result = scan(7 * FULL)
    np.testing.assert_allclose(result.truth, 1, rtol=1e-5)


def test_suvr_does_not_depend_on_the_scale_of_activity() -> None:
    activity = FULL.copy()
    activity[10:20] = 3
    one, thousandfold = scan(activity), scan(1000 * activity)
    np.testing.assert_allclose(one.image, thousandfold.image, rtol=1e-4)


def test_noise_has_the_stated_variation_and_falls_with_frame_duration() -> None:
    result = scan(FULL, durations_s=(150, 600))
    noise = (result.image - result.truth).std(axis=(0, 1, 2))
    assert noise[1] == pytest.approx(result.noise_cv, rel=0.05)
    assert noise[0] == pytest.approx(2 * noise[1], rel=0.05)


def test_noise_grows_with_the_root_of_activity_and_is_correlated() -> None:
    activity = FULL.copy()
    activity[20:] = 4
    result = scan(activity)
    noise = (result.image - result.truth)[..., 0]
    dim, bright = noise[2:10], noise[-10:-2]
    assert bright.std() / dim.std() == pytest.approx(2, rel=0.1)
    neighbours = np.corrcoef(bright[:, :, 1:].ravel(), bright[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.2


@pytest.mark.parametrize("seed", range(8))
def test_scanner_stays_within_its_stated_limits(seed: int) -> None:
    result = scan(FULL, seed)
    assert 5 <= result.psf_fwhm_mm <= 8
    assert 0 <= result.shift_mm <= 2
    assert 0 <= result.rotation_deg <= 1.5
    assert result.image.min() >= 0


def test_the_point_spread_has_the_stated_width() -> None:
    point = np.zeros(SHAPE, dtype=np.float32)
    point[20, 20, 20] = 1
    result = scan(point)
    profile = result.truth[..., 1].sum(axis=(1, 2))
    x = 4.0 * np.arange(30)
    mean = (profile * x).sum() / profile.sum()
    variance = (profile * (x - mean) ** 2).sum() / profile.sum()
    psf = (result.psf_fwhm_mm / 2.3548) ** 2
    # Besides the scanner: a voxel's own width, and linear interpolation at a fraction t of a voxel
    # (t (1 - t) of its square).
    voxel = 4.0**2 / 12
    assert psf < variance < psf + voxel + 4.0**2 / 4 + 0.5


def test_mri_is_dark_fluid_grey_then_white_and_like_a_scanners() -> None:
    images = [
        scan_mri(head(**{tissue: 1.0}), np.random.default_rng(3))
        for tissue in ("fluid", "grey", "white")
    ]
    means = [float(image[12:-12, 12:-12, 12:-12].mean()) for image in images]
    assert means[0] < means[1] < means[2]
    assert means[1] / means[2] == pytest.approx(106 / 154, rel=0.02)
    for image in images:
        assert image.dtype == np.int16
        assert image.min() >= 0
    assert 300 < means[2] < 1200


def test_mri_background_is_rician() -> None:
    """Noise alone is a Rayleigh distribution: its mean over its SD is 1.913."""
    image = scan_mri(head(white=1.0), np.random.default_rng(0)).astype(float)
    background = image[:6]
    assert background.mean() > 0
    assert background.mean() / background.std() == pytest.approx(1.913, rel=0.1)


def test_scanners_differ_in_gain() -> None:
    brain = head(white=1.0)
    means = [
        scan_mri(brain, np.random.default_rng(s))[12:-12, 12:-12, 12:-12].mean() for s in range(6)
    ]
    assert max(means) > 1.2 * min(means)
