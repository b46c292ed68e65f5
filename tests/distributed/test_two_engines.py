"""Both engines in one process: who gets a gradient, and does accumulation add up."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID, Recipe, load_recipe
from ganbert.data.loader import Batch
from ganbert.engines import Engines, build_engines, init_world, leave_world
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.train import discriminator_step, generator_step

from .conftest import RECIPE, free_port

WEIGHTS = {"nsp": 20.0, "mlm": 1.0, "l1": 20.0}


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """A process group of one, as the launcher would have set it up."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    init_world()
    yield
    leave_world()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def recipe_with(**engine_settings: Any) -> Recipe:
    recipe = load_recipe(Path(RECIPE))
    without_dropout = recipe.run.discriminator.model_copy(update={"dropout": 0.0})
    return recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update={"discriminator": without_dropout}),
            "generator_engine": recipe.generator_engine | engine_settings,
            "discriminator_engine": recipe.discriminator_engine | engine_settings,
        }
    )


def engines_with(recipe: Recipe) -> Engines:
    torch.manual_seed(0)
    generator = build_generator(recipe.run.generator, TINY_MRI_GRID, TINY_PET_GRID)
    discriminator = build_discriminator(recipe.run.discriminator)
    return build_engines(generator, discriminator, recipe, max_steps=4)


def random_batch(num: int) -> Batch:
    numbers = torch.Generator().manual_seed(1)
    mri = torch.randn(num, 1, *TINY_MRI_GRID.shape, generator=numbers)
    pet_real = 3 * torch.rand(num, 2, *TINY_PET_GRID.shape, generator=numbers)
    ones = torch.ones(num)
    return Batch(mri=mri, pet_real=pet_real, rows=[0] * num, mri_mean=ones, mri_std=ones)


def part_of(batch: Batch, part: slice) -> Batch:
    return replace(batch, mri=batch.mri[part], pet_real=batch.pet_real[part])


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def has_gradient(engine: Any) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in engine.module.parameters())


def masks_for(engines: Engines, num: int) -> torch.Tensor:
    return engines.discriminator.module.sample_masks(num, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_each_step_moves_its_own_network_alone(zero_stage: int) -> None:
    recipe = recipe_with(gradient_accumulation_steps=1, zero_optimization={"stage": zero_stage})
    engines, batch = engines_with(recipe), random_batch(2)
    masks = masks_for(engines, 6)
    # The first two steps of DeepSpeed's warm-up have a learning rate of 0; the third moves both.
    for _ in range(3):
        generator, bert = weights_of(engines.generator), weights_of(engines.discriminator)
        pet_fake = engines.generator(batch.mri)
        discriminator_step(engines, batch, pet_fake, masks[:4], WEIGHTS)
        assert not has_gradient(engines.generator)
        same = weights_of(engines.generator)
        assert all(torch.equal(same[name], generator[name]) for name in generator)
        moved = weights_of(engines.discriminator)
        generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses)
        assert not has_gradient(engines.discriminator)
        after = weights_of(engines.discriminator)
        assert all(torch.equal(after[name], moved[name]) for name in after)
    assert any(not torch.equal(after[name], bert[name]) for name in bert)
    now = weights_of(engines.generator)
    assert any(not torch.equal(now[name], generator[name]) for name in generator)
    assert all(p.requires_grad for p in engines.discriminator.module.parameters())


def _train_on(batches: list[Batch], masks: list[torch.Tensor], recipe: Recipe) -> Engines:
    engines = engines_with(recipe)
    for _ in range(3):
        for batch, mask in zip(batches, masks, strict=True):
            num = len(batch.mri)
            pet_fake = engines.generator(batch.mri)
            discriminator_step(engines, batch, pet_fake, mask[: 2 * num], WEIGHTS)
            generator_step(engines, batch, pet_fake, mask[2 * num :], recipe.run.losses)
    return engines


def test_two_micro_batches_of_two_are_one_batch_of_four() -> None:
    whole = random_batch(4)
    halves = [part_of(whole, slice(0, 2)), part_of(whole, slice(2, 4))]
    # Plain SGD: Adam would blow rounding errors of tiny gradients up to whole steps.
    sgd = {"optimizer": {"type": "SGD", "params": {"lr": 0.01}}}
    sgd |= {
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.01, "warmup_max_lr": 0.01}}
    }
    once = recipe_with(gradient_accumulation_steps=1, train_micro_batch_size_per_gpu=4, **sgd)
    twice = recipe_with(gradient_accumulation_steps=2, train_micro_batch_size_per_gpu=2, **sgd)
    mask = masks_for(engines_with(once), 12)
    parts = [
        torch.cat([mask[k : k + 2], mask[k + 4 : k + 6], mask[k + 8 : k + 10]]) for k in (0, 2)
    ]
    untrained = weights_of(engines_with(once).generator)
    one = _train_on([whole], [mask], once)
    two = _train_on(halves, parts, twice)
    moved = weights_of(one.generator)
    assert all(not torch.equal(moved[name], untrained[name]) for name in untrained)
    for first, second in zip(
        (one.generator, one.discriminator), (two.generator, two.discriminator), strict=True
    ):
        for name, weight in weights_of(first).items():
            torch.testing.assert_close(weights_of(second)[name], weight, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_changes_memory_and_nothing_else() -> None:
    batch, kept = random_batch(2), recipe_with(gradient_accumulation_steps=1)
    without = kept.model_copy(
        update={
            name: {k: v for k, v in getattr(kept, name).items() if k != "activation_checkpointing"}
            for name in ("generator_engine", "discriminator_engine")
        }
    )
    mask = masks_for(engines_with(kept), 6)
    on, off = (_train_on([batch], [mask], recipe) for recipe in (kept, without))
    for name, weight in weights_of(on.generator).items():
        assert torch.equal(weights_of(off.generator)[name], weight), name
