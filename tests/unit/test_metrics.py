"""Metrics against values worked out by hand, and what must hold for any image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from ganbert.config import Grid
from ganbert.data.conform import grid_affine
from ganbert.data.volume import Volume
from ganbert.errors import DatasetError
from ganbert.metrics import (
    GAIN,
    METRICS,
    confidence_interval,
    head_mask,
    image_metrics,
    paired_difference,
    regional_means,
    share_interval,
    ssim_map,
    ssim_window,
    summarise,
)
from ganbert.tracers import TRACERS, declared_data_range

RANGE = (0.0, 2.0)


def noise(seed: int, shape: tuple[int, ...] = (2, 12, 11, 13)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2, shape).astype(np.float32)


def test_a_constant_error_gives_the_hand_computed_figures() -> None:
    pet_real = noise(0)
    figures = image_metrics(pet_real + 0.2, pet_real, data_range=RANGE)
    assert figures["rmse"] == pytest.approx(0.2, rel=1e-5)
    assert figures["mae"] == pytest.approx(0.2, rel=1e-5)
    assert figures["psnr"] == pytest.approx(20.0, rel=1e-4)  # 20 log10(2 / 0.2)


def test_ssim_of_two_constants_is_the_luminance_term() -> None:
    low, high = np.full((1, 11, 11, 11), 0.5, np.float32), np.full((1, 11, 11, 11), 1.0, np.float32)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * 1.0 + c1) / (0.25 + 1.0 + c1)
    figures = image_metrics(low, high, data_range=RANGE)
    assert figures["ssim"] == pytest.approx(expected, abs=1e-6)


def test_equal_images_are_perfect() -> None:
    figures = image_metrics(noise(1), noise(1), data_range=RANGE)
    assert figures["psnr"] == math.inf
    assert figures["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert figures["rmse"] == figures["mae"] == 0.0


def test_errors_outside_the_declared_range_still_count() -> None:
    pet_real = np.full((1, 11, 11, 11), 2.0, np.float32)
    assert image_metrics(pet_real + 1, pet_real, data_range=RANGE)["mae"] == 1.0
    assert image_metrics(pet_real + 1, pet_real, data_range=RANGE)["psnr"] == pytest.approx(6.0206)


def test_the_mask_hides_what_lies_outside_it() -> None:
    pet_real, pet_fake = noise(2), noise(2)
    pet_fake[:, 0] += 5
    mask = np.ones(pet_real.shape[1:], bool)
    mask[0] = False
    inside = image_metrics(pet_fake, pet_real, data_range=RANGE, mask=mask)
    everywhere = image_metrics(pet_fake, pet_real, data_range=RANGE)
    assert inside["mae"] == 0.0
    assert everywhere["mae"] == pytest.approx(5 / 12, rel=1e-5)
    assert inside["ssim"] > everywhere["ssim"]


@pytest.mark.parametrize("shape", [(2, 14, 12, 13), (1, 12, 10, 10), (1, 5, 4, 9)])
def test_the_ssim_map_is_that_of_torchmetrics(shape: tuple[int, int, int, int]) -> None:
    pet_real = noise(1, shape)
    pet_fake = pet_real + np.float32(0.3) * noise(2, shape)
    window = ssim_window(shape[1:])
    _, expected = structural_similarity_index_measure(
        torch.from_numpy(pet_fake)[:, None].double(),
        torch.from_numpy(pet_real)[:, None].double(),
        sigma=1.5 * window / 11,
        kernel_size=window,
        data_range=RANGE[1] - RANGE[0],
        return_full_image=True,
    )
    ours = ssim_map(pet_fake, pet_real, data_range=RANGE)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected[:, 0].numpy(), atol=1e-6)


def test_ssim_within_a_mask_is_the_mean_of_the_map_over_it() -> None:
    pet_fake, pet_real = noise(3), noise(4)
    mask = np.zeros(pet_real.shape[1:], bool)
    mask[4:7, 3:5, 2:9] = True
    similarity = ssim_map(pet_fake, pet_real, data_range=RANGE)
    figures = image_metrics(pet_fake, pet_real, data_range=RANGE, mask=mask)
    assert similarity.shape == pet_real.shape
    assert figures["ssim"] == pytest.approx(similarity[:, mask].mean(), abs=1e-6)


def test_an_empty_mask_and_unequal_shapes_are_refused() -> None:
    nothing = np.zeros((12, 11, 13), bool)
    with pytest.raises(ValueError, match="mask is empty"):
        image_metrics(noise(0), noise(0), data_range=RANGE, mask=nothing)
    with pytest.raises(ValueError, match="one shape"):
        image_metrics(noise(0), noise(0)[:1], data_range=RANGE)


@pytest.mark.parametrize(
    ("shape", "window"), [((93, 76, 76), 11), ((47, 38, 38), 11), ((12, 10, 10), 9), ((5, 4, 9), 3)]
)
def test_the_ssim_window_shrinks_to_an_odd_edge_that_fits(
    shape: tuple[int, int, int], window: int
) -> None:
    assert ssim_window(shape) == window
    pet = noise(5, (1, *shape)) if max(shape) < 50 else noise(5, (1, 12, 12, 12))
    assert image_metrics(pet, pet, data_range=RANGE)["ssim"] == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.01, 1e4), seed=st.integers(0, 100))
def test_psnr_and_ssim_do_not_depend_on_the_unit(scale: float, seed: int) -> None:
    pet_fake, pet_real = noise(seed, (1, 6, 5, 5)), noise(seed + 1, (1, 6, 5, 5))
    plain = image_metrics(pet_fake, pet_real, data_range=RANGE)
    scaled = image_metrics(
        pet_fake * np.float32(scale), pet_real * np.float32(scale), data_range=(0.0, 2.0 * scale)
    )
    assert scaled["psnr"] == pytest.approx(plain["psnr"], rel=1e-3)
    assert scaled["ssim"] == pytest.approx(plain["ssim"], abs=1e-3)
    assert scaled["rmse"] == pytest.approx(plain["rmse"] * scale, rel=1e-3)


def test_the_t_interval_of_a_textbook_sample() -> None:
    # mean 3, standard error sqrt(2.5 / 5) = 0.70711, t(0.975, 4) = 2.77645
    interval = confidence_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.num) == (3.0, 5)
    assert interval.high == pytest.approx(3 + 2.77645 * 0.70711, abs=1e-4)
    assert interval.low == pytest.approx(3 - 2.77645 * 0.70711, abs=1e-4)


def test_an_interval_of_one_subject_or_of_infinite_values_has_no_bounds() -> None:
    one = confidence_interval([2.0])
    assert (one.mean, one.num) == (2.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(confidence_interval([1.0, math.inf]).high)
    assert confidence_interval([]).num == 0


def test_the_interval_of_a_share_by_hand() -> None:
    # Mean 0.2, standard error 0.1 / sqrt(3), t(0.975, 2) = 4.3027; logit(0.2) = -1.3863, and the
    # half width 0.24841 becomes 0.24841 / 0.16 = 1.55259: expit(-2.9389), expit(0.1663).
    interval = share_interval([0.1, 0.2, 0.3])
    assert interval.mean == pytest.approx(0.2)
    assert (interval.low, interval.high) == pytest.approx((0.0503, 0.5415), abs=1e-4)
    # Student's t of the mean itself leaves 0..1.
    assert confidence_interval([0.1, 0.2, 0.3]).low < 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_interval_of_a_share_stays_within_0_and_1(shares: list[float]) -> None:
    interval = share_interval(shares)
    assert 0 <= interval.low <= interval.mean * (1 + 1e-9)
    assert interval.mean * (1 - 1e-9) <= interval.high <= 1
    mirrored = share_interval([1 - share for share in shares])
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-6)


def test_the_interval_of_a_share_without_spread_or_subjects() -> None:
    assert share_interval([0.5, 0.5]) == confidence_interval([0.5, 0.5])
    assert share_interval([0.0, 0.0, 0.0]).high == 0
    assert share_interval([0.2, math.nan]).num == 1
    assert math.isnan(share_interval([0.2, math.nan]).low)


def test_the_summary_takes_the_interval_of_shares_and_not_of_their_difference() -> None:
    values = {"ganbert": (0.0, 0.1, 0.0), "mean_of_training": (0.9, 0.8, 0.9)}
    lines = [
        {**line(subject, method, 0.0), "top_recall": share}
        for method, shares in values.items()
        for subject, share in zip("abc", shares, strict=True)
    ]
    summary = {x["method"]: x for x in summarise(lines, ["top_recall"], ["top_recall"])}
    assert summary["ganbert"]["low"] > 0 > confidence_interval(values["ganbert"]).low
    assert summary["mean_of_training"]["high"] < 1
    assert summary[GAIN]["mean"] == pytest.approx(-0.8333, abs=1e-4)
    assert summary[GAIN]["low"] < summary[GAIN]["mean"]


def test_the_paired_difference_removes_what_subjects_share() -> None:
    interval = paired_difference([11.0, 22.0, 33.0], [10.0, 21.0, 32.0])
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_regional_means_skip_the_background() -> None:
    labels = np.array([[[0, 3, 3, 7]]])
    pet = np.array([[[[9, 1, 3, 5]]], [[[9, 2, 4, 6]]]], np.float32)
    assert regional_means(pet, labels) == {3: [2.0, 3.0], 7: [5.0, 6.0]}


def test_the_data_range_is_declared_and_not_measured() -> None:
    for tracer in TRACERS.values():
        assert declared_data_range(tracer.name, "SUVR", [99.0]) == tracer.data_range_suvr
    assert declared_data_range("FDG", "Bq/mL", [10.0, 30.0, 20.0]) == (0.0, 30.0)


def line(subject: str, method: str, psnr: float) -> dict[str, object]:
    keys = {"subject": subject, "method": method, "tracer": "FDG"}
    return keys | {"reference": "real", "mask": "fov", **dict.fromkeys(METRICS, psnr)}


def test_sessions_of_one_subject_count_once() -> None:
    ours = [line("a", "ganbert", 10), line("a", "ganbert", 14), line("b", "ganbert", 20)]
    others = [line("a", "mean_of_training", 11), line("b", "mean_of_training", 18)]
    summary = {(x["method"], x["metric"]): x for x in summarise([*ours, *others])}
    assert summary["ganbert", "psnr"]["mean"] == 16  # (12 + 20) / 2
    assert summary["ganbert", "psnr"]["num"] == 2
    assert summary[GAIN, "psnr"]["mean"] == 1.5  # (12 - 11, 20 - 18)


def test_the_summary_states_no_interval_of_two_subjects() -> None:
    for num in (2, 3):
        methods = ("ganbert", "mean_of_training")
        lines = [line(s, m, 20 + len(m) * k) for k, s in enumerate("abc"[:num]) for m in methods]
        bounds = [end for x in summarise(lines) for end in (x["low"], x["high"])]
        assert {math.isnan(end) for end in bounds} == {num < 3}


def test_the_head_mask_fills_the_skull_and_drops_what_floats() -> None:
    d, h, w = np.indices((64, 64, 64)) - 31.5
    radius = np.sqrt(d**2 + h**2 + w**2)
    mri = np.where((radius < 22) & (radius > 12), 200.0, 0.0)  # a hollow ball
    mri[2:5, 2:5, 2:5] = 200.0
    mri_grid = Grid(shape=(64, 64, 64), spacing_mm=(4.0, 4.0, 4.0))
    pet_grid = Grid(shape=(47, 38, 38), spacing_mm=(4.0, 4.0, 4.0))
    volume = Volume(mri[None].astype(np.float32), grid_affine((0, 0, 0), mri_grid), "arbitrary")
    affine = grid_affine((0, 0, 0), pet_grid)
    mask = head_mask(volume, affine, pet_grid.shape)
    d, h, w = np.indices(pet_grid.shape)
    inside = (d - 23) ** 2 + (h - 18.5) ** 2 + (w - 18.5) ** 2 < 22**2
    # Clipped by the field of view in H and W; the hole in the middle belongs to the head.
    assert mask[23, 18, 18]
    assert (mask == inside).mean() > 0.97
    with pytest.raises(DatasetError, match="head"):
        head_mask(volume, grid_affine((5000, 0, 0), pet_grid), pet_grid.shape)


@pytest.mark.parametrize(("gap", "is_head"), [(24, True), (25, False)])
def test_the_head_is_closed_over_12_mm_and_no_more(gap: int, is_head: bool) -> None:
    # Half a millimetre each: a box with a slit, deeper than wide, that is open above.
    grid = Grid(shape=(72, 48, 48), spacing_mm=(0.5, 0.5, 0.5))
    mri, first = np.zeros((1, *grid.shape), np.float32), 24
    mri[:, 4:68, 4:44, 4:44] = 200.0
    mri[:, first : first + gap, 16:] = 0.0
    affine = grid_affine((0, 0, 0), grid)
    mask = head_mask(Volume(mri, affine, "arbitrary"), affine, grid.shape)
    # In the middle of the slit, 13 mm below its mouth and 10 mm from both its ends.
    assert mask[first + 12, 18, 24] == is_head
    assert mask[10, 24, 24]
    assert not mask[first + 12, 46, 24]
