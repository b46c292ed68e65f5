"""How a gradient crosses the rounding of values to token ids: named options, one function each.

The paper does not say. Token ids have no gradient, so without an answer the adversarial terms teach
the generator nothing (docs/decisions/0002-gradient-through-rounding.md). Each option maps values
(N, L) and the embedding table (V, E) to embeddings (N, L, E); `config.DiscriminatorConfig.gradient`
names one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ganbert.models.vocabulary import (
    ALIAS_BAND,
    MAX_INTENSITY_ID,
    SCALE,
    integers_to_ids,
    values_to_ids,
)

# Half the width of the chord, ids: over 50 of them the noise of two random rows falls to a
# fiftieth, and no wave of `bert.ordinal_table` (60 ids and more) changes the sign of its slope.
_CHORD_IDS = 25


def none(values: Tensor, table: Tensor) -> Tensor:
    """Cut the gradient off; with it GANBERT is L1 training.

    Forward: the row of the value's id. Backward: exactly zero to the values.
    """
    return embedding(values_to_ids(values), table)


def _with_slope(hard: Tensor, values: Tensor, slope: Tensor) -> Tensor:
    """Value of `hard`, gradient `slope` (N, L, E) per id, 1/1000 of a value."""
    # x - x.detach() is zero and has the gradient of x. The factor 1000 stays in float32: inside
    # the sum over E it would overflow float16 under a loss scale.
    scaled = values.float() * SCALE
    return hard + (scaled - scaled.detach()).unsqueeze(-1).to(slope.dtype) * slope.detach()


def straight_through(values: Tensor, table: Tensor) -> Tensor:
    """Pretend that the rows were joined by straight lines, when going back only.

    Forward: the row of the value's id, exactly. Backward: the slope of the line between the rows of
    the two integers that enclose 1000 v, each mapped by the paper's number rules.
    """
    if not values.requires_grad:
        return none(values, table)
    lower = (values.detach().float() * SCALE).floor().long()
    below, above = (
        embedding(integers_to_ids(number), table.detach()) for number in (lower, lower + 1)
    )
    return _with_slope(none(values, table), values, above - below)


def interpolated(values: Tensor, table: Tensor) -> Tensor:
    """Join the rows by straight lines in both directions: no rounding is left.

    Forward: the mean of the rows of the two integers that enclose 1000 v, each weighted by how near
    it is. Backward: the derivative of just that, to the values and to both rows of the table.
    """
    scaled = values.float() * SCALE
    lower = scaled.detach().floor()
    below, above = (
        embedding(integers_to_ids(number), table) for number in (lower.long(), lower.long() + 1)
    )
    fraction = (scaled - lower).unsqueeze(-1).to(table.dtype)
    return below + fraction * (above - below)


def chord(values: Tensor, table: Tensor) -> Tensor:
    """Look further than one step: single rows of a table are noisy, their trend is not.

    Forward: the row of the value's id, exactly. Backward: the slope between the rows 25 integers
    below and above, moved inward where the number rules break (0, 10^4, multiples of 500 beyond
    them), so that both ends lie on the value's own side of a break.

    Source: design decision; a central difference of the embedding at a wider step.
    """
    if not values.requires_grad:
        return none(values, table)
    number = (values.detach().float() * SCALE).round().long()
    first, last = _segment(number)
    low = (number - _CHORD_IDS).clamp(min=first)
    high = (number + _CHORD_IDS).clamp(max=last)
    below, above = (embedding(integers_to_ids(end), table.detach()) for end in (low, high))
    width = (high - low).clamp(min=1).unsqueeze(-1).to(table.dtype)
    return _with_slope(none(values, table), values, (above - below) / width)


def _segment(number: Tensor) -> tuple[Tensor, Tensor]:
    """First and last integer of the run around `number` in which ids change by one a step."""
    up = number.div(ALIAS_BAND, rounding_mode="floor") * ALIAS_BAND
    first = up.clamp(min=MAX_INTENSITY_ID + 1)  # beyond 10^4: blocks of 500 that count up
    last = up + ALIAS_BAND - 1
    ordinary = (number >= 0) & (number <= MAX_INTENSITY_ID)
    first, last = first.masked_fill(ordinary, 0), last.masked_fill(ordinary, MAX_INTENSITY_ID)
    # Negative numbers are counted by their magnitude, and 0 is no negative number.
    down = (-number).div(ALIAS_BAND, rounding_mode="floor") * ALIAS_BAND
    negative = number < 0
    first = torch.where(negative, 1 - ALIAS_BAND - down, first)
    return first, torch.where(negative, (-down).clamp(max=-1), last)


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": none,
    "straight_through": straight_through,
    "interpolated": interpolated,
    "chord": chord,
}
