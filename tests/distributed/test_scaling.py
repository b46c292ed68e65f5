"""benchmarks/scaling.py counts the bytes that DeepSpeed sends, in the type in which it sends."""

import importlib
from pathlib import Path
from typing import Any

import deepspeed.comm
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ganbert.config import GRIDS
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import load_recipe
from ganbert.steps import discriminator_step, generator_step

from .test_two_engines import engines_with, masks_for, random_batch, recipe_with

ROOT = Path(__file__).parents[2]
BF16 = {"bf16": {"enabled": True}}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scaling")


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize(
    "settings",
    [{}, BF16, BF16 | {"communication_data_type": "fp32"}],
    ids=["fp32", "bf16", "bf16 sent as fp32"],
)
def test_counted_bytes_are_those_that_both_engines_exchange(
    scaling: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    if settings and not get_accelerator().is_bf16_supported():
        pytest.skip("no bf16 on this machine")
    sent: list[int] = []

    def note(tensor: torch.Tensor, *_: object, **__: object) -> None:
        sent.append(tensor.numel() * tensor.element_size())

    recipe = recipe_with(gradient_accumulation_steps=1, **settings)
    engines, batch = engines_with(recipe), random_batch(2)
    masks = masks_for(engines, 6)
    monkeypatch.setattr(deepspeed.comm, "all_reduce", note)
    pet_fake = engines.generator(batch.mri)
    discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
    generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses, 0)
    expected = 0
    for engine, config in (
        (engines.generator, recipe.generator_engine),
        (engines.discriminator, recipe.discriminator_engine),
    ):
        parameters = sum(p.numel() for p in engine.module.parameters())
        counted = scaling.sent_bytes(config, parameters)
        assert counted == parameters * engine.communication_data_type.itemsize
        expected += counted
    # Besides there are norms and flags of overflow, a number each.
    assert sum(size for size in sent if size > 64) == expected


@pytest.mark.parametrize(
    ("name", "size", "num_bytes"),
    [("paper", "paper", 2), ("h100", "paper", 2), ("demo", "demo", 4)],
)
def test_recipes_send_16_bit_where_they_compute_in_it(
    scaling: Any, name: str, size: str, num_bytes: int
) -> None:
    recipe = load_recipe(ROOT / "ds_configs" / name)
    with torch.device("meta"):
        networks = (
            build_generator(recipe.run.generator, *GRIDS[size]),
            build_discriminator(recipe.run.discriminator, *GRIDS[size]),
        )
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    assert scaling.count(recipe, size).gradient_bytes == num_bytes * parameters


@pytest.mark.parametrize(
    ("config", "num_bytes"),
    [
        ({"fp16": {"enabled": False}}, 400),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}, 200),
        (BF16 | {"zero_optimization": {"stage": 1}, "communication_data_type": "fp32"}, 300),
    ],
)
def test_zero_1_sends_gradients_to_their_part_and_weights_to_all(
    scaling: Any, config: dict[str, Any], num_bytes: int
) -> None:
    assert scaling.sent_bytes(config, 100) == num_bytes
