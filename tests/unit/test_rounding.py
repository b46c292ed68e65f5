"""How a gradient crosses the rounding: by hand, by finite differences, and for every option."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbert.config import DiscriminatorConfig
from ganbert.models.rounding import GRADIENTS, _segment, chord, interpolated, none, straight_through
from ganbert.models.vocabulary import VOCABULARY_SIZE, integers_to_ids, values_to_ids

EVERY = pytest.mark.parametrize("name", GRADIENTS)
# Row i holds i and i^2: slopes can be computed by hand.
IDS = torch.arange(VOCABULARY_SIZE, dtype=torch.float32)
TABLE = torch.stack((IDS, (IDS / 1000) ** 2), dim=1)


def slopes(name: str, *values: float) -> torch.Tensor:
    """Derivative of each embedding by its value: (L, E)."""
    leaf = torch.tensor([values], requires_grad=True)
    embedded = GRADIENTS[name](leaf, TABLE)
    if not embedded.requires_grad:
        return torch.zeros(len(values), 2)
    rows = [
        torch.autograd.grad(embedded[..., e].sum(), leaf, retain_graph=True)[0][0] for e in (0, 1)
    ]
    return torch.stack(rows, dim=1)


def test_names_are_those_of_the_configuration() -> None:
    annotation = DiscriminatorConfig.model_fields["gradient"].annotation
    assert set(get_args(annotation)) == set(GRADIENTS)


@EVERY
def test_every_option_agrees_at_whole_numbers(name: str) -> None:
    values = torch.tensor([[0.0, 0.499, 0.5, 3.25, 10.0, -0.25, 10.125]])
    expected = torch.nn.functional.embedding(values_to_ids(values), TABLE)
    embedded = GRADIENTS[name](values.requires_grad_(), TABLE)
    assert embedded.shape == (1, 7, 2)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, expected, atol=2e-3, rtol=1e-5)


@EVERY
def test_the_table_learns(name: str) -> None:
    table = TABLE.clone().requires_grad_()
    GRADIENTS[name](torch.tensor([[0.5, 2.0]], requires_grad=True), table).sum().backward()
    assert table.grad is not None
    assert table.grad.sum().item() == pytest.approx(4, abs=1e-3)  # 2 tokens x 2 features


def test_none_is_exactly_zero() -> None:
    assert torch.equal(slopes("none", 0.1, 5.0, -1.0, 12.0), torch.zeros(4, 2))
    assert not none(torch.tensor([[0.1]], requires_grad=True), TABLE).requires_grad


@pytest.mark.parametrize("name", ["straight_through", "interpolated"])
def test_slope_of_the_enclosing_integers_by_hand(name: str) -> None:
    # Ids rise by 1 with each 0.001, fall by 1 where negative; (2.001^2 - 2.0^2) / 0.001 = 4.001.
    by_hand = torch.tensor([[1000.0, 4.001], [-1000.0, -0.2 - 0.001]])
    torch.testing.assert_close(slopes(name, 2.0004, -0.1004), by_hand, atol=2e-2, rtol=1e-3)


@given(st.floats(-2.0, 12.0).filter(lambda v: 0.1 < (v * 1000) % 1 < 0.9))
@settings(max_examples=50, deadline=None)
def test_interpolated_is_its_own_derivative(value: float) -> None:
    step = 2e-5
    ends = torch.tensor([[value - step, value + step]], dtype=torch.float64)
    table = TABLE.double()

    def at(values: torch.Tensor) -> torch.Tensor:
        # In float64, without the function's own float32: the same formula by its definition.
        scaled = values * 1000
        low = scaled.floor()
        rows = [table[integers_to_ids(low.long() + k)] for k in (0, 1)]
        return rows[0] + (scaled - low).unsqueeze(-1) * (rows[1] - rows[0])

    low, high = at(ends)[0]
    expected = ((high - low) / (2 * step)).float()
    torch.testing.assert_close(slopes("interpolated", value)[0], expected, atol=2e-2, rtol=1e-3)


def test_chord_by_hand() -> None:
    # At 2.0: rows 1975 and 2025, (2.025^2 - 1.975^2) / 0.05 = 4. At 0.01: rows 0 and 35.
    by_hand = torch.tensor([[1000.0, 4.0], [1000.0, 0.035]])
    torch.testing.assert_close(slopes("chord", 2.0, 0.01), by_hand, atol=1e-2, rtol=1e-3)
    # Negative numbers count down: the id falls as the value rises.
    assert slopes("chord", -0.25)[0, 0].item() == pytest.approx(-1000, abs=1)
    assert slopes("chord", 10.25)[0, 0].item() == pytest.approx(1000, abs=1)


@given(st.integers(-3000, 13_000))
@settings(max_examples=300, deadline=None)
def test_segments_hold_their_number_and_cross_no_break(number: int) -> None:
    first, last = (int(end) for end in _segment(torch.tensor(number)))
    assert first <= number <= last
    ids = integers_to_ids(torch.arange(first, last + 1))
    assert bool((ids.diff().abs() == 1).all())
    # And it is the whole run: one step further is a break.
    for beyond in (first - 1, last + 1):
        inside = first if beyond < first else last
        pair = integers_to_ids(torch.tensor([beyond, inside]))
        other_side = (beyond < 0) != (inside < 0) or (beyond > 10_000) != (inside > 10_000)
        assert other_side or abs(int(pair[0] - pair[1])) != 1


@pytest.mark.parametrize("option", [straight_through, chord])
def test_what_bert_sees_is_the_rounded_row(option: object) -> None:
    values = torch.tensor([[0.12345, 9.87654, -0.3333, 11.1111]], requires_grad=True)
    assert callable(option)
    assert torch.equal(option(values, TABLE), none(values.detach(), TABLE))


@pytest.mark.parametrize("upstream", [1.0, 100.0, 1000.0])
@EVERY
def test_half_precision_survives_a_loss_scale(name: str, upstream: float) -> None:
    numbers = torch.Generator().manual_seed(0)
    table = (0.02 * torch.randn(VOCABULARY_SIZE, 768, generator=numbers)).half()
    values = torch.tensor([[0.1234, 3.4567, -0.2345, 11.2345]])
    direction = upstream * torch.randn(1, 4, 768, generator=numbers)
    pulls = []
    for dtype in (torch.float16, torch.float32):
        leaf = values.clone().requires_grad_()
        embedded = GRADIENTS[name](leaf, table.to(dtype))
        if embedded.requires_grad:
            embedded.backward(direction.to(dtype))
        pulls.append(torch.zeros_like(values) if leaf.grad is None else leaf.grad)
    half, full = pulls
    assert half.isfinite().all()
    torch.testing.assert_close(half, full, rtol=2e-2, atol=2e-2 * float(full.abs().max()))


def test_interpolated_sees_between_the_rows() -> None:
    values = torch.tensor([[0.0105]])
    assert interpolated(values, TABLE)[0, 0, 0].item() == pytest.approx(10.5, abs=1e-3)
