"""Numbers that the paper prints or that follow from it by hand (Shin et al. 2020, section 4)."""

import pytest
import torch

from ganbert.config import (
    NUM_FRAMES,
    PAPER_MRI_GRID,
    PAPER_PET_GRID,
    DiscriminatorConfig,
    LossConfig,
    RunConfig,
)
from ganbert.models.bert import SEQUENCE_LENGTH, sample_masked_positions
from ganbert.models.summary import SUMMARY_LENGTH
from ganbert.models.vocabulary import MAX_INTENSITY_ID, integers_to_ids, values_to_ids

# Values times 1000, rounded, and their ids.
INTEGERS = {
    # In range: unchanged, both ends included.
    0: 0,
    1: 1,
    499: 499,
    500: 500,
    501: 501,
    9_999: 9_999,
    10_000: 10_000,
    # "Negative values are multiplied by -1 and get the remainder dividing by 500"
    -1: 1,
    -499: 499,
    -500: 0,
    -501: 1,
    -999: 499,
    -1_000: 0,
    -10_001: 1,
    -123_456: 456,
    # "and similarly for the values that are greater than 10^4 [...] adding 500"
    10_001: 501,
    10_499: 999,
    10_500: 500,
    10_501: 501,
    12_345_678: 678,
    10**9 - 1: 999,
}

VALUES = {
    0.0: 0,
    0.4994: 499,
    0.4996: 500,
    0.5: 500,
    -0.0004: 0,
    -0.0006: 1,
    -0.4994: 499,
    -0.4996: 0,
    -0.5: 0,
    -0.5006: 1,
    9.9994: 9_999,
    9.9996: 10_000,
    10.0: 10_000,
    10.0004: 10_000,
    10.0006: 501,
    1234.5: 500,
    -1234.5: 0,
    # Exact halves in float32 (odd multiples of 1/16): to the even neighbour.
    0.0625: 62,
    0.1875: 188,
    0.3125: 312,
    -0.0625: 62,
    -0.1875: 188,
    9.9375: 9_938,
}


@pytest.mark.parametrize("integer", INTEGERS)
def test_number_rules(integer: int) -> None:
    assert integers_to_ids(torch.tensor([integer])).tolist() == [INTEGERS[integer]]


@pytest.mark.parametrize("value", VALUES)
def test_values_times_1000_rounded(value: float) -> None:
    assert values_to_ids(torch.tensor([value])).tolist() == [VALUES[value]]


def test_rules_hold_inside_one_tensor() -> None:
    ids = integers_to_ids(torch.tensor([list(INTEGERS)]))
    assert ids.tolist() == [list(INTEGERS.values())]


def test_dictionary_has_ten_thousand_words() -> None:
    assert MAX_INTENSITY_ID == 10**4


def test_sequence_is_1027_long() -> None:
    assert SUMMARY_LENGTH == 512
    assert SEQUENCE_LENGTH == 1 + 512 + 1 + 512 + 1 == 1027


def test_masked_are_5_percent_of_mri_and_25_percent_of_pet() -> None:
    config = DiscriminatorConfig()
    fractions = config.masked_fraction_mri, config.masked_fraction_pet
    assert fractions == (0.05, 0.25)
    masked = sample_masked_positions(1, *fractions, torch.Generator().manual_seed(0))
    assert masked.shape == (1, 26 + 128)


def test_bert_is_bert_base() -> None:
    config = DiscriminatorConfig()
    assert (config.num_layers, config.hidden_size, config.num_heads) == (12, 768, 12)


def test_lambdas_of_equation_1() -> None:
    config = LossConfig()
    assert (config.nsp, config.mlm, config.l1) == (20.0, 1.0, 20.0)
    assert config.max_adversarial_ratio is None


def test_image_sizes_and_the_tenth() -> None:
    assert PAPER_MRI_GRID.shape == (256, 256, 256)
    assert (NUM_FRAMES, *PAPER_PET_GRID.shape) == (2, 93, 76, 76)
    assert RunConfig(max_steps=1).intensity_ratio == 0.1
