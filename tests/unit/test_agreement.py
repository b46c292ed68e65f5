"""Agreement against values worked out by hand, and what must hold for any data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbert.agreement import (
    IMAGE_FIGURES,
    agreement_lines,
    bland_altman,
    concordance,
    image_agreement,
    intensity_distance,
    paired_bootstrap,
    pearson,
    top_recall,
)

FAKE, REAL = (1.0, 2.0, 3.0, 5.0), (1.0, 2.5, 3.0, 4.0)
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...] = (2, 5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2, shape).astype(np.float32)


@settings(deadline=None)
@given(SEEDS, st.floats(-4, 4))
def test_a_shift_moves_the_distribution_by_itself(seed: int, shift: float) -> None:
    pet = noise(seed)
    assert intensity_distance(pet + np.float32(shift), pet) == pytest.approx(abs(shift), abs=1e-5)


def test_the_distance_does_not_see_where_a_voxel_lies() -> None:
    pet = noise(0)
    assert intensity_distance(pet[:, ::-1], pet) == pytest.approx(0, abs=1e-7)


def test_the_distance_by_hand_and_within_a_mask() -> None:
    real = np.array([0, 1, 3, 9], np.float32).reshape(1, 1, 1, 4)
    fake = np.array([5, 6, 8, 9], np.float32).reshape(1, 1, 1, 4)
    assert intensity_distance(fake, real) == pytest.approx(15 / 4)
    mask = np.array([[[False, False, True, True]]])
    assert intensity_distance(fake, real, mask) == pytest.approx(5 / 2)


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


def test_recall_by_hand() -> None:
    real = row(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert top_recall(row(9, 1, 2, 3, 4, 5, 6, 7, 0, 8), real, 0.2) == 0.5
    assert top_recall(-real, real, 0.2) == 0
    # One place for the 9, one that three voxels tie for, one of which is the 8.
    assert top_recall(row(0, 0, 0, 0, 0, 0, 5, 5, 5, 9), real, 0.2) == pytest.approx(4 / 6)


@settings(deadline=None)
@given(SEEDS, st.floats(0.001, 0.999), st.integers(2, 500))
def test_an_image_recalls_itself_also_with_ties(seed: int, share: float, levels: int) -> None:
    pet = np.floor(noise(seed) * levels)
    recall = top_recall(pet, pet, share)
    everything_is_high = np.quantile(pet, 1 - share, method="lower") <= pet.min()
    assert recall == 1 or (everything_is_high and math.isnan(recall))


@settings(deadline=None)
@given(SEEDS, st.floats(0.01, 0.9))
def test_a_constant_image_recalls_no_more_than_chance(seed: int, share: float) -> None:
    pet = noise(seed)
    recall = top_recall(np.zeros_like(pet), pet, share)
    assert recall == pytest.approx(share, abs=2 / pet.size)


def test_a_constant_reference_has_nothing_to_recall() -> None:
    assert math.isnan(top_recall(noise(0), np.ones((2, 5, 6, 7), np.float32)))


def test_the_named_figures_are_those_functions() -> None:
    figures = image_agreement(noise(0), noise(1))
    assert tuple(figures) == IMAGE_FIGURES
    assert figures["top_recall"] == top_recall(noise(0), noise(1))


@pytest.mark.parametrize("function", [intensity_distance, top_recall])
def test_images_of_two_shapes_or_an_empty_mask_are_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="one shape"):
        function(noise(0), noise(0)[:1])
    with pytest.raises(ValueError, match="empty"):
        function(noise(0), noise(1), mask=np.zeros((5, 6, 7), bool))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        top_recall(noise(0), noise(1), share)


def test_limits_of_agreement_by_hand() -> None:
    # Differences 1, 2, 3, 4, 5: mean 3, SD sqrt(2.5) = 1.58114, t(0.975, 4) = 2.77645.
    limits = bland_altman((11, 12, 13, 14, 15), (10, 10, 10, 10, 10))
    assert limits.num == 5
    assert limits.bias.value == 3
    assert limits.lower.value == pytest.approx(3 - 1.96 * 1.58114, abs=1e-4)
    assert limits.upper.value == pytest.approx(3 + 1.96 * 1.58114, abs=1e-4)
    # 2.77645 * 1.58114 / sqrt(5) = 1.96325; with sqrt(1/5 + 1.96^2 / 8) = 0.82475: 3.62059.
    assert limits.bias.high - 3 == pytest.approx(1.96325, abs=1e-4)
    assert limits.upper.high - limits.upper.value == pytest.approx(3.62059, abs=1e-3)
    assert limits.lower.value - limits.lower.low == pytest.approx(3.62059, abs=1e-3)


def test_limits_of_too_few_are_unknown() -> None:
    one = bland_altman((2.0,), (1.0,))
    assert (one.bias.value, one.num) == (1.0, 1)
    assert math.isnan(one.bias.low)
    assert math.isnan(one.upper.value)
    assert math.isnan(bland_altman((), ()).bias.value)


def test_pearson_by_hand() -> None:
    # Sums about the means 2.75 and 2.625: xy 6.125, xx 8.75, yy 4.6875.
    result = pearson(FAKE, REAL)
    r = 6.125 / math.sqrt(8.75 * 4.6875)
    assert result.value == pytest.approx(r)
    assert result.low == pytest.approx(math.tanh(math.atanh(r) - 1.959964))  # sqrt(n - 3) = 1
    assert result.high == pytest.approx(math.tanh(math.atanh(r) + 1.959964))


def test_concordance_by_hand() -> None:
    # Over n - 1 = 3: covariance 2.041667, variances 2.916667 and 1.5625, means differ by 0.125.
    result = concordance(FAKE, REAL)
    value = 2 * 2.0416667 / (2.9166667 + 1.5625 + 0.015625)
    assert result.value == pytest.approx(value, abs=1e-6)
    # r^2 = 0.914667, u^2 = 0.125^2 / sqrt(2.916667 * 1.5625) = 0.0073193. Terms of Lin's variance
    # over n - 2 = 2: (0.44068 + 0.03442 - 0.00065) / 2 = 0.23722; atanh(value) = 1.51884.
    assert result.low == pytest.approx(math.tanh(1.51884 - 1.96 * math.sqrt(0.23722)), abs=1e-3)
    assert result.high == pytest.approx(math.tanh(1.51884 + 1.96 * math.sqrt(0.23722)), abs=1e-3)
    assert result.low < value < result.high < 1


# Whole numbers: differences far below the spread would be lost in the last bit of the sums.
SUBJECTS = st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=4, max_size=20)


@given(SUBJECTS)
def test_concordance_is_one_only_for_equals_and_never_above_pearson(
    pairs: list[tuple[int, int]],
) -> None:
    fake, real = zip(*pairs, strict=True)
    lin, correlation = concordance(fake, real), pearson(fake, real)
    if len(set(fake)) == 1 or len(set(real)) == 1:
        assert math.isnan(lin.value)
        assert math.isnan(correlation.value)
        return
    assert abs(lin.value) <= abs(correlation.value) + 1e-9
    assert (lin.value > 1 - 1e-9) == (fake == real)
    assert concordance(real, real).value == pytest.approx(1)
    assert concordance(real, fake).value == pytest.approx(lin.value)


@pytest.mark.parametrize("function", [pearson, concordance])
def test_correlations_of_too_few_are_unknown(function: object) -> None:
    assert callable(function)
    assert math.isnan(function((1, 2), (1, 2)).value)
    three = function((1, 2, 4), (1, 3, 4))
    assert 0 < three.value < 1
    assert math.isnan(three.low)
    with pytest.raises(ValueError, match="as many"):
        function((1, 2), (1, 2, 3))


def test_the_bootstrap_is_seeded_and_surrounds_the_mean() -> None:
    first, second = noise(0, (30,)), noise(1, (30,))
    result = paired_bootstrap(first, second, num=999)
    assert result == paired_bootstrap(first, second, num=999)
    assert result != paired_bootstrap(first, second, num=999, seed=1)
    assert result.value == pytest.approx(float((first - second).mean()), abs=1e-6)
    error = float((first - second).std(ddof=1)) / math.sqrt(30)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=20))
def test_the_bootstrap_does_not_leave_the_range_of_the_differences(
    percents: list[tuple[int, int]],
) -> None:
    pairs = [(a / 100, b / 100) for a, b in percents]
    differences = [a - b for a, b in pairs]
    result = paired_bootstrap(*zip(*pairs, strict=True), num=99)
    if math.isfinite(result.low):
        assert min(differences) - 1e-9 <= result.low <= result.high <= max(differences) + 1e-9


def test_the_bootstrap_of_one_difference_or_one_subject() -> None:
    equal = paired_bootstrap((3.0, 4.0, 5.0), (1.0, 2.0, 3.0))
    assert (equal.value, equal.low, equal.high) == (2, 2, 2)
    assert math.isnan(paired_bootstrap((3.0,), (1.0,)).low)
    assert math.isnan(paired_bootstrap((), ()).value)


def line(subject: str, fake: float, real: float, **changes: object) -> dict[str, object]:
    keys = {"tracer": "FDG", "reference": "real", "method": "ganbert", "region": 1,
            "name": "pons", "frame": 0}  # fmt: skip
    return {"subject": subject, **keys, "mean_fake": fake, "mean_real": real} | changes


def test_lines_average_sessions_and_keep_regions_apart() -> None:
    lines = [line(name, fake, real) for name, fake, real in zip("abcd", FAKE, REAL, strict=True)]
    lines[0] |= {"mean_fake": 0.5}
    lines += [line("a", 1.5, 1.0), line("a", 7.0, 5.0, region=2)]
    first, second = agreement_lines(lines)
    assert (first["region"], first["num"]) == (1, 4)
    assert first["bias"] == pytest.approx(0.125)
    assert first["pearson"] == pytest.approx(pearson(FAKE, REAL).value)
    assert first["concordance_low"] == pytest.approx(concordance(FAKE, REAL).low)
    assert (second["region"], second["num"], second["bias"]) == (2, 1, 2.0)
    assert math.isnan(second["upper_limit"])


def test_a_line_without_a_value_leaves_its_subject_out() -> None:
    lines = [line(name, fake, real) for name, fake, real in zip("abcd", FAKE, REAL, strict=True)]
    whole = agreement_lines(lines)[0]
    assert whole["num"] == 4
    gap = [*lines, line("e", math.nan, 3.0), line("f", 3.0, math.nan)]
    assert agreement_lines(gap) == [whole]
    nothing = agreement_lines([line("a", math.nan, 3.0)])[0]
    assert nothing["num"] == 0
    assert math.isnan(nothing["bias"])


def test_two_subjects_have_a_bias_and_nothing_around_it() -> None:
    lines = [line(name, fake, real) for name, fake, real in zip("abc", FAKE, REAL, strict=False)]
    (two,), (three,) = agreement_lines(lines[:2]), agreement_lines(lines)
    assert (two["bias"], three["num"]) == (-0.25, 3)
    around = [name for name in two if name.endswith(("_low", "_high", "_limit"))]
    assert all(math.isnan(two[name]) for name in around)
    # Differences 0, -0.5, 0: mean -1/6, SD 0.288675; 1.96 of them below.
    assert three["lower_limit"] == pytest.approx(-1 / 6 - 1.96 * 0.288675, abs=1e-5)
    assert three["bias_low"] == pytest.approx(-1 / 6 - 4.30265 * 0.288675 / 3**0.5, abs=1e-4)


def test_groups_and_values_may_be_others() -> None:
    lines = [
        {"subject": name, "measure": "suvr", "burden_fake": fake, "burden_real": real}
        for name, fake, real in zip("abcd", FAKE, REAL, strict=True)
    ]
    (found,) = agreement_lines(lines, keys=("measure",), value="burden")
    assert (found["measure"], found["num"]) == ("suvr", 4)
    assert found["pearson"] == pytest.approx(pearson(FAKE, REAL).value)


def test_a_subject_without_a_value_does_not_hide_the_others() -> None:
    whole = paired_bootstrap([1.0, 2.0, 4.0], [0.5, 1.0, 2.0])
    assert paired_bootstrap([1.0, 2.0, math.nan, 4.0], [0.5, 1.0, 9.0, 2.0]) == whole
