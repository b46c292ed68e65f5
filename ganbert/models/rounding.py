"""How a gradient crosses the rounding of values to token ids: named options, one function each.

The paper does not say. Token ids have no gradient, so without an answer the adversarial terms teach
the generator nothing (docs/decisions/0002-gradient-through-rounding.md). Each option maps values
(N, L) and the embedding table (V, E) to embeddings (N, L, E); `config.DiscriminatorConfig.gradient`
names one.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import embedding

from ganbert.models.vocabulary import (
    ALIAS_BAND,
    MAX_INTENSITY_ID,
    SCALE,
    integers_to_ids,
    values_to_ids,
)

# Half the width of the chord, ids: over 100 of them the noise of two random rows falls to a
# hundredth. Of `bert.ordinal_table` it loses the waves of 60 to 100 ids. Not measured.
_CHORD_IDS = 50


def none(values: Tensor, table: Tensor) -> Tensor:
    """Cut the gradient off; with it GANBERT is L1 training.

    Forward: the row of the value's id. Backward: exactly zero to the values.
    """
    return embedding(values_to_ids(values), table)


def _with_slope(hard: Tensor, values: Tensor, slope: Tensor) -> Tensor:
    """Value of `hard`, gradient `slope` (N, L, E) per unit of `values`."""
    # x - x.detach() is zero and has the gradient of x.
    line = (values - values.detach()).unsqueeze(-1).to(slope.dtype) * slope.detach()
    return hard + line


def straight_through(values: Tensor, table: Tensor) -> Tensor:
    """Pretend that the rows were joined by straight lines, when going back only.

    Forward: the row of the value's id, exactly. Backward: the slope of the line between the rows of
    the two integers that enclose 1000 v, each mapped by the paper's number rules.
    """
    lower = (values.detach().float() * SCALE).floor().long()
    below, above = (
        embedding(integers_to_ids(number), table.detach()) for number in (lower, lower + 1)
    )
    return _with_slope(none(values, table), values, SCALE * (above - below))


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

    Forward: the row of the value's id, exactly. Backward: the slope between the rows 50 integers
    below and above, moved inward where the number rules break (0, 10^4, multiples of 500 beyond
    them), so that both ends lie on the value's own side of a break.

    Source: design decision; a central difference of the embedding at a wider step.
    """
    number = (values.detach().float() * SCALE).round().long()
    first, last = _segment(number)
    low = (number - _CHORD_IDS).clamp(min=first)
    high = (number + _CHORD_IDS).clamp(max=last)
    below, above = (embedding(integers_to_ids(end), table.detach()) for end in (low, high))
    width = (high - low).clamp(min=1).unsqueeze(-1).to(table.dtype)
    return _with_slope(none(values, table), values, SCALE * (above - below) / width)


def _segment(number: Tensor) -> tuple[Tensor, Tensor]:
    """First and last integer of the run around `number` in which ids change by one a step."""
    # Negative numbers count down from their multiple of 500, those beyond 10^4 count up.
    block = number.div(ALIAS_BAND, rounding_mode="floor") * ALIAS_BAND
    block_down = -((-number).div(ALIAS_BAND, rounding_mode="floor") * ALIAS_BAND)
    first, last = number.new_zeros(()), number.new_full((), MAX_INTENSITY_ID)
    negative, beyond = number < 0, number > MAX_INTENSITY_ID
    low = first.where(~negative & ~beyond, (block_down - ALIAS_BAND + 1).where(negative, block))
    high = last.where(
        ~negative & ~beyond, block_down.clamp(max=-1).where(negative, block + ALIAS_BAND - 1)
    )
    # 10^4 itself is the last of the ordinary ids.
    return low.maximum(first + MAX_INTENSITY_ID + 1).where(beyond, low), high


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": none,
    "straight_through": straight_through,
    "interpolated": interpolated,
    "chord": chord,
}
