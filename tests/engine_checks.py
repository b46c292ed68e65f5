"""What a device must not change in a step, as functions that a CPU and a GPU both run.

The tests of tests/distributed run them on the CPU, so that those of tests/gpu, which skip where
there is no GPU, cannot hide a mistake of their own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ganbert.recipe import Recipe
from ganbert.steps import discriminator_step, generator_step
from tests.distributed.test_two_engines import (
    DEVICE,
    engines_with,
    part_of,
    random_batch,
    recipe_with,
    weights_of,
)

NETWORKS = ("generator", "discriminator")
CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": {"partition_activations": False}}
IN_HALVES: dict[str, Any] = {"gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 2}
ZERO_1: dict[str, Any] = {"zero_optimization": {"stage": 1}}
# How far a step in 16-bit may be from one in float32: losses of the first step, and the ways that
# weights went in three, relative. bfloat16 has 8 bits, float16 has 11.
TOLERANCES = {"bf16": {"losses": 1e-2, "ways": 0.5}, "fp16": {"losses": 5e-3, "ways": 0.2}}


# Without a schedule, and linear in the gradient: Adam would blow rounding errors of tiny gradients
# up to whole steps.
def sgd(rate: float) -> dict[str, Any]:
    """Settings of an engine that learns by plain gradient descent at a fixed rate."""
    fixed = {"warmup_min_lr": rate, "warmup_max_lr": rate}
    return {
        "optimizer": {"type": "SGD", "params": {"lr": rate}},
        "scheduler": {"type": "WarmupLR", "params": fixed},
        "zero_allow_untested_optimizer": True,
    }


@dataclass(frozen=True)
class Outcome:
    """What three steps said and did.

    Attributes
    ----------
    losses : of the first step, by their names in `StepStats`
    moved : by network, how far all weights went, flat, float32
    dtype : of the weights
    """

    losses: dict[str, float]
    moved: dict[str, Tensor]
    dtype: torch.dtype


def checked_recipe(**settings: Any) -> Recipe:
    """The tiny recipe with SGD, without dropout, accumulation or checkpointing, as changed."""
    plain = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 4}
    recipe = recipe_with(**(sgd(0.01) | plain | settings))
    if settings.get("activation_checkpointing") is not None:
        return recipe
    engines = {
        f"{name}_engine": {
            k: v
            for k, v in getattr(recipe, f"{name}_engine").items()
            if k != "activation_checkpointing"
        }
        for name in NETWORKS
    }
    return recipe.model_copy(update=engines)


def three_steps(recipe: Recipe) -> Outcome:
    """Learn from four images, three times over, in micro-batches of the recipe's size."""
    engines, whole = engines_with(recipe), random_batch(4)
    masks = engines.sample_masks(12, torch.Generator().manual_seed(2)).to(DEVICE)
    real, fake, made = masks.chunk(3)
    before = {name: _flat(getattr(engines, name)) for name in NETWORKS}
    first: dict[str, float] = {}
    for number in range(3):
        for start in range(0, 4, engines.micro_batch):
            part = slice(start, start + engines.micro_batch)
            batch, judged = part_of(whole, part), torch.cat((real[part], fake[part]))
            pet_fake = engines.generator(batch.mri)
            told = discriminator_step(engines, batch, pet_fake, judged, recipe.run.losses)
            told |= generator_step(engines, batch, pet_fake, made[part], recipe.run.losses, 0)
            if number == 0:
                for name, loss in told.items():
                    if name.startswith("loss_"):
                        share = engines.micro_batch / 4
                        first[name] = first.get(name, 0.0) + share * float(loss)
    moved = {name: _flat(getattr(engines, name)) - before[name] for name in NETWORKS}
    return Outcome(first, moved, next(engines.generator.module.parameters()).dtype)


def _flat(engine: Any) -> Tensor:
    return torch.cat([weight.float().flatten() for weight in weights_of(engine).values()])


def differences(found: Outcome, reference: Outcome) -> dict[str, float]:
    """Relative differences of losses, and of the ways that weights went, by name."""
    apart = {
        name: abs(found.losses[name] - loss) / abs(loss) for name, loss in reference.losses.items()
    }
    for name, way in reference.moved.items():
        assert float(way.norm()) > 0, f"the {name} stood still"
        apart[name] = float((found.moved[name] - way).norm() / way.norm())
    return apart


def assert_alike(found: Outcome, reference: Outcome, *, losses: float, ways: float) -> None:
    """Hold the differences to a tolerance for losses and one for the ways of the weights."""
    for name, apart in differences(found, reference).items():
        allowed = ways if name in NETWORKS else losses
        assert apart <= allowed, f"{name}: {apart:.2e} apart, {allowed:.0e} allowed"
