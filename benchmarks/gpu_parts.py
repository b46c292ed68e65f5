"""The parts of benchmarks/gpu.py, each run in a process of its own; each returns its figures.

A part imports what it needs itself: where something is missing it fails alone, and says what.
"""

import argparse
import contextlib
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]
_RATIO = 0.01
# More than the loader reads ahead.
_SKIPPED = 12


def _seconds(function: Callable[[], Any], device: torch.device, at_least: float) -> float:
    """Median seconds of a call, by the device's own clock."""
    from stopwatch import Stopwatch

    clock, laps = Stopwatch(device), []
    for _ in range(3):
        function()
    started = time.perf_counter()
    while len(laps) < 5 or time.perf_counter() - started < at_least:
        clock.mark("start")
        function()
        clock.mark("call")
        laps.append(clock.take()["call"])
    return statistics.median(laps)


def measure_rates(options: argparse.Namespace) -> Figures:
    """What the chip does at its best: products, convolutions, copies. Needs torch alone."""
    device, big = torch.device(options.device), options.device == "cuda"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[
        options.precision
    ]
    at_least = 0.5 if big else 0.05
    figures: Figures = {}
    n = 8192 if big else 256
    both = [torch.randn(n, n, device=device, dtype=dtype) for _ in range(2)]
    figures["product_flops"] = 2 * n**3 / _seconds(lambda: both[0] @ both[1], device, at_least)
    # One that keeps tensor cores busy, and the widest layer at the PET's full resolution.
    shapes = {"deep": (2, 128, 128, (48, 48, 48)), "full_resolution": (2, 32, 16, (93, 76, 76))}
    torch.backends.cudnn.benchmark = True
    for name, (num, narrow, wide, space) in shapes.items():
        if not big:
            num, narrow, wide, space = 1, 8, 8, (12, 10, 10)
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            image = torch.randn(num, narrow, *space, device=device, dtype=dtype)
            image = image.to(memory_format=layout)
            layer = torch.nn.Conv3d(narrow, wide, 3, padding=1, device=device, dtype=dtype)
            layer = layer.to(memory_format=layout)
            with torch.no_grad():
                seconds = _seconds(lambda: layer(image), device, at_least)  # noqa: B023
            voxels = num * space[0] * space[1] * space[2]
            place = "channels_last" if layout is torch.channels_last_3d else "contiguous"
            flops = 2 * 27 * narrow * wide * voxels / seconds
            figures[f"convolution_{name}_{place}_flops"] = flops
    source = torch.empty(2**30 if big else 2**24, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device, at_least)
    figures["copy_bytes"] = 2 * source.numel() / seconds
    return figures


def count_step(options: argparse.Namespace) -> Figures:
    """Count arithmetic and bytes of a step, from shapes alone."""
    from step import recipe_in
    from work import count_work

    recipe = recipe_in(options.precision, options.micro_batch, options.recipe)
    return asdict(count_work(recipe, options.size, options.precision))


