"""What the networks of a recipe cost, by part: parameters, multiply-adds, memory for the backward.

Both networks are built and run on PyTorch's meta device: shapes without numbers. So the paper's
sizes are counted in seconds on any machine. PyTorch itself counts: `FlopCounterMode` the
operations (convolutions, matrix products, attention), saved-tensor hooks what autograd keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ganbert.config import NUM_FRAMES, Grid
from ganbert.engine_keys import check_keys
from ganbert.models.discriminators import Discriminator, build_discriminator
from ganbert.models.generator import Generator, build_generator
from ganbert.recipe import Recipe, load_recipe

_MIB, _GIB = 2**20, 2**30
# For each parameter: weight, gradient and Adam's two moments; 16-bit engines have a float32 copy of
# the weights and, in a step, one of the gradients besides (DeepSpeed's FP16 and BF16 optimisers).
_BYTES_IN_32_BIT = 4 + 4 + 8
_BYTES_IN_16_BIT = 2 + 2 + 4 + 4 + 8
_FLOPS_PER_MULTIPLY_ADD = 2
REST = "the rest"


@dataclass(frozen=True)
class Part:
    """A line of the table: submodules that are counted together, by their names.

    Attributes
    ----------
    blocks : equal ones among them, which activation checkpointing computes again one at a time
    """

    name: str
    modules: tuple[str, ...]
    blocks: int = 1


@dataclass(frozen=True)
class Cost:
    """What a part costs in one forward pass, and what it keeps for the backward one.

    Attributes
    ----------
    shape : of the output of the part's last module; empty for `REST`
    parameters : numbers that are trained
    multiply_adds : of one forward pass
    kept_bytes, kept_checkpointed_bytes : activations that autograd holds until the backward pass,
        float32, without and with activation checkpointing; parameters are not among them.
    blocks : of the part

    What two parts share, a tensor or a parameter, counts for the first of them.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    kept_bytes: int
    kept_checkpointed_bytes: int
    blocks: int = 1


def generator_parts(generator: Generator) -> list[Part]:
    """Return the generator's parts, from the MRI down and up again to the PET."""
    levels = range(1, len(generator.skip))
    encoder = [Part(f"encode {k}", (f"down.{k - 1}", f"encode.{k - 1}")) for k in levels]
    skips = Part("skips", tuple(f"skip.{k}" for k in range(len(generator.skip))))
    decoder = [
        Part(f"decode {k}", (f"narrow.{k}", f"up.{k}", f"decode.{k}"))
        for k in reversed(range(len(generator.decode)))
    ]
    return [Part("stem", ("stem",)), *encoder, skips, *decoder, Part("head", ("head",))]


def discriminator_parts(discriminator: nn.Module) -> list[Part]:
    """Return the parts of those of BERT and PatchGAN that a discriminator has."""
    names = {name for name, _ in discriminator.named_modules()}
    prefix = "bert.bert.bert"
    num_layers = sum(
        name.startswith(f"{prefix}.encoder.layer.") and name.count(".") == 5 for name in names
    )
    layers = tuple(f"{prefix}.encoder.layer.{k}" for k in range(num_layers))
    heads = ("bert.bert.cls.predictions",)
    parts = [
        Part("embeddings", (f"{prefix}.embeddings",)),
        Part(f"{num_layers} layers", layers, num_layers),
        Part("NSP head", (f"{prefix}.pooler", "bert.bert.cls.seq_relationship")),
        Part("MLM head", heads),
        Part("PatchGAN", ("patchgan",)),
    ]
    return [part for part in parts if set(part.modules) & names]


class _Kept:
    """Bytes that autograd keeps, each storage once, by the part that was at work."""

    def __init__(self, module: nn.Module, parts: Sequence[Part]) -> None:
        own = [*module.parameters(), *module.buffers()]
        # Held, so that no address is given to another storage meanwhile.
        self._seen = {t.untyped_storage()._cdata: t.untyped_storage() for t in own}
        self._modules = {
            module.get_submodule(name): part.name for part in parts for name in part.modules
        }
        self._at_work = [REST]
        self.bytes = dict.fromkeys([*(part.name for part in parts), REST], 0)

    def keep(self, tensor: Tensor, part: str | None = None) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes[part or self._at_work[-1]] += storage.nbytes()
        return tensor

    def checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run without keeping anything but the inputs, as DeepSpeed's checkpointing does."""
        for argument in args:
            if isinstance(argument, Tensor):
                self.keep(argument, self._modules.get(function))  # type: ignore[call-overload]
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for module, part in self._modules.items():
            handles.append(module.register_forward_pre_hook(self._enter(part)))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._at_work.append(name)

    def _leave(self) -> None:
        self._at_work.pop()


