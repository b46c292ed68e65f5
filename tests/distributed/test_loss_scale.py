"""float16 for real: overflows, the dynamic loss scale of each engine, and its floor."""

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ganbert.data.loader import Batch
from ganbert.engines import Engines
from ganbert.errors import GanbertError
from ganbert.loss_scale import backward_and_step
from ganbert.recipe import Recipe

from .test_two_engines import (
    engines_with,
    random_batch,
    recipe_with,
    weights_of,
    with_learning_rates,
)

pytestmark = [
    pytest.mark.usefixtures("world_of_one"),
    pytest.mark.skipif(
        not get_accelerator().is_fp16_supported(), reason="this device does not compute in float16"
    ),
]


def fp16_recipe(scale_power: int, zero_stage: int, min_loss_scale: float = 1.0) -> Recipe:
    """The recipe with a dynamic loss scale that begins at 2 ** scale_power."""
    fp16 = {"enabled": True, "initial_scale_power": scale_power, "hysteresis": 1}
    fp16["min_loss_scale"] = min_loss_scale
    recipe = recipe_with(fp16=fp16, zero_optimization={"stage": zero_stage})
    return with_learning_rates(recipe, 1e-3, 1e-3)


def overflowing(engines: Engines, batch: Batch) -> torch.Tensor:
    """A loss whose gradients float16 cannot hold at a scale of 2 ** 16."""
    return 1e8 * engines.generator(batch.mri).mean()


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_each_engine_lowers_its_own_loss_scale_after_an_overflow(zero_stage: int) -> None:
    recipe = fp16_recipe(16, zero_stage)
    engines, batch = engines_with(recipe), random_batch(2)
    before = weights_of(engines.generator)
    for _ in range(engines.accumulation):
        backward_and_step(engines.generator, overflowing(engines, batch), "generator")
    assert engines.generator.optimizer.loss_scale == 2**15
    assert engines.discriminator.optimizer.loss_scale == 2**16
    after = weights_of(engines.generator)
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_an_overflow_at_the_lowest_loss_scale_is_one_line(zero_stage: int) -> None:
    recipe = fp16_recipe(16, zero_stage, min_loss_scale=2.0**16)
    engines, batch = engines_with(recipe), random_batch(2)
    for _ in range(engines.accumulation - 1):
        backward_and_step(engines.generator, overflowing(engines, batch), "generator")
    last = overflowing(engines, batch)
    with pytest.raises(GanbertError, match=r"loss scale of the generator: .*lowest, 65536;"):
        backward_and_step(engines.generator, last, "generator")
