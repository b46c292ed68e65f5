"""What a step is made of, counted from shapes alone: arithmetic, bytes, and two floors.

Arithmetic comes from the counts that `ganbert model` prints, and is checked against PyTorch's
`FlopCounterMode` over a whole step on the meta device. Bytes are counted twice:

`least`: what no way of computing the step can avoid if activations are kept: each one that the
backward pass needs written once and read once, weights and gradients once a pass, the optimiser's
state once each way, images once a reader.
`as written`: every operation of the step reads its inputs and writes its outputs, nothing fused;
the matrices of attention, which a fused kernel never writes, are counted apart.

    python benchmarks/work.py        # floors of the full-size step on paper, by GPU
"""

import argparse
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from interruption import interruptible
from plain import DTYPES
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ganbert.config import GRIDS, NUM_FRAMES
from ganbert.model_table import expect_memory, measure_discriminator, measure_generator
from ganbert.models.bert import SEQUENCE_LENGTH
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/bare_engines.py
_NO_TRAFFIC = ("empty", "new_empty", "empty_like", "empty_strided")
# Tflop/s of 16-bit tensor cores without sparsity, and GB/s of memory, of NVIDIA's data sheets "V100
# Tensor Core GPU" (SXM2), "A100 Tensor Core GPU" (80 GB SXM), "H100 Tensor Core GPU" (SXM) and
# "H200 Tensor Core GPU" (SXM); those of the last two print rates with sparsity, twice these.
CHIPS = {"V100": (125, 900), "A100": (312, 2039), "H100": (989, 3350), "H200": (989, 4800)}
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
    least_bytes, written_bytes, attention_bytes : see above; the last two are None where they
        could not be counted
    operations : of PyTorch in a step but views, each a kernel or more that the host asks for;
        without the optimisers'
    expected_bytes : memory that `ganbert model` expects the recipe to need
    """

    convolutions: float
    products: float
    again: float
    counted: float | None
    least_bytes: float
    written_bytes: float | None
    attention_bytes: float | None
    operations: int | None
    expected_bytes: int
    remark: str = ""


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move none.

    Parameters
    ----------
    square : length of the sequence, by which the matrices of attention are known
    """

    def __init__(self, square: int = 0) -> None:
        super().__init__()
        self._square = (square, square)
        self.bytes = self.square_bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not is_view and func._schema.name.removeprefix("aten::") not in _NO_TRAFFIC:
            tensors = [t for t in tree_leaves((args, kwargs, output)) if isinstance(t, Tensor)]
            self.operations += 1
            for tensor in tensors:
                if tensor.ndim > 2 and tuple(tensor.shape[-2:]) == self._square:
                    self.square_bytes += tensor.nbytes
                else:
                    self.bytes += tensor.nbytes
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
    # A fused kernel does not keep attention's matrices, which `ganbert model` counts.
    of_bert = sum(c.kept_bytes for c in of_discriminator) - _attention_kept(discriminator, num)
    kept = sum(c.kept_bytes for c in of_generator) + 1.5 * of_bert
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
    watched = _watch_a_step(recipe, size, precision)
    return Work(
        convolutions=3 * made,
        products=4 * judged,
        again=again,
        least_bytes=least,
        expected_bytes=sum(asdict(expect_memory(recipe, *grids)).values()),
        **watched,
    )


