"""Time and peak memory of one training step, beside a plain PyTorch version of the same job.

    python benchmarks/step.py --size demo --steps 3
    python benchmarks/step.py --size paper --steps 1 --variants ganbert

`ganbert`: the project's own step (two DeepSpeed engines, activation checkpointing, one generator
forward for both steps, real and generated PET in one BERT pass, vocabulary head at the masked
positions). `plain`: MONAI's UNet with the same channels on the MRI's grid, interpolated to the
PET's, and Hugging Face's BertForPreTraining with logits at all positions, real and generated one
after the other, Adam, no checkpointing, dropout as BERT has it. `plain_fused`: the same without
dropout of the attention weights, as the project has it, so that the fused kernel can be used. All:
BERT-base, fp32, random images, the paper's weights.

Each repetition of a variant is a process of its own, alternating, so that peak memory is its own
and noise of the machine falls on both. The first step of a process is not timed.
"""

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from interruption import interruptible
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from ganbert.config import GRIDS, NUM_FRAMES, Grid
from ganbert.data.loader import Batch
from ganbert.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("generator forward", "discriminator step", "generator step")
Step = Callable[["Clock"], None]


class Clock:
    """Seconds by part, one list entry a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part."""
        started = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - started)


def cpu_recipe() -> Recipe:
    """Return the paper's recipe in fp32, at micro-batch 1, with what a CPU has of Adam."""
    recipe = load_recipe(ROOT / "ds_configs" / "paper")
    engines = {}
    for name in ("generator_engine", "discriminator_engine"):
        config = {k: v for k, v in getattr(recipe, name).items() if k != "fp16"}
        config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        config["optimizer"] = {
            "type": "Adam",
            "params": {"lr": 1e-4, "torch_adam": True, "adam_w_mode": False},
        }
        engines[name] = config
    return recipe.model_copy(update=engines)


def random_batch(mri_grid: Grid, pet_grid: Grid) -> Batch:
    """One MRI and its PET, in the paper's intensity regime."""
    mri = torch.randn(1, 1, *mri_grid.shape)
    return Batch(mri=mri, pet_real=9 * torch.rand(1, NUM_FRAMES, *pet_grid.shape), rows=[0])


def build_ganbert(mri_grid: Grid, pet_grid: Grid) -> Step:
    """Build the project's own networks and engines."""
    from ganbert.engines import build_engines, init_world
    from ganbert.models.discriminators import build_discriminator
    from ganbert.models.generator import build_generator
    from ganbert.steps import discriminator_step, generator_step

    recipe = cpu_recipe()
    init_world()
    engines = build_engines(
        build_generator(recipe.run.generator, mri_grid, pet_grid),
        build_discriminator(recipe.run.discriminator, mri_grid, pet_grid),
        recipe,
        max_steps=100,
    )
    batch, weights = random_batch(mri_grid, pet_grid), recipe.run.losses

    def step(clock: Clock) -> None:
        judged, made = engines.sample_masks(3, torch.Generator()).tensor_split([2])
        with clock.part("generator forward"):
            pet_fake = engines.generator(batch.mri)
        with clock.part("discriminator step"):
            discriminator_step(engines, batch, pet_fake, judged, weights)
        with clock.part("generator step"):
            generator_step(engines, batch, pet_fake, made, weights, step=0)

    return step


class PlainBert(torch.nn.Module):
    """Hugging Face's BERT over both images, as one would write it first."""

    def __init__(self, attention_dropout: float) -> None:
        super().__init__()
        from transformers import BertConfig, BertForPreTraining

        self.bert = BertForPreTraining(
            BertConfig(
                vocab_size=10_112,
                max_position_embeddings=1027,
                attention_probs_dropout_prob=attention_dropout,
            )
        )

    def forward(self, mri: Tensor, pet: Tensor, pet_real: Tensor, is_real: int) -> Tensor:
        """Weighted NSP and MLM loss."""
        from ganbert.models.rounding import straight_through
        from ganbert.models.summary import summarise_mri, summarise_pet
        from ganbert.models.vocabulary import CLS_ID, MASK_ID, SEP_ID, values_to_ids

        rows = self.bert.get_input_embeddings().weight
        images = (summarise_mri(mri), summarise_pet(pet), summarise_pet(pet_real))
        mri_rows, pet_rows = (straight_through(values, rows) for values in images[:2])
        cls, sep = rows[CLS_ID].view(1, 1, -1), rows[SEP_ID].view(1, 1, -1)
        embeddings = torch.cat((cls, mri_rows, sep, pet_rows, cls), dim=1)
        ids = torch.zeros(1, 1027, dtype=torch.int64)
        ids[:, 1:513], ids[:, 514:1026] = values_to_ids(images[0]), values_to_ids(images[2])
        share = torch.cat((torch.zeros(1), torch.full((512,), 0.05), torch.zeros(1),
                           torch.full((512,), 0.25), torch.zeros(1)))  # fmt: skip
        masked = torch.rand(1, 1027) < share
        output = self.bert(
            inputs_embeds=torch.where(masked.unsqueeze(-1), rows[MASK_ID], embeddings)
        )
        nsp = functional.cross_entropy(
            output.seq_relationship_logits, torch.tensor([0 if is_real else 1])
        )
        labels = ids.masked_fill(~masked, -100)
        mlm = functional.cross_entropy(output.prediction_logits.transpose(1, 2), labels)
        return 20 * nsp + mlm