def _alone() -> None:
    """Be a world of one rank, as the launcher would have set it up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _peak() -> Figures:
    if torch.cuda.is_initialized():
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    return {"peak_allocated_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


@contextlib.contextmanager
def _batches(options: argparse.Namespace, micro_batch: int) -> Iterator[Any]:
    """The project's loader on random images at full size, which stay on the device's node."""
    sys.path.insert(0, str(ROOT))
    from ganbert.config import GRIDS
    from ganbert.data.loader import build_loader
    from tests.tiny_cache import write_tiny_cache

    with tempfile.TemporaryDirectory(prefix="ganbert-gpu-") as name:
        folder = Path(name)
        index = write_tiny_cache(folder, 8, *GRIDS[options.size])
        with build_loader(
            folder,
            index,
            "train",
            intensity_ratio=_RATIO,
            micro_batch=micro_batch,
            rank=0,
            world_size=1,
            seed=0,
            start_micro_step=0,
            num_micro_steps=10_000,
            device_id=0 if options.device == "cuda" else None,
        ) as loader:
            yield loader


def measure_data(options: argparse.Namespace) -> Figures:
    """Volumes a second that the loader delivers where the step needs them."""
    from ganbert.config import GRIDS

    with _batches(options, options.micro_batch) as loader:
        for _ in range(_SKIPPED):
            batch = next(loader)
        started, count = time.perf_counter(), 0
        while count < 12 or time.perf_counter() - started < options.seconds:
            batch = next(loader)
            count += 1
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    if tuple(batch.mri.shape[2:]) != GRIDS[options.size][0].shape:
        raise RuntimeError("the loader delivers images of another size")
    rate = options.micro_batch * count / seconds
    return {"volumes_per_second": rate, "device": str(batch.mri.device)}


def _timed(step: Any, options: argparse.Namespace, micro_batch: int) -> Figures:
    from step import time_steps

    device, big = torch.device(options.device), options.device == "cuda"
    started = time.perf_counter()
    time_steps(step, device, warm_up=5 if big else 1, steps=0)
    prepared = time.perf_counter() - started
    started = time.perf_counter()
    laps = time_steps(step, device, warm_up=0, steps=options.steps)
    host = (time.perf_counter() - started) / options.steps
    seconds = {
        part: statistics.median(lap.get(part, 0.0) for lap in laps)
        for part in dict.fromkeys(part for lap in laps for part in lap)
    }
    whole = statistics.median(sum(lap.values()) for lap in laps)
    return {
        "seconds": seconds,
        "step_seconds": whole,
        "slowest_step_seconds": max(sum(lap.values()) for lap in laps),
        "host_seconds_a_step": host,
        "warm_up_seconds": prepared,
        "volumes_per_second": micro_batch / whole,
        **_peak(),
    }


def measure_ganbert(
    options: argparse.Namespace, precision: str, switch: str | None, *, streamed: bool
) -> Figures:
    """Time the project's own step.

    Parameters
    ----------
    switch : a name of `SWITCHES`, besides those of `--switches`
    streamed : images come from the loader, where DALI is there; else they lie on the device
    """
    from step import build_ganbert, recipe_in
    from switches import SWITCHES

    from ganbert.config import GRIDS

    _alone()
    torch.manual_seed(0)
    recipe = recipe_in(precision, options.micro_batch, options.recipe)
    names = [*options.switches, *([switch] if switch else [])]
    with contextlib.ExitStack() as opened:
        batches, remark = None, "images lie on the device"
        if streamed:
            try:
                batches = opened.enter_context(_batches(options, options.micro_batch))
                remark = "images come from the loader"
            # Whatever keeps the loader away, the step can be timed without it.
            except Exception as error:  # noqa: BLE001
                remark = f"images lie on the device: {' '.join(str(error).split())[:160]}"
        step, engines = build_ganbert(
            *GRIDS[options.size],
            recipe,
            switches=[SWITCHES[name] for name in names],
            batches=batches,
        )
        figures = _timed(step, options, engines.micro_batch)
    skipped = sum(engine.skipped_steps for engine in engines.by_name.values())
    return figures | {"remark": remark, "steps_passed_over": skipped}


def measure_plain(options: argparse.Namespace, precision: str) -> Figures:
    """Time the same job in plain PyTorch."""
    from plain import build_plain

    from ganbert.config import GRIDS
    from ganbert.recipe import load_recipe

    torch.manual_seed(0)
    run = load_recipe(options.recipe).run
    step = build_plain(
        *GRIDS[options.size],
        channels=run.generator.channels,
        bert=run.discriminator,
        device=torch.device(options.device),
        micro_batch=options.micro_batch,
        precision=precision,
    )
    return _timed(step, options, options.micro_batch)


def measure_inference(options: argparse.Namespace, variant: str, precision: str) -> Figures:
    """Latency of one image, from NumPy to NumPy."""
    import numpy as np
    from inference import VARIANTS

    from ganbert.config import GRIDS

    torch.manual_seed(0)
    mri_grid, pet_grid = GRIDS[options.size]
    infer = VARIANTS[variant](mri_grid, pet_grid, torch.device(options.device), precision)
    mri = np.random.default_rng(0).uniform(0, 255, (1, *mri_grid.shape)).astype(np.float32)
    for _ in range(3):
        infer(mri)
    laps: list[float] = []
    started = time.perf_counter()
    while len(laps) < 10 or (len(laps) < 200 and time.perf_counter() - started < options.seconds):
        before = time.perf_counter()
        infer(mri)
        laps.append(time.perf_counter() - before)
    p50, p99 = np.percentile(laps, (50, 99))
    return {
        "p50_seconds": float(p50),
        "p99_seconds": float(p99),
        "volumes_per_second": len(laps) / sum(laps),
        "images": len(laps),
        **_peak(),
    }


def run_part(name: str, options: argparse.Namespace) -> Figures:
    """Run a part by its name in the table of `gpu.parts`."""
    kind, _, rest = name.partition(":")
    if kind == "rates":
        return measure_rates(options)
    if kind == "counts":
        return count_step(options)
    if kind == "data":
        return measure_data(options)
    if kind == "candidate":
        switch = None if rest.startswith("none") else rest
        return measure_ganbert(options, options.precision, switch, streamed=False)
    variant, precision = rest.split(":")
    if kind == "inference":
        return measure_inference(options, variant, precision)
    if variant == "ganbert":
        return measure_ganbert(options, precision, None, streamed=True)
    return measure_plain(options, precision)
