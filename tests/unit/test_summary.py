"""Images summarised to 512 values: largest magnitude with its sign, frames in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbert.models.summary import (
    SUMMARY_LENGTH,
    signed_absmax_pool,
    summarise_mri,
    summarise_pet,
)


def test_hand_computed_cells() -> None:
    # Cells of 2 voxels along the last axis: (1, -3), (2, 1), (-4, 0), (-1, -2).
    volume = torch.tensor([1.0, -3.0, 2.0, 1.0, -4.0, 0.0, -1.0, -2.0]).reshape(1, 1, 1, 1, 8)
    assert signed_absmax_pool(volume, (1, 1, 4)).flatten().tolist() == [-3.0, 2.0, -4.0, -2.0]


def test_each_axis_has_its_own_cells() -> None:
    volume = torch.zeros(1, 1, 4, 4, 2)
    volume[0, 0, 3, 0, 1] = -7.0  # the far half of depth, the near half of height
    pooled = signed_absmax_pool(volume, (2, 2, 1))[0, 0, :, :, 0]
    assert pooled.tolist() == [[0.0, 0.0], [-7.0, 0.0]]


@pytest.mark.parametrize("order", [(2.0, -2.0), (-2.0, 2.0)])
def test_a_tie_goes_to_the_positive_value(order: tuple[float, float]) -> None:
    volume = torch.tensor(order).reshape(1, 1, 1, 1, 2)
    assert signed_absmax_pool(volume, (1, 1, 1)).item() == 2.0


def test_cells_of_uneven_size_leave_no_voxel_out() -> None:
    for position in range(11):
        volume = torch.zeros(1, 1, 1, 1, 11)
        volume[..., position] = -5.0
        assert signed_absmax_pool(volume, (1, 1, 4)).min() == -5.0


@given(st.integers(min_value=0, max_value=2**31), st.sampled_from([8, 9, 12, 13]))
@settings(max_examples=15, deadline=None)
def test_negation_negates(seed: int, size: int) -> None:
    # Continuous random values have no ties.
    volume = torch.randn(2, 1, size, 9, 8, generator=torch.Generator().manual_seed(seed))
    pooled = signed_absmax_pool(volume, (4, 8, 8))
    assert torch.equal(signed_absmax_pool(-volume, (4, 8, 8)), -pooled)


@given(st.integers(min_value=0, max_value=2**31))
@settings(max_examples=15, deadline=None)
def test_magnitude_is_that_of_plain_pooling(seed: int) -> None:
    volume = torch.randn(1, 2, 9, 8, 11, generator=torch.Generator().manual_seed(seed))
    pooled = signed_absmax_pool(volume, (4, 8, 8))
    plain = torch.nn.functional.adaptive_max_pool3d(volume.abs(), (4, 8, 8))
    assert torch.equal(pooled.abs(), plain)


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 16, 24)])
def test_gradient_reaches_one_voxel_of_each_cell(shape: tuple[int, int, int]) -> None:
    volume = torch.randn(2, 1, *shape, requires_grad=True)
    weights = torch.randn(2, 1, 8, 8, 8)
    pooled = signed_absmax_pool(volume, (8, 8, 8))
    (gradient,) = torch.autograd.grad((weights * pooled).sum(), volume)
    assert (gradient != 0).sum() == 2 * 512
    d, h, w = (n // 8 for n in shape)
    cells = gradient.reshape(2, 1, 8, d, 8, h, 8, w)
    assert torch.equal((cells != 0).sum((3, 5, 7)), torch.ones(2, 1, 8, 8, 8, dtype=torch.int64))
    # It arrives whole, and at the voxel that was chosen.
    torch.testing.assert_close(cells.sum((3, 5, 7)), weights)
    assert set(volume.detach()[gradient != 0].tolist()) == set(pooled.detach().flatten().tolist())


def test_gradient_of_a_tie_is_not_doubled() -> None:
    volume = torch.tensor([2.0, -2.0, 2.0]).reshape(1, 1, 1, 1, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(signed_absmax_pool(volume, (1, 1, 1)).sum(), volume)
    assert gradient.sum() == 1
    assert (gradient != 0).sum() == 1


def test_mri_gives_512_values() -> None:
    values = summarise_mri(torch.randn(3, 1, 16, 16, 16))
    assert values.shape == (3, SUMMARY_LENGTH)
    assert SUMMARY_LENGTH == 512


def test_mri_values_run_along_depth_first() -> None:
    mri = torch.zeros(1, 1, 16, 16, 16)
    mri[0, 0, 2:4, 4:6, 6:8] = 9.0  # cell (1, 2, 3) of 8 x 8 x 8
    assert summarise_mri(mri)[0].nonzero().flatten().tolist() == [1 * 64 + 2 * 8 + 3]


def test_first_256_values_are_those_of_the_first_frame() -> None:
    pet = torch.randn(2, 2, 12, 10, 10)
    changed = pet.clone()
    changed[:, 1] += 100.0
    before, after = summarise_pet(pet), summarise_pet(changed)
    assert before.shape == (2, SUMMARY_LENGTH)
    assert torch.equal(before[:, :256], after[:, :256])
    assert (after[:, 256:] > 50).all()


@pytest.mark.parametrize("shape", [(12, 10, 10), (93, 9, 9)])
def test_pet_is_pooled_as_if_frames_were_stacked_along_depth(shape: tuple[int, int, int]) -> None:
    pet = torch.randn(1, 2, *shape)
    stacked = torch.cat((pet[:, 0], pet[:, 1]), dim=1).unsqueeze(1)
    assert torch.equal(summarise_pet(pet), summarise_mri(stacked))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    pet = torch.randn(1, 2, 8, 8, 8).to(dtype)
    assert summarise_pet(pet).dtype == torch.float32
    assert torch.equal(summarise_pet(pet), summarise_pet(pet.float()))
    assert summarise_mri(pet[:, :1]).dtype == torch.float32
