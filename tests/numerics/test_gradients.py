"""Gradients against finite differences, and how far the adversary's reaches into the image."""

import torch
from torch import Tensor
from torch.autograd import gradcheck

from ganbert.config import GRIDS, DiscriminatorConfig
from ganbert.losses import REAL, l1, mlm, nsp
from ganbert.models.bert import IntensityBert
from ganbert.models.blocks import Resample
from ganbert.models.discriminators import BertDiscriminator
from ganbert.models.summary import signed_absmax_pool, summarise_pet
from ganbert.models.vocabulary import integers_to_ids

TINY_MRI, TINY_PET = (grid.shape for grid in GRIDS["tiny"])


def tiny_config(**settings: object) -> DiscriminatorConfig:
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32,
             "dropout": 0.0}  # fmt: skip
    return DiscriminatorConfig.model_validate(small | settings)


def random_double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_pooling() -> None:
    # Values far enough apart that a finite difference does not change who is the largest.
    order = torch.randperm(2 * 5 * 4 * 4).double().reshape(1, 2, 5, 4, 4)
    volume = (0.1 * (order - 80.25)).requires_grad_()
    assert gradcheck(lambda v: signed_absmax_pool(v, (2, 2, 2)), volume)


def test_resampling() -> None:
    resample = Resample((4, 3, 5), (3, 4, 2), (0.8, 1.0, 0.6))
    assert gradcheck(resample, random_double(1, 2, 4, 3, 5))


def test_l1() -> None:
    assert gradcheck(l1, (random_double(1, 2, 2, 2, 2), random_double(1, 2, 2, 2, 2).detach()))


def test_nsp_and_mlm() -> None:
    assert gradcheck(lambda logits: nsp(logits, REAL), random_double(3, 2))
    labels = torch.tensor([[1, 0, 6], [2, 2, 5]])
    assert gradcheck(lambda logits: mlm(logits, labels), random_double(2, 3, 7))


def line_between_rows(table: Tensor, values: Tensor) -> Tensor:
    """What straight-through pretends that the embedding is, written out in float64."""
    scaled = 1000 * values
    lower = scaled.floor()
    below, above = (table[integers_to_ids(lower.long() + step)] for step in (0, 1))
    return below + (scaled - lower)[..., None] * (above - below)


# Between two integers, and away from both: in range, negative, across a wrap, overflow.
VALUES = [0.0004, 0.4996, 1.2343, 9.9996, -0.0004, -0.1237, -0.4996, -0.5004, 10.0004, 25.6783]


def test_straight_through_is_the_slope_of_the_line_between_rows() -> None:
    bert = IntensityBert(tiny_config(gradient="straight_through"))
    table = bert.bert.get_input_embeddings().weight.detach().double()
    values = torch.tensor([VALUES], requires_grad=True)
    upstream = torch.randn(1, len(VALUES), 32)
    (gradient,) = torch.autograd.grad((bert.embed(values) * upstream).sum(), values)

    at, step = torch.tensor([VALUES], dtype=torch.float64), 1e-5
    ends = [line_between_rows(table, at + sign * step) for sign in (1, -1)]
    expected = ((ends[0] - ends[1]) / (2 * step) * upstream.double()).sum(-1)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4)


def test_slope_by_hand() -> None:
    bert = IntensityBert(tiny_config())
    with torch.no_grad():
        # Row i holds i: the slope is 1000 in range, -1000 below zero, and the jump at a wrap.
        bert.bert.get_input_embeddings().weight[:10_001] = torch.arange(10_001.0)[:, None]
    values = torch.tensor([[0.2345, -0.2345, -0.4996, 10.0004]], requires_grad=True)
    (gradient,) = torch.autograd.grad(bert.embed(values).sum() / 32, values)
    # -500 -> 0 and -499 -> 499; 10000 -> 10000 and 10001 -> 501.
    expected = torch.tensor([[1000.0, -1000.0, 499_000.0, -9_499_000.0]])
    torch.testing.assert_close(gradient, expected)


def test_table_learns_from_the_rows_that_were_read() -> None:
    # Not from the neighbours that lend the slope.
    bert = IntensityBert(tiny_config())
    table = bert.bert.get_input_embeddings().weight
    for requires_grad in (False, True):
        values = torch.tensor([[0.0102, 0.0102, -0.003]], requires_grad=requires_grad)
        (gradient,) = torch.autograd.grad(bert.embed(values).sum(), table)
        assert gradient.sum(1).nonzero().flatten().tolist() == [3, 10]
        assert gradient[:, 0][[3, 10]].tolist() == [1.0, 2.0]


def pull_on_pet(gradient: str, masked: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """Gradient of the generator's adversarial terms at its output, and that output."""
    config = tiny_config(gradient=gradient)
    discriminator = BertDiscriminator(config, *GRIDS["tiny"]).requires_grad_(False)
    mri = torch.randn(2, 1, *TINY_MRI)
    pet_fake = (4 * torch.rand(2, 2, *TINY_PET)).requires_grad_()
    pet_real = 4 * torch.rand(2, 2, *TINY_PET)
    if masked is None:
        masked = discriminator.sample_masks(2, torch.Generator().manual_seed(0))
    judgement = discriminator(mri, pet_fake, pet_real, masked)
    loss = nsp(judgement.nsp_logits, REAL) + mlm(judgement.mlm_logits, judgement.mlm_labels)
    if not loss.requires_grad:
        return None, pet_fake
    (pull,) = torch.autograd.grad(loss, pet_fake, allow_unused=True)
    return pull, pet_fake


def test_without_a_gradient_through_rounding_the_generator_feels_nothing() -> None:
    pull, _ = pull_on_pet("none")
    assert pull is None or not pull.any()


def test_straight_through_reaches_only_voxels_that_became_tokens() -> None:
    pull, pet_fake = pull_on_pet("straight_through")
    assert pull is not None
    tokens = set(summarise_pet(pet_fake.detach()).flatten().tolist())
    reached = set(pet_fake.detach()[pull != 0].tolist())
    assert reached
    assert reached <= tokens
    assert (pull.flatten(1) != 0).sum(1).max() <= 512


def test_masked_tokens_feel_nothing() -> None:
    # All of the PET but its first token.
    masked = torch.arange(515, 1026).expand(2, -1)
    pull, pet_fake = pull_on_pet("straight_through", masked)
    assert pull is not None
    first_token = summarise_pet(pet_fake.detach())[:, 0]
    for row in range(2):
        reached = pet_fake.detach()[row][pull[row] != 0]
        assert reached.tolist() == [first_token[row].item()]


def test_pull_on_the_values_is_the_gradient_of_the_judgement_along_the_line() -> None:
    """Straight through BERT as a whole: at an integer, the line and the rows are one."""
    bert = IntensityBert(tiny_config()).double().requires_grad_(False)
    table = bert.bert.get_input_embeddings().weight
    pet = torch.randint(1, 24, (1, 512)).double() / 8  # times 1000 it is an integer, exactly
    mri, masked = torch.rand(1, 512).double(), torch.tensor([[3, 900]])

    def judge(values: Tensor) -> Tensor:
        return nsp(bert(mri, values, masked).nsp_logits, REAL)

    leaf = pet.clone().requires_grad_()
    (actual,) = torch.autograd.grad(judge(leaf), leaf)
    bert.embed = lambda values: line_between_rows(table, values)  # type: ignore[method-assign]
    other = pet.clone().requires_grad_()
    (expected,) = torch.autograd.grad(judge(other), other)
    assert actual.abs().sum() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
