"""Both engines on a GPU, in the precisions that are meant for it."""

from typing import Any

import pytest
import torch

from ganbert.recipe import Recipe
from ganbert.steps import discriminator_step, generator_step
from tests.distributed.conftest import world_of_one
from tests.distributed.test_two_engines import (
    engines_with,
    masks_for,
    random_batch,
    recipe_with,
    with_learning_rates,
)

__all__ = ["world_of_one"]
pytestmark = pytest.mark.usefixtures("world_of_one")

FP16 = {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 8}}
BF16 = {"bf16": {"enabled": True}}


def recipe_in(precision: dict[str, Any], **settings: Any) -> Recipe:
    recipe = recipe_with(gradient_accumulation_steps=1, dropout=0.1, **precision, **settings)
    return with_learning_rates(recipe, 1e-2, 1e-2)


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("precision", [FP16, BF16, {}], ids=["fp16", "bf16", "fp32"])
def test_both_networks_learn(precision: dict[str, Any], zero_stage: int) -> None:
    recipe = recipe_in(precision, zero_optimization={"stage": zero_stage})
    engines, batch = engines_with(recipe), random_batch(2)
    masks = masks_for(engines, 6)
    dtype = next(engines.generator.module.parameters()).dtype
    before = [
        [p.detach().clone() for p in engine.module.parameters()]
        for engine in (engines.generator, engines.discriminator)
    ]
    for _ in range(3):
        pet_fake = engines.generator(batch.mri)
        assert pet_fake.dtype == torch.float32
        measured = discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
        measured |= generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses, 0)
        assert all(value.is_cuda and bool(value.isfinite()) for value in measured.values())
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16}
    assert dtype == expected.get(next(iter(precision), ""), torch.float32)
    for engine, weights in zip((engines.generator, engines.discriminator), before, strict=True):
        now = list(engine.module.parameters())
        assert all(p.is_cuda and bool(p.isfinite().all()) for p in now)
        assert any(not torch.equal(p, old) for p, old in zip(now, weights, strict=True))


def test_batch_and_masks_stay_on_the_device() -> None:
    engines = engines_with(recipe_in({}))
    batch = random_batch(2)
    masks = masks_for(engines, 6)
    judgement = engines.discriminator(batch.mri, batch.pet_real, batch.pet_real, masks[:2])
    for tensor in (batch.mri, batch.pet_real, masks, *judgement):
        assert tensor.device == engines.generator.device