def _kept_bytes(
    module: nn.Module, parts: Sequence[Part], inputs: Sequence[Tensor], *, checkpointing: bool
) -> dict[str, int]:
    kept = _Kept(module, parts)
    owners = [part for part in module.modules() if hasattr(part, "checkpoint")]
    before = [owner.checkpoint for owner in owners]
    try:
        for owner in owners if checkpointing else []:
            setattr(owner, "checkpoint", kept.checkpointed)  # noqa: B010
        with kept.watching():
            module(*inputs)
    finally:
        for owner, function in zip(owners, before, strict=True):
            setattr(owner, "checkpoint", function)  # noqa: B010
    return kept.bytes


def _multiply_adds(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-adds of one forward pass, by name of the module ("" for all of it)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    root = type(module).__name__
    return {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // _FLOPS_PER_MULTIPLY_ADD
        for name, flops in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }


def _shapes(
    module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            shapes[name] = tuple(first.shape)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return shapes


def measure(module: nn.Module, parts: Sequence[Part], inputs: Sequence[Tensor]) -> list[Cost]:
    """Count what each part of a module costs; what belongs to none is `REST`.

    Parameters
    ----------
    module, inputs : on one device; on the meta device nothing is computed
    parts : of submodules that do not contain each other

    Returns
    -------
    One cost for each part and one for the rest, which add up to those of the module.
    """
    last = [part.modules[-1] for part in parts]
    shapes = _shapes(module, last, inputs)
    plain, checkpointed = (
        _kept_bytes(module, parts, inputs, checkpointing=on) for on in (False, True)
    )
    operations = _multiply_adds(module, inputs)
    costs, counted = [], set[nn.Parameter]()
    for part, name in zip(parts, last, strict=True):
        # BERT's MLM head shares its matrix with the embeddings, which count first.
        own = {p for m in part.modules for p in module.get_submodule(m).parameters()} - counted
        counted |= own
        parameters = sum(p.numel() for p in own)
        multiply_adds = sum(operations.get(m, 0) for m in part.modules)
        kept = (plain[part.name], checkpointed[part.name])
        shape = shapes.get(name, ())
        costs.append(Cost(part.name, shape, parameters, multiply_adds, *kept, part.blocks))
    parameters = sum(p.numel() for p in module.parameters()) - sum(c.parameters for c in costs)
    multiply_adds = operations.get("", 0) - sum(c.multiply_adds for c in costs)
    return [*costs, Cost(REST, (), parameters, multiply_adds, plain[REST], checkpointed[REST])]


def measure_generator(generator: Generator, micro_batch: int) -> list[Cost]:
    """Cost of the generator on (N, 1, D, H, W), N the micro-batch; see `measure`."""
    mri = torch.zeros(micro_batch, 1, *generator.mri_shape, device="meta")
    return measure(generator, generator_parts(generator), [mri])


def measure_discriminator(
    discriminator: Discriminator, mri_grid: Grid, pet_grid: Grid, micro_batch: int
) -> list[Cost]:
    """Cost of the discriminator's step, which judges N real and N generated PETs; see `measure`."""
    mri = torch.zeros(micro_batch, 1, *mri_grid.shape, device="meta")
    pet = torch.zeros(2 * micro_batch, NUM_FRAMES, *pet_grid.shape, device="meta")
    masks = discriminator.sample_masks(2 * micro_batch, torch.Generator()).to("meta")
    inputs = [mri, pet, pet[:micro_batch], masks]
    return measure(discriminator, discriminator_parts(discriminator), inputs)


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank needs for a recipe at ZeRO 0, beside what CUDA itself takes.

    Attributes
    ----------
    states : weights, gradients and the optimisers' memory of both networks
    kept : activations that the generator's pass and the discriminator's keep, when most is kept
    again : the largest part that is computed again with activation checkpointing
    images : MRI, PET and generated PET of a micro-batch, float32
    """

    states: int
    kept: int
    again: int
    images: int

    @property
    def total(self) -> int:
        """All of it, bytes."""
        return self.states + self.kept + self.again + self.images


def expect_memory(recipe: Recipe, mri_grid: Grid, pet_grid: Grid) -> Memory:
    """Count what a rank needs, from shapes alone: an expectation, not a measurement.

    Raises
    ------
    ConfigError
        If the generator does not fit the grids.
    """
    with torch.device("meta"):
        generator = build_generator(recipe.run.generator, mri_grid, pet_grid)
        discriminator = build_discriminator(recipe.run.discriminator, mri_grid, pet_grid)
    engines = (recipe.generator_engine, recipe.discriminator_engine)
    micro_batch = engines[0]["train_micro_batch_size_per_gpu"]
    costs = [measure_generator(generator, micro_batch)]
    if discriminator is not None:
        costs.append(measure_discriminator(discriminator, mri_grid, pet_grid, micro_batch))
    # DeepSpeed has activation checkpointing once for a process.
    checkpointed = any("activation_checkpointing" in engine for engine in engines)
    states = activations = again = 0
    for engine, parts in zip(engines, costs, strict=False):
        bytes_each, share = _bytes_each(engine), 2 if _is_halved(engine) else 1
        for part in parts:
            kept = part.kept_checkpointed_bytes if checkpointed else part.kept_bytes
            states += bytes_each * part.parameters
            activations += kept // share
            again = max(again, (part.kept_bytes - kept) // part.blocks // share)
    voxels = math.prod(mri_grid.shape) + 2 * NUM_FRAMES * math.prod(pet_grid.shape)
    return Memory(states, activations, again, 4 * micro_batch * voxels)


def _is_halved(engine: Mapping[str, Any]) -> bool:
    return any(engine.get(name, {}).get("enabled") for name in ("fp16", "bf16"))


def _bytes_each(engine: Mapping[str, Any]) -> int:
    return _BYTES_IN_16_BIT if _is_halved(engine) else _BYTES_IN_32_BIT


def _size(num: int) -> str:
    return f"{num / _GIB:.2f} GiB" if num >= _GIB else f"{num / _MIB:.1f} MiB"


def _memory_lines(recipe: Recipe, memory: Memory, networks: Sequence[nn.Module]) -> list[str]:
    engines = (recipe.generator_engine, recipe.discriminator_engine)
    num, halved = engines[0]["train_micro_batch_size_per_gpu"], _is_halved(engines[0])
    states = " + ".join(
        f"{sum(p.numel() for p in network.parameters()):,} x {_bytes_each(engine)}"
        for network, engine in zip(networks, engines, strict=False)
    )
    each = "2 + 2, float32 copies 4 + 4, moments 4 + 4" if halved else "4 + 4, moments 4 + 4"
    column = "ckpt" if any("activation_checkpointing" in engine for engine in engines) else "kept"
    again = f"; {_size(memory.again)} more for the largest block that is computed again"
    return [
        f"Expected on each device, micro-batch {num}: {_size(memory.total)}, which is",
        f"{_size(memory.states)} for {states} bytes (weight, gradient {each});",
        f"{_size(memory.kept)}{', half of' if halved else ':'} MiB {column} in all of each table "
        f"with --micro-batch {num}{again if memory.again else ''};",
        f"{_size(memory.images)} for MRI, real and generated PET in float32.",
    ]


def _table(title: str, costs: Sequence[Cost]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("part")
    table.add_column("output", no_wrap=True)
    for heading in ("parameters", "G mult-adds", "MiB kept", "ckpt"):
        table.add_column(heading, justify="right", no_wrap=True)

    def figures(of: Sequence[Cost]) -> list[str]:
        return [
            f"{sum(c.parameters for c in of):,}",
            f"{sum(c.multiply_adds for c in of) / 1e9:,.2f}",
            f"{sum(c.kept_bytes for c in of) / _MIB:,.1f}",
            f"{sum(c.kept_checkpointed_bytes for c in of) / _MIB:,.1f}",
        ]

    for cost in costs:
        if any((cost.parameters, cost.multiply_adds, cost.kept_bytes)):
            table.add_row(cost.name, "x".join(map(str, cost.shape[1:])), *figures([cost]))
    table.add_section()
    table.add_row("in all", "", *figures(costs), style="bold")
    return table


def show_model(recipe_path: Path, mri_grid: Grid, pet_grid: Grid, micro_batch: int) -> None:
    """Print what the networks of a recipe cost on a pair of grids.

    Raises
    ------
    ConfigError
        If the recipe is wrong, its engines disagree, or its generator does not fit the grids.
    """
    recipe = load_recipe(recipe_path)
    check_keys(recipe)
    config = recipe.run
    with torch.device("meta"):
        generator = build_generator(config.generator, mri_grid, pet_grid)
        discriminator = build_discriminator(config.discriminator, mri_grid, pet_grid)
    console = Console()
    title = f"Generator, one forward pass of micro-batch {micro_batch}"
    console.print(_table(title, measure_generator(generator, micro_batch)))
    if discriminator is not None:
        costs = measure_discriminator(discriminator, mri_grid, pet_grid, micro_batch)
        title = f"Discriminator ({config.discriminator.kind}), {micro_batch} real and generated"
        console.print(_table(title, costs))
    console.print(
        "Output: without the batch. Mult-adds: of convolutions, matrix products and attention. "
        "MiB kept: activations for the backward pass, float32, without and (ckpt) with activation "
        "checkpointing; weights, gradients and optimiser come on top. Attention is counted as "
        "plain matrix products: a fused kernel does not keep its weights.",
        style="dim",
    )
    networks = [network for network in (generator, discriminator) if network is not None]
    memory = expect_memory(recipe, mri_grid, pet_grid)
    console.print("\n".join(_memory_lines(recipe, memory, networks)), highlight=False)
