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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from interruption import interruptible
from plain import Step, build_plain, random_images
from rich.console import Console
from rich.table import Table
from stopwatch import Stopwatch
from switches import ENGINES, Switch, with_engines

from ganbert.config import GRIDS, Grid
from ganbert.data.loader import Batch
from ganbert.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
# What the table shows, out of the parts of a stopwatch.
PARTS = {
    "generator forward": ("generator forward",),
    "discriminator step": (
        "discriminator forward", "discriminator backward", "discriminator optimiser",
    ),
    "generator step": (
        "judgement forward", "judgement backward", "generator backward", "generator optimiser",
    ),
}  # fmt: skip


def recipe_in(precision: str, micro_batch: int, path: Path = ROOT / "ds_configs/paper") -> Recipe:
    """Return a recipe in "fp32", "fp16" or "bf16", without accumulation, with PyTorch's Adam."""
    adam = {"lr": 1e-4, "torch_adam": True, "adam_w_mode": False}
    settings: dict[str, Any] = {"fp16": None, "bf16": None}
    if precision != "fp32":
        settings[precision] = {"enabled": True}
    if precision == "fp16":
        # Low enough from the start that no step is passed over while the right one is looked for.
        settings["fp16"] |= {"loss_scale": 0, "initial_scale_power": 8}
    return with_engines(
        load_recipe(path),
        ENGINES,
        train_micro_batch_size_per_gpu=micro_batch,
        gradient_accumulation_steps=1,
        optimizer={"type": "Adam", "params": adam},
        **settings,
    )


def _watch(engine: Any, clock: list[Stopwatch], forward: str, backward: str, learn: str) -> None:
    """Mark when an engine begins to go back, and when each part of its step is done."""
    go_back, take_step = engine.backward, engine.step

    def timed_backward(*arguments: Any, **options: Any) -> Any:
        clock[0].mark(forward)
        output = go_back(*arguments, **options)
        clock[0].mark(backward)
        return output

    def timed_step(*arguments: Any, **options: Any) -> Any:
        output = take_step(*arguments, **options)
        clock[0].mark(learn)
        return output

    engine.backward, engine.step = timed_backward, timed_step


def build_ganbert(
    mri_grid: Grid,
    pet_grid: Grid,
    recipe: Recipe,
    *,
    switches: Sequence[Switch] = (),
    batches: Iterator[Batch] | None = None,
) -> tuple[Step, Any]:
    """Build the project's own networks and engines; return the step and the engines.

    Parameters
    ----------
    batches : where the images come from; None: random ones that lie on the device
    """
    from ganbert.engines import build_engines, init_world
    from ganbert.models.discriminators import build_discriminator
    from ganbert.models.generator import build_generator
    from ganbert.steps import discriminator_step, generator_step

    for switch in switches:
        switch.start()
        recipe = switch.recipe(recipe)
    world, config = init_world(), recipe.run
    networks = (
        build_generator(config.generator, mri_grid, pet_grid),
        build_discriminator(config.discriminator, mri_grid, pet_grid),
    )
    for switch in switches:
        switch.networks(*networks)
    engines = build_engines(*networks, recipe, max_steps=1000)
    num, weights = engines.micro_batch, config.losses
    mri, pet_real = random_images(mri_grid, pet_grid, num, world.device)
    for switch in switches:
        switch.engines(engines, mri)
    resident, numbers = Batch(mri=mri, pet_real=pet_real, rows=[0] * num), torch.Generator()
    clocks = [Stopwatch(world.device)]
    of_discriminator = ("discriminator forward", "discriminator backward")
    _watch(engines.discriminator, clocks, *of_discriminator, "discriminator optimiser")
    of_generator = ("judgement forward", "generator backward")
    _watch(engines.generator, clocks, *of_generator, "generator optimiser")

    def step(clock: Stopwatch) -> None:
        clocks[0] = clock
        batch = resident if batches is None else next(batches)
        clock.mark("data")
        masks = world.bring(engines.sample_masks(3 * num, numbers))
        judged, made = masks.tensor_split([2 * num])
        pet_fake = engines.generator(batch.mri)
        pet_fake.register_hook(lambda _: clock.mark("judgement backward"))
        clock.mark("generator forward")
        discriminator_step(engines, batch, pet_fake, judged, weights)
        generator_step(engines, batch, pet_fake, made, weights, step=0)

    return step, engines


def _ganbert(mri_grid: Grid, pet_grid: Grid) -> Step:
    return build_ganbert(mri_grid, pet_grid, recipe_in("fp32", 1))[0]


def _plain(mri_grid: Grid, pet_grid: Grid, attention_dropout: float = 0.1) -> Step:
    run = recipe_in("fp32", 1).run
    return build_plain(
        mri_grid,
        pet_grid,
        channels=run.generator.channels,
        bert=run.discriminator,
        attention_dropout=attention_dropout,
    )


VARIANTS = {
    "ganbert": _ganbert,
    "plain": _plain,
    "plain_fused": functools.partial(_plain, attention_dropout=0.0),
}


def time_steps(
    step: Step, device: torch.device, *, warm_up: int, steps: int
) -> list[dict[str, float]]:
    """Take some steps; return the seconds of each but the first ones, by part."""
    clock, laps = Stopwatch(device), []
    for _ in range(warm_up + steps):
        clock.mark("start")
        step(clock)
        laps.append(clock.take())
    return laps[warm_up:]


def measure(variant: str, size: str, steps: int) -> None:
    """Run one variant in this process and print its figures as the last line, JSON."""
    torch.manual_seed(0)
    step = VARIANTS[variant](*GRIDS[size])
    # In the first, allocators and kernels get ready, and optimisers make their state.
    laps = time_steps(step, torch.device("cpu"), warm_up=1, steps=steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {
        name: statistics.median(sum(lap[part] for part in parts) for lap in laps)
        for name, parts in PARTS.items()
    }
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
