"""What it costs to grow: step time and bytes of 1 and 2 ranks here, and what follows for 64 V100.

    python benchmarks/scaling.py --out benchmarks/results/scaling
    python benchmarks/scaling.py --out SOMEWHERE --recipe paper --size paper  # with two GPUs

Measured, each in processes of their own, alternating: the project's own step (random images) under
the `deepspeed` launcher with 1 and 2 ranks of one core (or GPU) each, the bytes that the loopback
device carried in it (not with NCCL, which goes past it), and, alone, an exchange of as many numbers
as there are gradients, in the type in which DeepSpeed sends them. Two ranks of
one machine also share its memory and caches, so 1 rank is measured again beside a stranger: another
one, of a training of its own. Predicted from it, to see whether the model holds: the step of 2
ranks = the step of 1 beside a stranger + the exchange.

The same model with the figures of a DGX-1 (below, with sources) gives step, epoch and days for the
paper's 500 epochs. Nothing of that was measured on a GPU: how much of its peak a V100 reaches is
the unknown, so two shares are shown.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from interruption import interruptible
from rich.console import Console
from rich.table import Table

from ganbert.config import GRIDS, NUM_FRAMES
from ganbert.model_table import measure_discriminator, measure_generator
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
# NVIDIA, "DGX-1 With Tesla V100 System Architecture" (WP-08437-002): 125 TFLOPS a V100 with tensor
# cores, six NVLinks of 25 GB/s and direction, four EDR InfiniBand ports of 100 Gb/s.
_V100_FLOPS = 125e12
_NVLINK_BYTES = 6 * 25e9
_NODE_BYTES = 4 * 100e9 / 8
_GPUS_A_NODE = 8
# Of a link's rate, what an all-reduce of 200 MB gets. Assumed.
_LINK_SHARE = 0.8
# Of its peak, what a V100 reaches in this mixture of convolutions and attention. Assumed: two.
_SHARES_OF_PEAK = (0.1, 0.3)
_PAIRS = {"AV45": 2387, "FDG": 3108}  # Shin et al. 2020, section 4.1
_TRAINING_SHARE = 0.7
_EPOCHS, _PAPER_DAYS = 500, 1.0  # section 4.3: "for about 500 epochs, taking about a day"
_SCALES = (1, 8, 16, 32, 64)
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
WORLDS = {"1 rank": (1,), "1 beside a stranger": (1, 1), "2 ranks": (2,)}


@dataclass(frozen=True)
class Work:
    """What a rank computes in a step, and what it exchanges.

    Attributes
    ----------
    operations : floating-point operations of a step
    gradient_bytes : of both networks, as they are sent: what is all-reduced once a step
    pairs : that a rank learns from in a step
    pair_bytes : of a pair in the cache: uint8 MRI, float32 PET
    """

    operations: float
    gradient_bytes: int
    pairs: int
    pair_bytes: int


def sent_bytes(config: dict[str, Any], parameters: int) -> int:
    """Bytes that an engine exchanges in a step, as those of an all-reduce: each rank sends
    2 (n - 1) / n of them.

    Gradients travel in `communication_data_type`, by default the engine's own precision
    (DeepSpeed 0.19.8, `DeepSpeedEngine.communication_data_type`): 16 bit with fp16 and bf16. At
    ZeRO 0 they are all-reduced. At ZeRO 1 each rank gets the sum of its part, and sends the new
    weights of it to all, in the engine's precision: half of an all-reduce each.
    """
    precision = next((p for p in ("fp16", "bf16") if config.get(p, {}).get("enabled")), "fp32")
    gradient = _BYTES[config.get("communication_data_type", precision)]
    if config.get("zero_optimization", {}).get("stage", 0) == 0:
        return parameters * gradient
    return parameters * (gradient + _BYTES[precision]) // 2


def count(recipe: Recipe, size: str) -> Work:
    """Count a step from shapes alone: a backward pass costs two forward ones, and what activation
    checkpointing computes again a third; through the frozen discriminator there is no gradient of
    weights, which saves one."""
    grids = GRIDS[size]
    with torch.device("meta"):
        generator = build_generator(recipe.run.generator, *grids)
        discriminator = build_discriminator(recipe.run.discriminator, *grids)
    engine = recipe.generator_engine
    micro_batch, accumulation = (
        engine[key] for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    again = int("activation_checkpointing" in engine)
    made = sum(cost.multiply_adds for cost in measure_generator(generator, micro_batch))
    operations = made * (3 + again)
    exchanged = sent_bytes(engine, sum(p.numel() for p in generator.parameters()))
    if discriminator is not None:
        costs = measure_discriminator(discriminator, *grids, micro_batch)
        judged = sum(cost.multiply_adds for cost in costs)
        operations += judged * (3 + again) + judged / 2 * (2 + again)
        learning = sum(p.numel() for p in discriminator.parameters())
        exchanged += sent_bytes(recipe.discriminator_engine, learning)
    mri, pet = (math.prod(grid.shape) for grid in grids)
    return Work(
        2.0 * operations * accumulation,
        exchanged,
        micro_batch * accumulation,
        mri + 4 * NUM_FRAMES * pet,
    )


def exchange_seconds(num_bytes: int, ranks: int) -> float:
    """Seconds of a ring all-reduce on DGX-1: every rank sends 2 (n - 1) / n of the bytes."""
    if ranks == 1:
        return 0.0
    # Within a node over NVLink; beyond it the node's four ports carry the ring.
    rate = _NVLINK_BYTES if ranks <= _GPUS_A_NODE else _NODE_BYTES
    return 2 * (ranks - 1) / ranks * num_bytes / (rate * _LINK_SHARE)


def predict(work: Work) -> list[dict[str, Any]]:
    """Predict step, efficiency, data rate and time of 500 epochs by scale and share of peak."""
    lines = []
    for share in _SHARES_OF_PEAK:
        for ranks in _SCALES:
            computed = work.operations / (_V100_FLOPS * share)
            exchanged = exchange_seconds(work.gradient_bytes, ranks)
            step = computed + exchanged
            pairs_per_second = ranks * work.pairs / step
            line = {
                "share_of_peak": share,
                "gpus": ranks,
                "step_s": step,
                "exchange_s": exchanged,
                "efficiency": computed / step,
                "pairs_per_second": pairs_per_second,
                "cache_gb_per_second_and_node": pairs_per_second
                / max(1, ranks / _GPUS_A_NODE)
                * work.pair_bytes
                / 1e9,
            }
            for tracer, pairs in _PAIRS.items():
                steps = _TRAINING_SHARE * pairs / (ranks * work.pairs)
                line[f"epoch_s_{tracer}"] = steps * step
                line[f"days_{tracer}"] = _EPOCHS * steps * step / 86_400
            lines.append(line)
    return lines


def _cpu_recipe(name: str) -> Recipe:
    """The recipe as it is on a GPU; on a CPU in float32 with PyTorch's Adam."""
    recipe = load_recipe(ROOT / "ds_configs" / name)
    if torch.cuda.is_available():
        return recipe
    engines: dict[str, Any] = {}
    for engine in ("generator_engine", "discriminator_engine"):
        config = dict(getattr(recipe, engine))
        config = {key: value for key, value in config.items() if key not in ("fp16", "bf16")}
        params = config["optimizer"]["params"] | {"torch_adam": True}
        engines[engine] = config | {"optimizer": config["optimizer"] | {"params": params}}
    return recipe.model_copy(update=engines)


