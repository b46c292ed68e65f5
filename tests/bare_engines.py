"""Two networks behind the part of a DeepSpeed engine that `ganbert.steps` uses, and nothing more.

They run on any device, PyTorch's meta device too, where shapes are known and numbers are not: what
a step asks of the device can be watched there without one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ganbert.config import NUM_FRAMES, Grid
from ganbert.data.loader import Batch
from ganbert.engines import Engines
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import Recipe


class BareEngine:
    """A module and its optimiser; every micro-batch ends a step."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.0)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def is_gradient_accumulation_boundary(self) -> bool:
        return True

    def fp16_enabled(self) -> bool:
        return False


def _checkpointed(function: Any, *inputs: Any) -> Any:
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def bare_engines(recipe: Recipe, mri_grid: Grid, pet_grid: Grid, device: str) -> Engines:
    """The recipe's networks in float32, with activation checkpointing where the recipe has it."""
    with torch.device(device):
        built = [
            (build_generator(recipe.run.generator, mri_grid, pet_grid), recipe.generator_engine),
            (
                build_discriminator(recipe.run.discriminator, mri_grid, pet_grid),
                recipe.discriminator_engine,
            ),
        ]
    engines: list[Any] = []
    for network, config in built:
        if network is not None and "activation_checkpointing" in config:
            for part in network.modules():
                if hasattr(part, "checkpoint"):
                    part.checkpoint = _checkpointed
        engines.append(None if network is None else BareEngine(network))
    return Engines(*engines)


@dataclass(frozen=True)
class Micro:
    """A micro-batch of random images and the masks of both steps.

    Attributes
    ----------
    judged, made : (2 N, M) and (N, M), int64
    """

    batch: Batch
    judged: Tensor
    made: Tensor


def random_micro(
    engines: Engines, num: int, mri_grid: Grid, pet_grid: Grid, device: str | torch.device
) -> Micro:
    """N images in the paper's intensity regime."""
    mri = torch.randn(num, 1, *mri_grid.shape, device=device)
    pet = 9 * torch.rand(num, NUM_FRAMES, *pet_grid.shape, device=device)
    masks = engines.sample_masks(3 * num, torch.Generator().manual_seed(2)).to(device)
    judged, made = masks.tensor_split([2 * num])
    return Micro(Batch(mri=mri, pet_real=pet, rows=[0] * num), judged, made)
