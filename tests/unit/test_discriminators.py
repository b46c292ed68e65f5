"""What holds for every discriminator of the registry, and for BERT as one."""

import pytest
import torch
from torch import Tensor

from ganbert.config import GRIDS, DiscriminatorConfig
from ganbert.losses import REAL, judged
from ganbert.models.discriminators import (
    DISCRIMINATORS,
    Discriminator,
    Judgement,
    build_discriminator,
)
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import values_to_ids

TINY_MRI, TINY_PET = (grid.shape for grid in GRIDS["tiny"])
EVERY = pytest.mark.parametrize("kind", DISCRIMINATORS)
FIRST_MRI, FIRST_PET = 1, 514


def tiny(kind: str = "bert", **settings: object) -> Discriminator:
    small = {"kind": kind, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
             "intermediate_size": 32, "dropout": 0.0, "patch_channels": [8, 8]}  # fmt: skip
    built = build_discriminator(
        DiscriminatorConfig.model_validate(small | settings), *GRIDS["tiny"]
    )
    assert built is not None
    return built


def images(num_rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An MRI, a generated PET and the real PET."""
    pets = 4 * torch.rand(2, num_rows, 2, *TINY_PET)
    return torch.randn(num_rows, 1, *TINY_MRI), pets[0], pets[1]


def masks(discriminator: Discriminator, num_rows: int) -> Tensor:
    return discriminator.sample_masks(num_rows, torch.Generator().manual_seed(0))


def same(one: Judgement, other: Judgement) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is None:
            continue
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_dropout_can_be_off_where_the_generators_gradient_passes() -> None:
    for everywhere in (True, False):
        discriminator = tiny(dropout=0.5, dropout_for_generator=everywhere, value_noise=0.0)
        mri, pet_fake, pet_real = images()
        masked = masks(discriminator, 2)

        def drops(pet: Tensor, these: tuple[Tensor, Tensor, Tensor] = (mri, pet_real, masked),
                  judge: Discriminator = discriminator) -> bool:  # fmt: skip
            one, other = (judge(these[0], pet, these[1], these[2]).nsp_logits for _ in range(2))
            return not torch.equal(one, other)

        assert drops(pet_fake), "the discriminator's own lesson always drops units"
        assert drops(pet_fake.clone().requires_grad_()) == everywhere
        assert drops(pet_fake), "and does so again after the generator's"
        discriminator.eval()
        assert not drops(pet_fake)


def test_registry_names_are_those_of_the_configuration() -> None:
    for kind in DISCRIMINATORS:
        assert DiscriminatorConfig.model_validate({"kind": kind}).kind == kind


@EVERY
def test_shapes(kind: str) -> None:
    discriminator = tiny(kind)
    judgement = discriminator(*images(), masks(discriminator, 2))
    assert judgement.share_real().shape == (2,)
    assert any(t is not None for t in (judgement.nsp_logits, judgement.patch_logits))
    if judgement.nsp_logits is not None:
        assert judgement.nsp_logits.shape == (2, 2)
        assert judgement.mlm_labels.shape == judgement.mlm_logits.shape[:2]
        assert judgement.mlm_labels.max() < judgement.mlm_logits.shape[2]
        assert judgement.nsp_logits.dtype == judgement.mlm_logits.dtype == torch.float32
        assert judgement.mlm_labels.dtype == torch.int64
    if judgement.patch_logits is not None:
        assert judgement.patch_logits.shape[:2] == (2, 1)
        assert judgement.patch_logits.dtype == torch.float32


@EVERY
def test_blocks_are_judged_like_one_after_the_other(kind: str) -> None:
    discriminator = tiny(kind)
    mri, pet_fake, pet_real = images()
    positions = masks(discriminator, 4)
    with torch.no_grad():
        together = discriminator(mri, torch.cat((pet_real, pet_fake)), pet_real, positions)
        on_real = discriminator(mri, pet_real, pet_real, positions[:2])
        on_fake = discriminator(mri, pet_fake, pet_real, positions[2:])
    same(together.rows(slice(0, 2)), on_real)
    same(together.rows(slice(2, 4)), on_fake)


@EVERY
def test_frozen_parameters_get_no_gradient_but_the_image_does(kind: str) -> None:
    discriminator = tiny(kind).requires_grad_(False)
    mri, pet_fake, pet_real = images()
    pet_fake.requires_grad_()
    judgement = discriminator(mri, pet_fake, pet_real, masks(discriminator, 2))
    sum(judged(judgement, REAL).values()).backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert pet_fake.grad is not None
    assert pet_fake.grad.isfinite().all()
    assert (pet_fake.grad.flatten(1).norm(dim=1) > 0).all()


@EVERY
def test_permuting_the_subjects_permutes_the_judgements(kind: str) -> None:
    discriminator, order = tiny(kind), torch.tensor([2, 0, 1])
    *pictures, positions = *images(3), masks(discriminator, 3)
    with torch.no_grad():
        straight = discriminator(*pictures, positions)
        permuted = discriminator(*(p[order] for p in pictures), positions[order])
    same(straight.rows(order), permuted)


def expected_labels(mri: Tensor, pet_real: Tensor, positions: Tensor) -> list[list[int]]:
    """Ids of the real images, looked up one by one."""
    mri_ids = values_to_ids(summarise_mri(mri)).tolist()
    pet_ids = values_to_ids(summarise_pet(pet_real)).tolist()
    return [
        [
            pet_ids[row][p - FIRST_PET] if p >= FIRST_PET else mri_ids[row][p - FIRST_MRI]
            for p in line
        ]
        for row, line in enumerate(positions.tolist())
    ]


def test_labels_are_those_of_the_real_pet_whichever_is_judged() -> None:
    discriminator = tiny()
    mri, pet_fake, pet_real = images()
    positions = masks(discriminator, 4)
    pet = torch.cat((pet_real, pet_fake))
    labels = discriminator(mri, pet, pet_real, positions).mlm_labels.tolist()
    assert labels[:2] == expected_labels(mri, pet_real, positions[:2])
    assert labels[2:] == expected_labels(mri, pet_real, positions[2:])
    assert labels[2:] != expected_labels(mri, pet_fake, positions[2:])


def test_real_pet_is_only_the_answer_never_seen() -> None:
    discriminator = tiny()
    mri, pet_fake, pet_real = images()
    positions = masks(discriminator, 2)
    one = discriminator(mri, pet_fake, pet_real, positions)
    other = discriminator(mri, pet_fake, pet_real + 1.0, positions)
    assert torch.equal(one.nsp_logits, other.nsp_logits)
    assert torch.equal(one.mlm_logits, other.mlm_logits)
    assert not torch.equal(one.mlm_labels, other.mlm_labels)


def test_masked_shares_come_from_the_configuration() -> None:
    discriminator = tiny(masked_fraction_mri=0.5, masked_fraction_pet=0.125)
    positions = masks(discriminator, 3)
    assert positions.shape == (3, 256 + 64)
    assert ((positions >= FIRST_PET).sum(1) == 64).all()


def test_none_is_no_discriminator() -> None:
    assert build_discriminator(DiscriminatorConfig(kind="none"), *GRIDS["tiny"]) is None


@pytest.mark.parametrize("size", GRIDS)
def test_patches_of_every_size(size: str) -> None:
    mri_grid, pet_grid = GRIDS[size]
    config = DiscriminatorConfig(kind="patchgan", patch_channels=(4, 8, 8))
    with torch.device("meta"):
        discriminator = build_discriminator(config, mri_grid, pet_grid)
        assert discriminator is not None
        mri = torch.zeros(1, 1, *mri_grid.shape)
        pet = torch.zeros(1, 2, *pet_grid.shape)
        patches = discriminator(mri, pet, pet, torch.zeros(1, 0)).patch_logits
    # By hand: two halvings (round down), then twice one voxel less, once for small (it ends
    # at 5x3x3), never for tiny (3x2x2).
    by_hand = {"paper": (21, 17, 17), "demo": (9, 7, 7), "small": (5, 3, 3), "tiny": (3, 2, 2)}
    assert patches.shape[2:] == by_hand[size]


def test_patch_sees_34_voxels() -> None:
    mri_grid, pet_grid = GRIDS["paper"]
    config = DiscriminatorConfig(kind="patchgan", patch_channels=(4, 4, 4))
    discriminator = build_discriminator(config, mri_grid, pet_grid)
    assert discriminator is not None
    for part in discriminator.modules():
        if isinstance(part, torch.nn.GroupNorm):  # it looks at the whole image
            part.forward = lambda features: features
    pet = torch.randn(1, 2, *pet_grid.shape, requires_grad=True)
    mri = torch.randn(1, 1, *mri_grid.shape)
    logits = discriminator(mri, pet, pet, torch.zeros(1, 0)).patch_logits
    (pull,) = torch.autograd.grad(logits[0, 0, 10, 8, 8], pet)
    seen = pull.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [34, 34, 34]


def test_patchgan_is_conditional_and_sees_both_frames() -> None:
    discriminator = tiny("patchgan")
    mri, pet, _ = images()
    logits = discriminator(mri, pet, pet, masks(discriminator, 2)).patch_logits
    for other_mri, other_pet in (
        (mri + 1, pet),
        (mri, pet + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)),
    ):
        other = discriminator(other_mri, other_pet, pet, masks(discriminator, 2)).patch_logits
        assert not torch.allclose(other, logits)


def test_share_real_counts_by_hand() -> None:
    of_bert = Judgement(nsp_logits=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert of_bert.share_real().tolist() == [1.0, 0.0]
    of_patches = Judgement(patch_logits=torch.tensor([1.0, -1.0, 2.0, 3.0]).view(1, 1, 1, 2, 2))
    assert of_patches.share_real().tolist() == [0.75]
    with pytest.raises(ValueError, match="got neither"):
        Judgement().share_real()


def test_noise_on_the_values_only_while_training() -> None:
    discriminator = tiny(value_noise=0.5)
    mri, pet, _ = images()
    positions = masks(discriminator, 2)
    torch.manual_seed(0)
    first, second = (discriminator(mri, pet, pet, positions) for _ in range(2))
    assert not torch.equal(first.nsp_logits, second.nsp_logits)
    assert torch.equal(first.mlm_labels, second.mlm_labels), "what is asked for has no noise"
    discriminator.eval()
    first, second = (discriminator(mri, pet, pet, positions) for _ in range(2))
    assert torch.equal(first.nsp_logits, second.nsp_logits)


def test_spectral_norm_bounds_every_convolution() -> None:
    discriminator = tiny("patchgan", spectral_norm=True)
    for _ in range(50):  # power iteration, one step a forward pass
        judgement = discriminator(*images(), masks(discriminator, 2))
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv3d)]
    assert len(convolutions) == 3
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), ord=2)
        assert largest.item() == pytest.approx(1.0, abs=0.05)
    judgement.patch_logits.sum().backward()
    assert all(p.grad is not None for p in discriminator.parameters())