def _attention_kept(discriminator: Any, num: int) -> int:
    """Bytes of attention's matrices among what the discriminator's step keeps, float32."""
    storages: dict[int, torch.UntypedStorage] = {}
    length = SEQUENCE_LENGTH + discriminator.bert.num_padding

    def keep(tensor: Tensor) -> Tensor:
        if tensor.ndim > 2 and tuple(tensor.shape[-2:]) == (length, length):
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    values = torch.zeros(2 * num, 512, device="meta")
    masks = discriminator.sample_masks(2 * num, torch.Generator()).to("meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = discriminator.bert(values, values, masks)
    del output
    return sum(storage.nbytes() for storage in storages.values())


def _watch_a_step(recipe: Recipe, size: str, precision: str) -> dict[str, Any]:
    """What a step on the meta device shows, by names of `Work`; without the optimisers' part."""
    try:
        from ganbert.steps import discriminator_step, generator_step
        from tests.bare_engines import bare_engines, random_micro
    except ImportError as error:  # DeepSpeed is not there
        names = ("counted", "written_bytes", "attention_bytes", "operations")
        return dict.fromkeys(names) | {"remark": f"not cross-checked: {error}"}
    from ganbert import losses

    grids, num = GRIDS[size], recipe.generator_engine["train_micro_batch_size_per_gpu"]
    engines = bare_engines(recipe, *grids, device="meta")
    for engine in (engines.generator, engines.discriminator):
        engine.module.to(DTYPES[precision])
        engine.step = lambda: None
    sequence = recipe.run.discriminator.sequence_multiple
    length = SEQUENCE_LENGTH + -SEQUENCE_LENGTH % sequence
    micro, weights = random_micro(engines, num, *grids, device="meta"), recipe.run.losses
    # A number that the meta device does not have.
    looked, losses.all_finite = losses.all_finite, lambda terms: torch.ones((), dtype=torch.bool)
    try:
        with FlopCounterMode(display=False) as flops, Traffic(length) as traffic:
            pet_fake = engines.generator(micro.batch.mri)
            discriminator_step(engines, micro.batch, pet_fake, micro.judged, weights)
            generator_step(engines, micro.batch, pet_fake, micro.made, weights, 0)
    finally:
        losses.all_finite = looked
    return {
        "counted": float(flops.get_total_flops()),
        "written_bytes": float(traffic.bytes),
        "attention_bytes": float(traffic.square_bytes),
        "operations": traffic.operations,
    }


def paper_floors(works: dict[str, Work]) -> Table:
    """Milliseconds of a step by chip, from data sheets: one column for each way to compute it."""
    table = Table(title="The full-size step on paper, 16-bit", title_justify="left")
    for heading in ("", *works):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, value: Any, digits: int) -> None:
        table.add_row(name, *(f"{value(work):,.{digits}f}" for work in works.values()))

    row("needed: generator (Tflop)", lambda w: w.convolutions / 1e12, 3)
    row("needed: BERT (Tflop)", lambda w: w.products / 1e12, 3)
    row("computed again (Tflop)", lambda w: w.again / 1e12, 3)
    row(
        "FlopCounterMode / all three",
        lambda w: w.counted / (w.convolutions + w.products + w.again),
        3,
    )
    row("bytes, the least (GB)", lambda w: w.least_bytes / 1e9, 1)
    row("bytes, as written (GB)", lambda w: w.written_bytes / 1e9, 1)
    row("... of attention, if not fused (GB)", lambda w: w.attention_bytes / 1e9, 1)
    row("operations", lambda w: w.operations, 0)
    row("memory that is expected (GiB)", lambda w: w.expected_bytes / 2**30, 2)
    for chip, (tflops, gbytes) in CHIPS.items():
        table.add_section()
        for name, of in (("needed", 0), ("and what is computed again", 1)):
            row(
                f"{chip}: arithmetic {name} (ms)",
                lambda w, of=of, rate=tflops: (
                    (w.convolutions + w.products + of * w.again) / rate / 1e9
                ),
                1,
            )
        row(f"{chip}: the least bytes (ms)", lambda w, r=gbytes: w.least_bytes / r / 1e6, 1)
        row(f"{chip}: bytes as written (ms)", lambda w, r=gbytes: w.written_bytes / r / 1e6, 1)
    return table


def main() -> None:
    """Count the recipe of the paper, with and without checkpointing, and print the floors."""
    from step import recipe_in
    from switches import SWITCHES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micro-batch", type=int, default=2)
    options = parser.parse_args()
    recipe = recipe_in("fp16", options.micro_batch)
    kept = SWITCHES["no_checkpointing"].recipe(recipe)
    works = {"as the recipe has it": recipe, "without checkpointing": kept}
    counted = {name: count_work(each, "paper", "fp16") for name, each in works.items()}
    Console(width=110).print(paper_floors(counted))


if __name__ == "__main__":
    with interruptible():
        main()
