"""Throughput and peak memory of inference, beside the same job written with MONAI.

    python benchmarks/inference.py --size demo --images 4
    python benchmarks/inference.py --size paper --images 1

`ganbert`: a T1w on the MRI grid through the project's generator, as `infer` does it. `monai`:
MONAI's UNet of the same widths, `sliding_window_inference` over the same T1w (windows of half the
grid's edge, overlap 0.25, MONAI's defaults otherwise), interpolated to the grid of the PET. Both
fp32, random weights, which cost what trained ones do. Reading and writing are in neither.

Each repetition is a process of its own, alternating, so that peak memory is its own and noise of
the machine falls on both; the first image of a process is not timed. Read the ratios.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from interruption import interruptible
from plain import DTYPES, monai_unet
from rich.console import Console
from rich.table import Table

from ganbert.config import GRIDS, NUM_FRAMES, GeneratorConfig, Grid, ModelCard

Infer = Callable[[np.ndarray], np.ndarray]


CPU = torch.device("cpu")


def build_ganbert(
    mri_grid: Grid, pet_grid: Grid, device: torch.device = CPU, precision: str = "fp32"
) -> Infer:
    """Return the project's own inference; in 16-bit with weights of that type."""
    from ganbert.models.generator import build_generator
    from ganbert.predict import Predictor

    config = GeneratorConfig()
    card = ModelCard(
        ganbert_version="0", generator=config, mri_grid=mri_grid, pet_grid=pet_grid,
        intensity_ratio=0.1, tracer="AV45", unit="SUVR", data_range=(0.0, 3.0),
        frame_start_s=(0.0, 1.0), frame_duration_s=(1.0, 1.0), num_steps=1, num_training_rows=1,
        index_sha256="", weights_sha256="",
    )  # fmt: skip
    generator = build_generator(config, mri_grid, pet_grid)
    predictor = Predictor(generator.to(DTYPES[precision]), card, device)
    return lambda mri: predictor.predict_conformed(mri, float(mri.mean()), float(mri.std()))


def build_monai(
    mri_grid: Grid, pet_grid: Grid, device: torch.device = CPU, precision: str = "fp32"
) -> Infer:
    """Return the same job from MONAI's parts; in 16-bit with autocast."""
    from monai.inferers import sliding_window_inference

    network = monai_unet(GeneratorConfig().channels).to(device).eval()
    window = [n // 2 for n in mri_grid.shape]
    half = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def run(mri: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy((mri - mri.mean()) / mri.std())[None].to(device)
            with half:
                full = sliding_window_inference(image, window, 1, network, overlap=0.25)
            pet = torch.nn.functional.interpolate(full.float(), pet_grid.shape, mode="trilinear")
            return torch.nn.functional.tanhshrink(pet)[0].cpu().numpy()

    return run


VARIANTS = {"ganbert": build_ganbert, "monai": build_monai}


def measure(variant: str, size: str, images: int) -> None:
    """Run one variant in this process and print its figures as the last line, JSON."""
    torch.manual_seed(0)
    mri_grid, pet_grid = GRIDS[size]
    infer = VARIANTS[variant](mri_grid, pet_grid)
    random = np.random.default_rng(0)
    mri = random.uniform(0, 255, (1, *mri_grid.shape)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if infer(mri).shape != (NUM_FRAMES, *pet_grid.shape):
        raise RuntimeError("a PET of another shape")
    seconds = []
    for _ in range(images):
        started = time.perf_counter()
        infer(mri)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "s per image": statistics.median(seconds),
        "peak (GiB)": peak / 2**20,
        "peak above libraries and input (GiB)": (peak - before) / 2**20,
    }
    print(json.dumps(figures))


def main() -> None:
    """Measure the variants in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=GRIDS, default="demo")
    parser.add_argument("--images", type=int, default=3, help="timed images of a process")
    parser.add_argument("--repetitions", type=int, default=1, help="processes of each variant")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child, options.size, options.images)
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.repetitions):
        for name, found in results.items():
            command = [sys.executable, __file__, "--child", name, "--size", options.size]
            answer = subprocess.run(
                [*command, "--images", str(options.images)], start_new_session=True,
                stdout=subprocess.PIPE, text=True, check=True, env=os.environ,
            )  # fmt: skip
            found.append(json.loads(answer.stdout.splitlines()[-1]))
    table = Table(title=f"Inference, size {options.size}, fp32, CPU")
    for heading in ("", *VARIANTS, "monai / ganbert"):
        table.add_column(heading, justify="right" if heading else "left")
    for figure in results["ganbert"][0]:
        ours, theirs = (statistics.median(r[figure] for r in results[name]) for name in VARIANTS)
        table.add_row(figure, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}")
    table.caption = (
        f"{options.repetitions} processes each, {options.images} timed images a process; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    Console(width=110).print(table)


if __name__ == "__main__":
    with interruptible():
        main()
