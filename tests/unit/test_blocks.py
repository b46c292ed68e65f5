"""Resampling between concentric grids against hand-computed rows and torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample, interpolate

from ganbert.models.blocks import (
    Resample,
    ResidualBlock,
    Shape,
    call_directly,
    group_norm,
    interpolation_matrix,
)

SIZES = st.integers(min_value=1, max_value=40)


@pytest.mark.parametrize(("size_in", "size_out"), [(8, 5), (5, 8), (7, 7), (1, 4), (4, 1), (2, 9)])
def test_same_extent_is_torchs_linear_interpolation(size_in: int, size_out: int) -> None:
    signal = torch.randn(1, 1, size_in)
    expected = interpolate(signal, size=size_out, mode="linear", align_corners=False)[0, 0]
    actual = interpolation_matrix(size_in, size_out, 1.0) @ signal[0, 0]
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_same_grid_is_the_identity() -> None:
    assert torch.equal(interpolation_matrix(6, 6, 1.0), torch.eye(6))


def test_hand_computed_crop_on_the_grid() -> None:
    # Half the extent in half the voxels: the two middle ones, untouched.
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert torch.equal(interpolation_matrix(4, 2, 0.5), expected)


def test_hand_computed_crop_between_voxels() -> None:
    # 4 voxels, centres 0..3, middle 1.5. Half the extent in 4 voxels: 0.75, 1.25, 1.75, 2.25.
    expected = [[0.25, 0.75, 0, 0], [0, 0.75, 0.25, 0], [0, 0.25, 0.75, 0], [0, 0, 0.75, 0.25]]
    torch.testing.assert_close(interpolation_matrix(4, 4, 0.5), torch.tensor(expected))


def test_what_lies_outside_takes_the_edge() -> None:
    # Twice the extent: the outer two voxels look beyond the two there are.
    expected = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    torch.testing.assert_close(interpolation_matrix(2, 4, 2.0), torch.tensor(expected))


@given(SIZES, SIZES, st.floats(min_value=0.1, max_value=3.0))
@settings(max_examples=60, deadline=None)
def test_rows_are_weights(size_in: int, size_out: int, ratio: float) -> None:
    matrix = interpolation_matrix(size_in, size_out, ratio)
    assert matrix.shape == (size_out, size_in)
    assert matrix.dtype == torch.float32
    assert matrix.min() >= 0
    assert ((matrix > 0).sum(1) <= 2).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size_out), atol=1e-6, rtol=0)


@given(st.integers(min_value=2, max_value=40), SIZES, st.floats(min_value=0.1, max_value=3.0))
@settings(max_examples=60, deadline=None)
def test_a_ramp_stays_a_ramp_inside(size_in: int, size_out: int, ratio: float) -> None:
    # Coordinates measured from the common centre, in units of the input's extent.
    coordinate_in = (torch.arange(size_in) + 0.5) / size_in - 0.5
    coordinate_out = ((torch.arange(size_out) + 0.5) / size_out - 0.5) * ratio
    edge = 0.5 - 0.5 / size_in
    expected = coordinate_out.clamp(-edge, edge)
    actual = interpolation_matrix(size_in, size_out, ratio) @ coordinate_in
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@given(SIZES, SIZES, st.floats(min_value=0.1, max_value=3.0))
@settings(max_examples=30, deadline=None)
def test_mirrored_input_gives_mirrored_output(size_in: int, size_out: int, ratio: float) -> None:
    matrix = interpolation_matrix(size_in, size_out, ratio)
    torch.testing.assert_close(matrix, matrix.flip(0, 1), atol=1e-5, rtol=0)


def sample_concentric(features: torch.Tensor, shape_out: Shape, ratio: tuple[float, ...]):
    """The same geometry by `grid_sample`, whose coordinates run from edge to edge of the input."""
    axes = [(2 * torch.arange(n) + 1) / n - 1 for n in shape_out]
    d, h, w = torch.meshgrid(*(a * r for a, r in zip(axes, ratio, strict=True)), indexing="ij")
    grid = torch.stack((w, h, d), dim=-1).expand(len(features), -1, -1, -1, -1)
    return grid_sample(features, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize(
    ("shape_in", "shape_out", "ratio"),
    [
        ((8, 7, 6), (5, 4, 3), (0.7, 0.6, 0.5)),
        ((4, 5, 6), (9, 8, 7), (1.0, 1.0, 1.0)),
        ((6, 6, 6), (3, 4, 5), (1.3, 0.9, 0.4)),
    ],
)
def test_resample_is_grid_sample_of_the_same_geometry(
    shape_in: Shape, shape_out: Shape, ratio: tuple[float, ...]
) -> None:
    features = torch.randn(2, 3, *shape_in, requires_grad=True)
    expected = sample_concentric(features, shape_out, ratio)
    actual = Resample(shape_in, shape_out, ratio)(features)
    assert actual.shape == (2, 3, *shape_out)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(actual)
    gradients = [torch.autograd.grad((out * upstream).sum(), features)[0] for out in
                 (actual, expected)]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_resampling_has_nothing_to_learn_or_to_save() -> None:
    resample = Resample((4, 4, 4), (2, 3, 4), (1.0, 1.0, 1.0))
    assert not list(resample.parameters())
    assert not resample.state_dict()


def test_resample_keeps_the_precision_of_its_input() -> None:
    resample = Resample((4, 4, 4), (3, 3, 3), (0.8, 0.8, 0.8))
    assert resample(torch.ones(1, 1, 4, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (4, 1), (8, 2), (16, 4), (32, 8), (256, 8), (12, 2)]
)
def test_groups_have_at_least_four_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(("narrow", "wide"), [(4, 4), (4, 8), (8, 4)])
def test_block_keeps_the_spatial_shape(narrow: int, wide: int) -> None:
    block = ResidualBlock(narrow, wide)
    assert block(torch.randn(2, narrow, 3, 4, 5)).shape == (2, wide, 3, 4, 5)


def test_block_treats_each_volume_by_itself() -> None:
    block, features = ResidualBlock(4, 8), torch.randn(3, 4, 3, 4, 5)
    alone = torch.cat([block(one[None]) for one in features])
    torch.testing.assert_close(block(features), alone, atol=1e-5, rtol=1e-4)


def test_call_directly_passes_arguments_on() -> None:
    assert call_directly(divmod, 7, 3) == (2, 1)
