"""Values to token ids: the paper's number rules (section 4.2).

    t = round(1000 v)                 half to even
    0 <= t <= 10^4      id = t
    t < 0               id = (-t) mod 500            so negative values alias with 0..0.499
    t > 10^4            id = (t mod 500) + 500       so overflow aliases with 0.5..0.999

The paper counts ids from 1 to 10^4; here 0 is one, too, for its own rules give 0 (t = 0, t = -500).
Ids are computed in float32 at least: float16 counts exactly only to 2048, bfloat16 to 256.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SCALE = 1000
MAX_INTENSITY_ID = 10_000
ALIAS_BAND = 500
# Negative values fill the first band of ids, overflowing ones the second.
FIRST_OWN_ID = 2 * ALIAS_BAND
CLS_ID = MAX_INTENSITY_ID + 1
SEP_ID = MAX_INTENSITY_ID + 2
MASK_ID = MAX_INTENSITY_ID + 3
PAD_ID = MAX_INTENSITY_ID + 4
NUM_IDS = PAD_ID + 1
# Tensor cores want a multiple of 128; the rows beyond the ids are never looked up or predicted.
VOCABULARY_SIZE = -(-NUM_IDS // 128) * 128


def integers_to_ids(integers: Tensor) -> Tensor:
    """Apply the paper's rules for negative and overflowing numbers.

    Parameters
    ----------
    integers : Tensor, any shape, int64: values times 1000, rounded

    Returns
    -------
    Tensor, same shape, int64 in 0..10^4

    Source: Shin et al. 2020, section 4.2.
    """
    negative = (-integers) % ALIAS_BAND
    overflow = integers % ALIAS_BAND + ALIAS_BAND
    ids = torch.where(integers < 0, negative, integers)
    return torch.where(integers > MAX_INTENSITY_ID, overflow, ids)


class BandShares(NamedTuple):
    """Shares of tokens, 0..1, that add up to 1; t = round(1000 v).

    Attributes
    ----------
    negative : t < 0
    low : 0 <= t < 1000: their ids are also those of negative or overflowing values
    in_range : 1000 <= t <= 10^4: no other value has their ids
    overflow : t > 10^4
    """

    negative: float
    low: float
    in_range: float
    overflow: float


def band_shares(values: Tensor) -> BandShares:
    """Shares of summarised values (any shape, not empty, float, no NaN) in the bands of the rules.

    >>> band_shares(torch.tensor([-0.2, 0.2, 5.0, 20.0]))
    BandShares(negative=0.25, low=0.25, in_range=0.25, overflow=0.25)

    Source: Shin et al. 2020, section 4.2.
    """
    return BandShares(*_in_bands(values.flatten()).double().mean(0).tolist())


def band_means(values: Tensor) -> Tensor:
    """The same shares for each row, left where the values are: nobody waits for the device.

    Parameters
    ----------
    values : Tensor (..., N), float, summarised values without NaN

    Returns
    -------
    Tensor (..., 4), float32, in the order of `BandShares`
    """
    return _in_bands(values).float().mean(-2)


def _in_bands(values: Tensor) -> Tensor:
    """Whether a value lies in each band: Tensor (..., 4), bool, in the order of `BandShares`."""
    scaled = torch.round(values.float() * SCALE)
    negative = scaled < 0
    overflow = scaled > MAX_INTENSITY_ID
    low = ~negative & (scaled < FIRST_OWN_ID)
    in_range = ~(negative | overflow | low)
    return torch.stack((negative, low, in_range, overflow), dim=-1)


def values_to_integers(values: Tensor) -> Tensor:
    """t = round(1000 v) of summarised values (any shape, float), half to even, as int64."""
    return torch.round(values.float() * SCALE).long()


def values_to_ids(values: Tensor) -> Tensor:
    """Token ids of summarised values (any shape, float); see the module's rules.

    >>> values_to_ids(torch.tensor([0.0, 0.5, -0.5, 9.9996, 10.001])).tolist()
    [0, 500, 0, 10000, 501]
    """
    return integers_to_ids(values_to_integers(values))