def worker(options: argparse.Namespace) -> None:
    """One rank: measure steps, then the exchange alone; rank 0 writes the figures."""
    import torch.distributed as dist

    from ganbert.data.loader import Batch
    from ganbert.engines import build_engines, init_world, leave_world
    from ganbert.steps import discriminator_step, generator_step

    recipe, grids = _cpu_recipe(options.recipe), GRIDS[options.size]
    world = init_world()
    torch.manual_seed(0)
    engines = build_engines(
        build_generator(recipe.run.generator, *grids),
        build_discriminator(recipe.run.discriminator, *grids),
        recipe,
        max_steps=1000,
    )
    num, (mri_grid, pet_grid) = engines.micro_batch, grids
    mri = torch.randn(num, 1, *mri_grid.shape, device=world.device)
    pet = 9 * torch.rand(num, NUM_FRAMES, *pet_grid.shape, device=world.device)
    batch = Batch(mri=mri, pet_real=pet, rows=[0] * num)

    def step() -> float:
        started = time.perf_counter()
        for _ in range(engines.accumulation):
            masks = engines.sample_masks(3 * num, torch.Generator()).to(world.device)
            pet_fake = engines.generator(batch.mri)
            losses = recipe.run.losses
            discriminator_step(engines, batch, pet_fake, masks[: 2 * num], losses)
            generator_step(engines, batch, pet_fake, masks[2 * num :], losses, 0)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    step()
    dist.barrier()
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    seconds = [step() for _ in range(options.steps)]
    dist.barrier()
    sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    gradients = [
        torch.zeros(
            sum(p.numel() for p in engine.module.parameters()),
            dtype=engine.communication_data_type,
            device=world.device,
        )
        for engine in engines.by_name.values()
    ]
    exchanges = []
    for _ in range(options.steps + 1):
        dist.barrier()
        started = time.perf_counter()
        for gradient in gradients:
            dist.all_reduce(gradient)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        exchanges.append(time.perf_counter() - started)
    if world.rank == 0:
        figures = {
            "step_s": statistics.median(seconds),
            # NCCL goes past the loopback device: over NVLink, PCIe or shared memory.
            "bytes_per_step": None if world.device.type == "cuda" else sent / options.steps,
            "exchange_s": statistics.median(exchanges[1:]),
        }
        options.worker.write_text(json.dumps(figures))
    leave_world()


