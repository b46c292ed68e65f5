"""What a step is made of, counted from shapes alone: arithmetic, bytes, and two floors.

Arithmetic comes from the counts that `ganbert model` prints, and is checked against PyTorch's
`FlopCounterMode` over a whole step on the meta device. Bytes are counted twice:

`least`: what no way of computing the step can avoid if activations are kept: each one that the
backward pass needs written once and read once, weights and gradients once a pass, the optimiser's
state once each way, images once a reader.
`as written`: every operation of the step reads its inputs and writes its outputs, nothing fused.
"""

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from plain import DTYPES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ganbert.config import GRIDS, NUM_FRAMES
from ganbert.model_table import expect_memory, measure_discriminator, measure_generator
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/bare_engines.py
_NO_TRAFFIC = ("empty", "new_empty", "empty_like", "empty_strided")
# Adam on float32: master weight and two moments read and written.
_ADAM_BYTES = 2 * 3 * 4


@dataclass(frozen=True)
class Work:
    """A step of one micro-batch.

    Attributes
    ----------
    convolutions, products : floating-point operations that a step needs, of the generator (nearly
        all convolutions) and of BERT (matrix products)
    again : what activation checkpointing computes a second time
    counted : by `FlopCounterMode` over a step as the recipe has it; None where it could not run
    least_bytes, written_bytes : see above; the second one None where it could not run
    expected_bytes : memory that `ganbert model` expects the recipe to need
    """

    convolutions: float
    products: float
    again: float
    counted: float | None
    least_bytes: float
    written_bytes: float | None
    expected_bytes: int
    remark: str = ""


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not is_view and func._schema.name.removeprefix("aten::") not in _NO_TRAFFIC:
            tensors = [t for t in tree_leaves((args, kwargs, output)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return output


def count_work(recipe: Recipe, size: str, precision: str) -> Work:
    """Count a step of a recipe on the grids of a size."""
    grids, num = GRIDS[size], recipe.generator_engine["train_micro_batch_size_per_gpu"]
    with torch.device("meta"):
        generator = build_generator(recipe.run.generator, *grids)
        discriminator = build_discriminator(recipe.run.discriminator, *grids)
    if discriminator is None:
        raise SystemExit("a recipe with a discriminator is needed")
    of_generator = measure_generator(generator, num)
    of_discriminator = measure_discriminator(discriminator, *grids, num)
    made, judged = (
        2 * sum(c.multiply_adds for c in costs) for costs in (of_generator, of_discriminator)
    )
    # Forward and twice that backward; the judgement of the generated half goes through frozen
    # weights, so it costs half a pass forward and half a pass backward.
    again = sum(
        passes
        for passes, engine in (
            (made, recipe.generator_engine),
            (1.5 * judged, recipe.discriminator_engine),
        )
        if "activation_checkpointing" in engine
    )
    width = DTYPES[precision].itemsize
    kept = sum(c.kept_bytes for c in of_generator) + 1.5 * sum(
        c.kept_bytes for c in of_discriminator
    )
    least = 2 * kept * width / 4
    # Weights: each pass forward and back reads them, each backward pass of their own writes a
    # gradient, which the optimiser reads before it writes the 16-bit weights.
    copies = 0 if precision == "fp32" else width
    for network, passes in ((generator, 2), (discriminator, 4)):
        parameters = sum(p.numel() for p in network.parameters())
        least += parameters * (passes * width + 2 * width + _ADAM_BYTES + copies)
    mri, pet = (math.prod(grid.shape) for grid in grids)
    # Read by generator and summary; real by summary and L1, generated besides written.
    least += 4 * num * (2 * mri + 5 * NUM_FRAMES * pet)
    counted, written, remark = _watch_a_step(recipe, size, precision)
    return Work(
        convolutions=3 * made,
        products=4 * judged,
        again=again,
        counted=counted,
        least_bytes=least,
        written_bytes=written,
        expected_bytes=sum(asdict(expect_memory(recipe, *grids)).values()),
        remark=remark,
    )


def _watch_a_step(
    recipe: Recipe, size: str, precision: str
) -> tuple[float | None, float | None, str]:
    """Operations and bytes of a step on the meta device, without the optimisers'."""
    try:
        from ganbert.steps import discriminator_step, generator_step
        from tests.bare_engines import bare_engines, random_micro
    except ImportError as error:  # DeepSpeed is not there
        return None, None, f"not cross-checked: {error}"
    from ganbert import losses

    grids, num = GRIDS[size], recipe.generator_engine["train_micro_batch_size_per_gpu"]
    engines = bare_engines(recipe, *grids, device="meta")
    for engine in (engines.generator, engines.discriminator):
        engine.module.to(DTYPES[precision])
        engine.step = lambda: None
    micro, weights = random_micro(engines, num, *grids, device="meta"), recipe.run.losses
    # A number that the meta device does not have.
    looked, losses.all_finite = losses.all_finite, lambda terms: torch.ones((), dtype=torch.bool)
    try:
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            pet_fake = engines.generator(micro.batch.mri)
            discriminator_step(engines, micro.batch, pet_fake, micro.judged, weights)
            generator_step(engines, micro.batch, pet_fake, micro.made, weights, 0)
    finally:
        losses.all_finite = looked
    return float(flops.get_total_flops()), float(traffic.bytes), ""
