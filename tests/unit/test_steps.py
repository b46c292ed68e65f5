"""What a step hands to the discriminator, and what it makes of its answers, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ganbert import steps
from ganbert.config import LossConfig
from ganbert.data.loader import Batch
from ganbert.models.discriminators import Judgement

MRI, PET = torch.zeros(2, 1, 2, 2, 2), torch.arange(32.0).view(2, 2, 2, 2, 2)


def test_r1_disturbs_the_real_pets_by_its_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}

    def judge(_mri: Tensor, pet: Tensor, _real: Tensor, masks: Tensor) -> Judgement:
        seen.update(pet=pet, masks=masks)
        # Evidence for real: the first voxel, in the first of two logits.
        return Judgement(nsp_logits=torch.stack((pet.flatten(1)[:, 0], torch.zeros(len(pet))), 1))

    def learn(_engine: Any, loss: Tensor, _name: str) -> None:
        seen["loss"] = loss

    monkeypatch.setattr(steps, "backward_and_step", learn)
    config = LossConfig(r1=3.0, r1_sigma=0.25, nsp=2.0)
    masks = torch.tensor([[1], [2], [3], [4]])
    torch.manual_seed(5)
    named = steps.discriminator_step(
        SimpleNamespace(discriminator=judge),  # type: ignore[arg-type]
        Batch(MRI, PET, [0, 1]),
        PET + 1,
        masks,
        config,
    )
    torch.manual_seed(5)
    noise = 0.25 * torch.randn_like(PET)
    torch.testing.assert_close(seen["pet"], torch.cat((PET, PET + 1, PET + noise)))
    # The disturbed PETs are read behind the masks of the real ones.
    assert seen["masks"].flatten().tolist() == [1, 2, 3, 4, 1, 2]
    first = noise.flatten(1)[:, 0]
    assert named["loss_r1_discriminator"].item() == pytest.approx(first.square().mean().item())
    parts = 2 * named["loss_nsp_discriminator"] + 3 * named["loss_r1_discriminator"]
    assert seen["loss"].item() == pytest.approx(parts.item())


def test_r1_is_off_and_its_noise_a_tenth_unless_a_recipe_says_so() -> None:
    assert (LossConfig().r1, LossConfig().r1_sigma) == (0.0, 0.1)