def launch(
    ranks: int, port: int, options: argparse.Namespace, file: Path
) -> subprocess.Popen[bytes]:
    """Start the step under the launcher; a rank has one core, or one GPU."""
    launcher = Path(sys.executable).with_name("deepspeed")
    environment = os.environ | {"PATH": f"{launcher.parent}:{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [launcher, "--num_gpus", ranks, "--master_port", port, __file__]
    command += ["--worker", file, "--recipe", options.recipe, "--size", options.size]
    # In a session of its own: Ctrl-C reaches us alone, and we end it.
    return subprocess.Popen(
        [str(part) for part in [*command, "--steps", options.steps]],
        start_new_session=True, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def measure(sizes: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Run trainings of so many ranks at once; return the figures of the first.

    Raises
    ------
    SystemExit
        If one fails.
    """
    files = [options.out / f"worker-{k}.json.tmp" for k in range(len(sizes))]
    children = [
        launch(ranks, options.port + k, options, file)
        for k, (ranks, file) in enumerate(zip(sizes, files, strict=True))
    ]
    try:
        codes = [child.wait() for child in children]
        if any(codes):
            sys.exit(f"trainings of {sizes} ranks failed; run one by hand: see `launch`")
        figures: dict[str, Any] = json.loads(files[0].read_text())
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for file in files:
            file.unlink(missing_ok=True)
    return figures


def check_model(rounds: list[dict[str, dict[str, Any]]], work: Work) -> Table:
    """Compare what was measured with 2 ranks with what follows from 1."""
    table = Table(title="1 and 2 ranks on this machine")
    for heading in ("", *WORLDS, "predicted", "2 ranks / predicted"):
        table.add_column(heading, justify="right" if heading else "left")
    one, beside, two = (
        {
            name: None if value is None else statistics.median(r[world][name] for r in rounds)
            for name, value in rounds[0][world].items()
        }
        for world in WORLDS
    )
    predicted = beside["step_s"] + two["exchange_s"]
    # Both ranks' shares of a ring all-reduce.
    sent = 2 * 2 * (2 - 1) / 2 * work.gradient_bytes
    table.add_row(
        "step (s)", *(f"{world['step_s']:.3f}" for world in (one, beside, two)),
        f"{predicted:.3f}", f"{two['step_s'] / predicted:.2f}",
    )  # fmt: skip
    table.add_row("exchange alone (s)", "", "", f"{two['exchange_s']:.3f}", "", "")
    if two["bytes_per_step"] is None:
        table.add_row("sent by all (MB)", "", "", "not counted (NCCL)", f"{sent / 1e6:.1f}", "")
    else:
        table.add_row(
            "sent by all (MB)", f"{one['bytes_per_step'] / 1e6:.1f}", "",
            f"{two['bytes_per_step'] / 1e6:.1f}", f"{sent / 1e6:.1f}",
            f"{two['bytes_per_step'] / sent:.2f}",
        )  # fmt: skip
    table.add_row(
        "efficiency", "", f"{one['step_s'] / beside['step_s']:.2f}",
        f"{one['step_s'] / two['step_s']:.2f}", "", "",
    )  # fmt: skip
    return table


def show_prediction(lines: list[dict[str, Any]], work: Work) -> Table:
    """Tabulate the prediction."""
    table = Table(title=f"DGX-1, {work.operations / 1e12:.1f} Tflop and "
                        f"{work.gradient_bytes / 1e6:.0f} MB of gradients a step")  # fmt: skip
    for heading in (
        "share of peak", "GPUs", "step (s)", "efficiency", "pairs/s", "GB/s from a node's cache",
        "epoch AV45 (s)", "500 epochs AV45 (days)", "FDG (days)",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(
            f"{line['share_of_peak']:.0%}", str(line["gpus"]), f"{line['step_s']:.3f}",
            f"{line['efficiency']:.3f}", f"{line['pairs_per_second']:.1f}",
            f"{line['cache_gb_per_second_and_node']:.2f}", f"{line['epoch_s_AV45']:.1f}",
            f"{line['days_AV45']:.3f}", f"{line['days_FDG']:.3f}",
        )  # fmt: skip
    return table


def plot(lines: list[dict[str, Any]], file: Path) -> None:
    """Draw days for 500 epochs by number of GPUs, and the paper's day."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
    for share in _SHARES_OF_PEAK:
        of_share = [line for line in lines if line["share_of_peak"] == share]
        gpus, days = ([line[key] for line in of_share] for key in ("gpus", "days_AV45"))
        axis.plot(gpus, days, marker="o", label=f"predicted, {share:.0%} of peak")
    axis.plot([64], [_PAPER_DAYS], marker="*", linestyle="none", markersize=12,
              label="the paper: about a day")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="V100", ylabel="days for 500 epochs (AV45)")
    axis.set_xticks(_SCALES, labels=[str(scale) for scale in _SCALES])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, check the model, predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.svg")
    parser.add_argument("--recipe", default="demo", help="what is measured here")
    parser.add_argument("--size", choices=GRIDS, default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--port", type=int, default=29_613)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    if options.out is None:
        parser.error("--out is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=130)
    rounds = [
        {name: measure(sizes, options) for name, sizes in WORLDS.items()}
        for _ in range(options.rounds)
    ]
    console.print(check_model(rounds, count(_cpu_recipe(options.recipe), options.size)))
    work = count(load_recipe(ROOT / "ds_configs" / "paper"), "paper")
    lines = predict(work)
    console.print(show_prediction(lines, work))
    versions = {name: version(name) for name in ("torch", "deepspeed")}
    about = {"recipe": options.recipe, "size": options.size, "versions": versions}
    result = about | {"measured": rounds, "paper_step": asdict(work), "predicted": lines}
    (options.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(lines, options.out / "scaling.svg")
    console.print(f"torch {versions['torch']}, deepspeed {versions['deepspeed']}; {options.out}")


if __name__ == "__main__":
    with interruptible():
        main()
