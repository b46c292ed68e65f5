"""Token ids: always in the vocabulary, computed in float32, special tokens beyond them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbert.models.vocabulary import (
    ALIAS_BAND,
    CLS_ID,
    FIRST_OWN_ID,
    MASK_ID,
    MAX_INTENSITY_ID,
    PAD_ID,
    SCALE,
    SEP_ID,
    VOCABULARY_SIZE,
    band_means,
    band_shares,
    integers_to_ids,
    values_to_ids,
    values_to_integers,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
INTEGERS = st.integers(min_value=-(2**62), max_value=2**62)


@given(st.lists(FLOATS, min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_every_finite_value_has_an_intensity_id(values: list[float]) -> None:
    ids = values_to_ids(torch.tensor(values))
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() <= MAX_INTENSITY_ID


@given(st.lists(INTEGERS, min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_integers_follow_the_three_rules(integers: list[int]) -> None:
    def rule(t: int) -> int:
        if t < 0:
            return -t % ALIAS_BAND
        return t if t <= MAX_INTENSITY_ID else t % ALIAS_BAND + ALIAS_BAND

    assert integers_to_ids(torch.tensor(integers)).tolist() == [rule(t) for t in integers]


@given(st.integers(min_value=0, max_value=MAX_INTENSITY_ID))
@settings(max_examples=50, deadline=None)
def test_ids_in_range_lose_at_most_half_a_thousandth(number: int) -> None:
    value = number / SCALE
    assert values_to_ids(torch.tensor([value])).item() == number
    for shifted in (value + 0.0004, max(value - 0.0004, 0.0)):
        if shifted * SCALE <= MAX_INTENSITY_ID:
            assert abs(values_to_ids(torch.tensor([shifted])).item() - shifted * SCALE) <= 0.51


def test_keeps_the_shape() -> None:
    assert values_to_ids(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


# Multiplied in its own type, 2.049 in float16 would land on 2048 and 3.015625 in bfloat16 on a
# multiple of 16.
@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [(2.048828125, torch.float16, 2049), (3.015625, torch.bfloat16, 3016)],
)
def test_low_precision_is_upcast_before_it_is_scaled(
    value: float, dtype: torch.dtype, expected: int
) -> None:
    stored = torch.tensor([value], dtype=dtype)
    assert stored.item() == value
    assert values_to_ids(stored).tolist() == [expected]
    assert values_to_ids(stored).tolist() != torch.round(stored * SCALE).long().tolist()


def test_float16_overflow_does_not_reach_the_ids() -> None:
    # 100 * 1000 is infinite in float16; 100000 mod 500 + 500 = 500.
    assert values_to_ids(torch.tensor([100.0], dtype=torch.float16)).tolist() == [500]


def test_special_tokens_stand_beyond_the_intensities() -> None:
    special = [CLS_ID, SEP_ID, MASK_ID, PAD_ID]
    assert len(set(special)) == 4
    assert min(special) > MAX_INTENSITY_ID
    assert max(special) < VOCABULARY_SIZE


def test_size_suits_tensor_cores() -> None:
    assert VOCABULARY_SIZE % 128 == 0
    assert VOCABULARY_SIZE - PAD_ID <= 128


@pytest.mark.parametrize(
    ("value", "band"),
    [
        (-20.0, "negative"),
        (-0.0006, "negative"),
        (-0.0004, "low"),  # rounds to 0
        (0.0, "low"),
        (0.499, "low"),
        (0.5, "low"),
        (0.9994, "low"),
        (0.9996, "in_range"),
        (1.0, "in_range"),
        (10.0004, "in_range"),
        (10.0006, "overflow"),
        (1e30, "overflow"),
    ],
)
def test_bands_end_where_the_rules_do(value: float, band: str) -> None:
    shares = band_shares(torch.tensor([value]))._asdict()
    assert shares == {name: float(name == band) for name in shares}


def test_halves_round_to_even() -> None:
    # Exactly representable halves: 0.0625 x 1000 = 62.5 and 0.1875 x 1000 = 187.5.
    values = torch.tensor([0.0005, 0.0015, -0.0005, -0.0015, 0.0625, 0.1875])
    assert values_to_integers(values).tolist() == [0, 2, 0, -2, 62, 188]
    assert band_shares(values).negative == 1 / 6


def test_band_means_are_the_shares_of_each_row() -> None:
    values = torch.linspace(-2.0, 12.0, 512).repeat(2, 1) * torch.tensor([[1.0], [0.1]])
    for row, means in zip(values, band_means(values), strict=True):
        assert means.tolist() == pytest.approx(list(band_shares(row)), abs=1e-6)


def test_band_means_wait_for_no_device() -> None:
    # A meta tensor has no values: whoever asks for one on the host gets an error.
    assert band_means(torch.empty(3, 512, device="meta")).shape == (3, 4)
    with pytest.raises((NotImplementedError, RuntimeError)):
        band_shares(torch.empty(512, device="meta"))


@given(st.lists(FLOATS, min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_every_value_is_in_one_band(values: list[float]) -> None:
    shares = band_shares(torch.tensor(values))
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= 0.0


@given(st.lists(st.integers(-20_000, 30_000), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_bands_agree_with_the_ids(numbers: list[int]) -> None:
    values = torch.tensor(numbers) / SCALE
    assert values_to_integers(values).tolist() == numbers
    own = (values_to_ids(values) >= FIRST_OWN_ID).double().mean().item()
    assert band_shares(values).in_range == pytest.approx(own)
