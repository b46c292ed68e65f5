"""What holds for every discriminator of the registry, and for BERT as one."""

import pytest
import torch
from torch import Tensor

from ganbert.config import GRIDS, DiscriminatorConfig
from ganbert.models.discriminators import (
    DISCRIMINATORS,
    BertDiscriminator,
    Judgement,
    build_discriminator,
)
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import values_to_ids

TINY_MRI, TINY_PET = (grid.shape for grid in GRIDS["tiny"])
EVERY = pytest.mark.parametrize("kind", DISCRIMINATORS)
FIRST_MRI, FIRST_PET = 1, 514


def tiny(kind: str = "bert", **settings: object) -> BertDiscriminator:
    small = {"kind": kind, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
             "intermediate_size": 32, "dropout": 0.0}  # fmt: skip
    return build_discriminator(DiscriminatorConfig.model_validate(small | settings))


def images(num_rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An MRI, a generated PET and the real PET."""
    pets = 4 * torch.rand(2, num_rows, 2, *TINY_PET)
    return torch.randn(num_rows, 1, *TINY_MRI), pets[0], pets[1]


def masks(discriminator: BertDiscriminator, num_rows: int) -> Tensor:
    return discriminator.sample_masks(num_rows, torch.Generator().manual_seed(0))


def same(one: Judgement, other: Judgement) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_registry_names_are_those_of_the_configuration() -> None:
    for kind in DISCRIMINATORS:
        assert DiscriminatorConfig.model_validate({"kind": kind}).kind == kind


@EVERY
def test_shapes(kind: str) -> None:
    discriminator = tiny(kind)
    judgement = discriminator(*images(), masks(discriminator, 2))
    assert judgement.nsp_logits.shape == (2, 2)
    assert judgement.mlm_labels.shape == judgement.mlm_logits.shape[:2]
    assert judgement.mlm_labels.max() < judgement.mlm_logits.shape[2]
    assert judgement.nsp_logits.dtype == judgement.mlm_logits.dtype == torch.float32
    assert judgement.mlm_labels.dtype == torch.int64


@EVERY
def test_blocks_are_judged_like_one_after_the_other(kind: str) -> None:
    discriminator = tiny(kind)
    mri, pet_fake, pet_real = images()
    positions = masks(discriminator, 4)
    with torch.no_grad():
        together = discriminator(mri, torch.cat((pet_real, pet_fake)), pet_real, positions)
        on_real = discriminator(mri, pet_real, pet_real, positions[:2])
        on_fake = discriminator(mri, pet_fake, pet_real, positions[2:])
    same(Judgement(*(t[:2] for t in together)), on_real)
    same(Judgement(*(t[2:] for t in together)), on_fake)


@EVERY
def test_frozen_parameters_get_no_gradient_but_the_image_does(kind: str) -> None:
    discriminator = tiny(kind).requires_grad_(False)
    mri, pet_fake, pet_real = images()
    pet_fake.requires_grad_()
    judgement = discriminator(mri, pet_fake, pet_real, masks(discriminator, 2))
    torch.nn.functional.cross_entropy(judgement.nsp_logits, torch.zeros(2).long()).backward()
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
    same(Judgement(*(t[order] for t in straight)), permuted)


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
