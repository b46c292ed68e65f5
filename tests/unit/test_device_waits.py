"""How often a step of training waits for the device: twice, to see that its losses are numbers.

Looked at on PyTorch's meta device, which stands for a GPU here: a value that the host reads from it
is a wait, and so is a tensor that is made on the CPU and copied to it (a copy from memory that is
not pinned waits until the device is idle).
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.recipe import Recipe, load_recipe
from ganbert.steps import discriminator_step, generator_step
from tests.bare_engines import Micro, bare_engines, random_micro

RECIPE = Path(__file__).parents[1] / "data" / "recipe_tiny"
GRIDS = (TINY_MRI_GRID, TINY_PET_GRID)


def _note(by_place: Counter[str]) -> None:
    ours = [f for f in traceback.extract_stack() if f"{Path('ganbert')}/" in f.filename]
    by_place[ours[-1].name if ours else "elsewhere"] += 1


class _MadeOfNumbers(TorchFunctionMode):
    """Sees `torch.tensor(numbers, device=...)`, which the dispatcher never hears of."""

    def __init__(self, by_place: Counter[str]) -> None:
        super().__init__()
        self._by_place = by_place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if made and output.device.type != "cpu":
            _note(self._by_place)
        return output


class Waits(TorchDispatchMode):
    """Counts what the host waits for, by the function of this project that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.by_place: Counter[str] = Counter()
        self._numbers = _MadeOfNumbers(self.by_place)

    def __enter__(self) -> Self:
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            _note(self.by_place)
            return args[0].dtype is torch.bool or 1.0  # "yes, it is finite"
        output = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device != output.device:
                _note(self.by_place)
        return output


def waits_of_a_step(recipe: Recipe) -> Counter[str]:
    engines = bare_engines(recipe, *GRIDS, device="meta")
    micro = random_micro(engines, 2, *GRIDS, device="meta")
    with Waits() as waits:
        _step(recipe, engines, micro)
    return waits.by_place


def _step(recipe: Recipe, engines: Any, micro: Micro) -> None:
    pet_fake = engines.generator(micro.batch.mri)
    losses = recipe.run.losses
    discriminator_step(engines, micro.batch, pet_fake, micro.judged, losses)
    generator_step(engines, micro.batch, pet_fake, micro.made, losses, 0)


@pytest.mark.parametrize("kind", ["none", "bert", "patchgan", "bert_patchgan"])
def test_a_step_waits_only_to_see_that_its_losses_are_numbers(kind: str) -> None:
    recipe = load_recipe(RECIPE)
    settings = {"kind": kind, "patch_channels": (4, 4)}
    run = recipe.run.model_copy(
        update={"discriminator": recipe.run.discriminator.model_copy(update=settings)}
    )
    found = waits_of_a_step(recipe.model_copy(update={"run": run}))
    expected = {"generator_step": 1} | ({} if kind == "none" else {"discriminator_step": 1})
    assert found == expected


@pytest.mark.parametrize(
    "asked",
    [
        lambda device: float(torch.ones((), device=device)),
        lambda device: bool(torch.ones(2, device=device).isfinite().all()),
        lambda device: torch.tensor([0, 1], device=device),
        lambda device: torch.ones(2).to(device),
    ],
    ids=["float", "bool", "tensor of numbers", "copy"],
)
def test_a_wait_is_seen(asked: Any) -> None:
    with Waits() as waits:
        asked("meta")
    assert waits.by_place.total() == 1
