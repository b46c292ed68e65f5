"""A step on a GPU is the step: in 16-bit, checkpointed, in parts, sharded; and it fits 16 GB."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ganbert import losses
from ganbert.config import GRIDS, TINY_MRI_GRID, TINY_PET_GRID
from ganbert.engines import build_engines
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import load_recipe
from ganbert.steps import discriminator_step, generator_step
from tests.bare_engines import bare_engines, random_micro
from tests.distributed.conftest import world_of_one
from tests.engine_checks import (
    CHECKPOINTED,
    IN_HALVES,
    TOLERANCES,
    ZERO_1,
    assert_alike,
    checked_recipe,
    three_steps,
)

__all__ = ["world_of_one"]
pytestmark = pytest.mark.usefixtures("world_of_one")

PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 8}},
}
# What a V100 of 16 GB holds beside what CUDA itself takes.
V100_BYTES = 15 * 2**30


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep TF32, 11 bits like float16, out of what is called float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_16_bit_stays_near_fp32(precision: str) -> None:
    found = three_steps(checked_recipe(**PRECISIONS[precision]))
    assert found.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert_alike(found, three_steps(checked_recipe()), **TOLERANCES[precision])


@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
@pytest.mark.parametrize(
    "settings", [CHECKPOINTED, IN_HALVES, ZERO_1], ids=["checkpointing", "accumulation", "zero_1"]
)
def test_what_must_not_change_a_step_does_not(settings: dict[str, Any], precision: str) -> None:
    kind = PRECISIONS.get(precision, {})
    found, reference = (
        three_steps(checked_recipe(**kind, **more)) for more in (settings, {})
    )  # Added up in another order, and in 16-bit rounded at other places.
    allowed = {"losses": 1e-2, "ways": 1e-2} if precision == "fp32" else TOLERANCES[precision]
    assert_alike(found, reference, **allowed)


def test_nothing_in_a_step_waits_for_the_gpu(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(repository / "tests" / "data" / "recipe_tiny")
    grids = (TINY_MRI_GRID, TINY_PET_GRID)
    engines = bare_engines(recipe, *grids, device="cuda")
    micro = random_micro(engines, 2, *grids, device="cuda")
    # The only two looks at the device (tests/unit/test_device_waits.py).
    monkeypatch.setattr(losses, "all_finite", lambda terms: True)
    for mode in (0, "error"):  # handles and buffers are made in the first
        torch.cuda.set_sync_debug_mode(mode)
        try:
            pet_fake = engines.generator(micro.batch.mri)
            weights = recipe.run.losses
            discriminator_step(engines, micro.batch, pet_fake, micro.judged, weights)
            generator_step(engines, micro.batch, pet_fake, micro.made, weights, 0)
        finally:
            torch.cuda.set_sync_debug_mode(0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_full_size_step_fits_16_gb(precision: str, repository: Path) -> None:
    recipe, grids = load_recipe(repository / "ds_configs" / "paper"), GRIDS["paper"]
    adam = {"type": "Adam", "params": {"lr": 1e-4, "torch_adam": True, "adam_w_mode": False}}
    changed = {"fp16": None, **PRECISIONS[precision], "optimizer": adam}
    configs = {
        f"{name}_engine": {
            k: v for k, v in (getattr(recipe, f"{name}_engine") | changed).items() if v is not None
        }
        for name in ("generator", "discriminator")
    }
    recipe = recipe.model_copy(update=configs)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engines = build_engines(
        build_generator(recipe.run.generator, *grids),
        build_discriminator(recipe.run.discriminator, *grids),
        recipe,
        max_steps=4,
    )
    assert engines.micro_batch == 2
    micro = random_micro(engines, 2, *grids, device="cuda")
    for _ in range(2 * engines.accumulation):
        pet_fake = engines.generator(micro.batch.mri)
        told = discriminator_step(engines, micro.batch, pet_fake, micro.judged, recipe.run.losses)
        told |= generator_step(engines, micro.batch, pet_fake, micro.made, recipe.run.losses, 0)
    assert all(bool(value.isfinite()) for value in told.values())
    assert torch.cuda.max_memory_allocated() < V100_BYTES
    assert torch.cuda.max_memory_reserved() < V100_BYTES
