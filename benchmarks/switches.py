"""What might make the step faster on a GPU, each to be switched on by itself.

A switch acts before anything is built, on the recipe, on the networks before DeepSpeed has them, or
on the engines. What each is expected to win, and why: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # names alone: what there is to switch can be said where ganbert cannot run
    from ganbert.recipe import Recipe

ENGINES = ("generator_engine", "discriminator_engine")


@dataclass(frozen=True)
class Switch:
    """One candidate; what it does not act on, it leaves alone.

    Attributes
    ----------
    what : for the table
    needs_cuda : cannot be tried on a CPU
    """

    what: str
    needs_cuda: bool = False
    start: Callable[[], None] = lambda: None
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    networks: Callable[[nn.Module, nn.Module], None] = lambda generator, discriminator: None
    engines: Callable[[Any, Tensor], None] = lambda engines, mri: None


def with_engines(recipe: Recipe, names: tuple[str, ...] = ENGINES, **settings: Any) -> Recipe:
    """The recipe with other settings of its engines; None takes a setting away."""
    changed = {
        name: {k: v for k, v in (getattr(recipe, name) | settings).items() if v is not None}
        for name in names
    }
    return recipe.model_copy(update=changed)


def _with_run(recipe: Recipe, section: str, **settings: Any) -> Recipe:
    part = getattr(recipe.run, section).model_copy(update=settings)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={section: part})})


def _without_checkpointing(*engines: str) -> Callable[[Recipe], Recipe]:
    return lambda recipe: with_engines(recipe, engines, activation_checkpointing=None)


def _compiled_adam(recipe: Recipe) -> Recipe:
    for name in ENGINES:
        optimizer = getattr(recipe, name)["optimizer"]
        params = {k: v for k, v in optimizer["params"].items() if k != "torch_adam"}
        recipe = with_engines(recipe, (name,), optimizer=optimizer | {"params": params})
    return recipe


def _micro_batch(num: int) -> Callable[[Recipe], Recipe]:
    return lambda recipe: with_engines(recipe, train_micro_batch_size_per_gpu=num)


def _half_the_top_channels(recipe: Recipe) -> Recipe:
    first, *others = recipe.run.generator.channels
    return _with_run(recipe, "generator", channels=(max(1, first // 2), *others))


def _channels_last(generator: nn.Module, _discriminator: nn.Module) -> None:
    # Its images and not its weights: DeepSpeed refuses weights in another order (it reads them as
    # bytes). cuDNN takes the order of the images.
    for layer in generator.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_pre_hook(
                lambda _, given: (given[0].contiguous(memory_format=torch.channels_last_3d),)
            )


def _look_for_kernels() -> None:
    torch.backends.cudnn.benchmark = True


def _compile_generator(generator: nn.Module, _discriminator: nn.Module) -> None:
    generator.compile(dynamic=False)


def _compile_bert(_generator: nn.Module, discriminator: nn.Module) -> None:
    for layer in discriminator.get_submodule("bert.bert.bert.encoder.layer").children():
        layer.compile(dynamic=False)


def _graph_generator(engines: Any, mri: Tensor) -> None:
    # After DeepSpeed has put the weights where they stay: a graph knows addresses.
    torch.cuda.make_graphed_callables(engines.generator.module, (mri,))


def _trust_the_losses() -> None:
    from ganbert import losses

    losses.all_finite = lambda terms: True  # type: ignore[assignment]


def _one_look_for_overflow() -> None:
    from deepspeed.runtime import utils

    def has_overflow_serial(_self: Any, params: Any) -> bool:
        bad = [utils.has_inf_or_nan(p.grad) for p in params if p.grad is not None]
        return bool(torch.stack(bad).any()) if bad else False

    # As it comes, it waits for the device once for each of 284 parameters of the paper's networks.
    utils.CheckOverflow.has_overflow_serial = has_overflow_serial


SWITCHES: dict[str, Switch] = {
    "no_checkpointing": Switch("keep all activations", recipe=_without_checkpointing(*ENGINES)),
    "no_checkpointing_bert": Switch(
        "keep BERT's activations", recipe=_without_checkpointing("discriminator_engine")
    ),
    "zero_1": Switch(
        "ZeRO 1", recipe=lambda recipe: with_engines(recipe, zero_optimization={"stage": 1})
    ),
    "channels_last_3d": Switch("generator in channels-last-3d", networks=_channels_last),
    "cudnn_benchmark": Switch(
        "let cuDNN try its kernels", needs_cuda=True, start=_look_for_kernels
    ),
    "compile_generator": Switch("torch.compile of the generator", networks=_compile_generator),
    "compile_bert": Switch("torch.compile of BERT's layers", networks=_compile_bert),
    "cuda_graph_generator": Switch(
        "CUDA graphs of the generator, both ways; no checkpointing in it",
        needs_cuda=True,
        recipe=_without_checkpointing("generator_engine"),
        engines=_graph_generator,
    ),
    "compiled_adam": Switch("DeepSpeed's FusedAdam, compiled here", recipe=_compiled_adam),
    "one_look_for_overflow": Switch(
        "DeepSpeed's look for overflows: one wait, not one for each parameter",
        start=_one_look_for_overflow,
    ),
    "trusted_losses": Switch(
        "no look at the losses: what two waits a step can cost at most", start=_trust_the_losses
    ),
    "padded_sequence": Switch(
        "sequence padded to a multiple of 64",
        recipe=lambda recipe: _with_run(recipe, "discriminator", sequence_multiple=64),
    ),
    "half_top_channels": Switch(
        "half the channels at full resolution: another network", recipe=_half_the_top_channels
    ),
    "micro_batch_4": Switch("micro-batch 4", recipe=_micro_batch(4)),
}
