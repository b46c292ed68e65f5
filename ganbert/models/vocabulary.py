"""Values to token ids: the paper's number rules (section 4.2).

    t = round(1000 v)                 half to even
    0 <= t <= 10^4      id = t
    t < 0               id = (-t) mod 500            so negative values alias with 0..0.499
    t > 10^4            id = (t mod 500) + 500       so overflow aliases with 0.5..0.999

Ids are computed in float32 at least: float16 counts exactly only to 2048, bfloat16 to 256.
"""

import torch
from torch import Tensor

SCALE = 1000
MAX_INTENSITY_ID = 10_000
ALIAS_BAND = 500
CLS_ID = MAX_INTENSITY_ID + 1
SEP_ID = MAX_INTENSITY_ID + 2
MASK_ID = MAX_INTENSITY_ID + 3
PAD_ID = MAX_INTENSITY_ID + 4
# Tensor cores want a multiple of 128; the rows beyond PAD_ID are never looked up.
VOCABULARY_SIZE = -(-(PAD_ID + 1) // 128) * 128


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


def values_to_ids(values: Tensor) -> Tensor:
    """Token ids of summarised values (any shape, float); see the module's rules.

    >>> values_to_ids(torch.tensor([0.0, 0.5, -0.5, 9.9996, 10.001])).tolist()
    [0, 500, 0, 10000, 501]
    """
    return integers_to_ids(torch.round(values.float() * SCALE).long())
