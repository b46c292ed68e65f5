"""Every recipe builds both of its engines, full size included."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from ganbert.config import GRIDS
from ganbert.engines import build_engines
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*/run.yaml"))


def _for_this_machine(recipe: Recipe) -> Recipe:
    """The recipe with what a CPU has: float32, and PyTorch's Adam instead of the compiled one."""
    if torch.cuda.is_available():
        return recipe

    def adapted(config: dict[str, Any]) -> dict[str, Any]:
        config = copy.deepcopy(config)
        config["optimizer"]["params"]["torch_adam"] = True
        return {key: value for key, value in config.items() if key not in ("fp16", "bf16")}

    engines = ("generator_engine", "discriminator_engine")
    return recipe.model_copy(update={name: adapted(getattr(recipe, name)) for name in engines})


@pytest.mark.slow
@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_both_engines_are_built(file: Path) -> None:
    recipe = load_recipe(file)
    grids = GRIDS["paper" if len(recipe.run.generator.channels) == 5 else "demo"]
    engines = build_engines(
        build_generator(recipe.run.generator, *grids),
        build_discriminator(recipe.run.discriminator, *grids),
        _for_this_machine(recipe),
        recipe.run.max_steps,
    )
    assert engines.micro_batch == recipe.generator_engine["train_micro_batch_size_per_gpu"]
    assert engines.accumulation == recipe.generator_engine["gradient_accumulation_steps"]
    assert (engines.discriminator is None) == (recipe.run.discriminator.kind == "none")
    for engine in engines.by_name.values():
        assert engine.zero_optimization_stage() == 0
        assert engine.get_lr()[0] <= engine.optimizer.defaults["lr"]