def build_plain(mri_grid: Grid, pet_grid: Grid, attention_dropout: float = 0.1) -> Step:
    """Build the same job from MONAI and Hugging Face, without this project's engines."""
    from monai.networks.nets import UNet

    channels = cpu_recipe().run.generator.channels
    generator = UNet(
        3, 1, NUM_FRAMES, channels, strides=(2,) * (len(channels) - 1), num_res_units=2
    )
    bert = PlainBert(attention_dropout)
    optimisers = [torch.optim.Adam(net.parameters(), lr=1e-4) for net in (generator, bert)]
    batch = random_batch(mri_grid, pet_grid)

    def step(clock: Clock) -> None:
        with clock.part("generator forward"):
            grown = functional.interpolate(generator(batch.mri), pet_grid.shape, mode="trilinear")
            pet_fake = functional.tanhshrink(grown)
        with clock.part("discriminator step"):
            optimisers[1].zero_grad()
            for pet, is_real in ((batch.pet_real, 1), (pet_fake.detach(), 0)):
                (bert(batch.mri, pet, batch.pet_real, is_real) / 2).backward()
            optimisers[1].step()
        with clock.part("generator step"):
            optimisers[0].zero_grad()
            loss = bert(batch.mri, pet_fake, batch.pet_real, 1)
            (loss + 20 * functional.l1_loss(pet_fake, batch.pet_real)).backward()
            optimisers[0].step()

    return step


VARIANTS: dict[str, Callable[[Grid, Grid], Step]] = {
    "ganbert": build_ganbert,
    "plain": build_plain,
    "plain_fused": functools.partial(build_plain, attention_dropout=0.0),
}


def measure(variant: str, size: str, steps: int) -> None:
    """Run one variant in this process and print its figures as the last line, JSON."""
    torch.manual_seed(0)
    step = VARIANTS[variant](*GRIDS[size])
    step(Clock())  # allocators and kernels get ready; optimisers make their state
    clock = Clock()
    for _ in range(steps):
        step(clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {part: statistics.median(values) for part, values in clock.seconds.items()}
    print(json.dumps({"peak_bytes": peak, "seconds": seconds}))


def in_own_process(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure a variant in a new process; return its figures by name."""
    environment = os.environ | {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    command = [sys.executable, __file__, "--child", variant, "--size", options.size]
    # In a session of its own: Ctrl-C reaches us alone, and we end it.
    answer = subprocess.run(
        [*command, "--steps", str(options.steps)], start_new_session=True,
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(answer.stdout.splitlines()[-1])
    step = sum(figures["seconds"].values())
    return {"peak (GiB)": figures["peak_bytes"] / 2**30, "step (s)": step, **figures["seconds"]}


def show(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Print medians over the repetitions, and the ratios to the project's own step."""
    table = Table(title=f"One training step, size {options.size}, fp32, micro-batch 1")
    table.add_column("")
    for variant in results:
        table.add_column(variant, justify="right")
    peers = [v for v in results if v != "ganbert" and "ganbert" in results]
    for peer in peers:
        table.add_column(f"{peer} / ganbert", justify="right")
    for name in next(iter(results.values()))[0]:
        medians = {v: statistics.median(r[name] for r in rs) for v, rs in results.items()}
        cells = [f"{value:.2f}" for value in medians.values()]
        cells += [f"{medians[peer] / medians['ganbert']:.2f}" for peer in peers]
        table.add_row(name, *cells)
    table.caption = (
        f"{options.repetitions} processes each, {options.steps} timed steps a process; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    Console().print(table)


def main() -> None:
    """Measure the variants in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=GRIDS, default="demo")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--repetitions", type=int, default=1, help="processes of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--port", type=int, default=29_611)
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child, options.size, options.steps)
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for _ in range(options.repetitions):
        for variant in options.variants:
            results[variant].append(in_own_process(variant, options))
    show(results, options)


if __name__ == "__main__":
    with interruptible():
        main()
