"""Throughput and peak memory of inference, beside the same job written with MONAI.

    python benchmarks/inference.py --size demo --images 3
    python benchmarks/inference.py --size paper --images 1 --json paper.json

`ganbert`: a T1w on the MRI grid through the project's generator, as `infer` does it. `monai`:
MONAI's UNet of the same widths (two residual units a level, as the project's blocks have two
convolutions), `sliding_window_inference` over the same T1w (windows of half the grid's edge,
overlap 0.25, MONAI's defaults otherwise), interpolated to the grid of the PET. `monai whole`: the
same in a single window, so that nothing is computed twice. All fp32, random weights, which cost
what trained ones do. Reading and writing are in none.

Each repetition is a process of its own, in turn, so that peak memory is its own and noise of the
machine falls on all; the first image of a process is not timed. Read the ratios. "CPU s" is the
time that the process was given by the processor: it hardly depends on what else the machine does.
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from interruption import interruptible
from plain import DTYPES, monai_unet
from rich.console import Console
from rich.table import Table

from ganbert.config import GRIDS, NUM_FRAMES, GeneratorConfig, Grid, ModelCard

Infer = Callable[[np.ndarray], np.ndarray]
# Variant -> the figures of each of its processes.
Results = dict[str, list[dict[str, float]]]
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
    mri_grid: Grid,
    pet_grid: Grid,
    device: torch.device = CPU,
    precision: str = "fp32",
    parts: int = 2,
) -> Infer:
    """Return the same job from MONAI's parts; in 16-bit with autocast.

    A window is the grid's edge by `parts`.
    """
    from monai.inferers import sliding_window_inference

    network = monai_unet(GeneratorConfig().channels).to(device).eval()
    window = [n // parts for n in mri_grid.shape]
    half = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def run(mri: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy((mri - mri.mean()) / mri.std())[None].to(device)
            with half:
                full = sliding_window_inference(image, window, 1, network, overlap=0.25)
            pet = torch.nn.functional.interpolate(full.float(), pet_grid.shape, mode="trilinear")
            return torch.nn.functional.tanhshrink(pet)[0].cpu().numpy()

    return run


def build_monai_whole(mri_grid: Grid, pet_grid: Grid) -> Infer:
    """Return the same with a single window."""
    return build_monai(mri_grid, pet_grid, parts=1)


VARIANTS = {"ganbert": build_ganbert, "monai": build_monai, "monai whole": build_monai_whole}


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
    walls, cpus = [], []
    for _ in range(images):
        wall, cpu = time.perf_counter(), time.process_time()
        infer(mri)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "s per image": statistics.median(walls),
        "CPU s per image": statistics.median(cpus),
        "peak (GiB)": peak / 2**20,
        "peak above libraries and input (GiB)": (peak - before) / 2**20,
    }
    print(json.dumps(figures))


def run_all(options: argparse.Namespace) -> Results:
    """Measure the variants in turn, each in processes of its own."""
    results: Results = {name: [] for name in options.variants}
    for _ in range(options.repetitions):
        for name, found in results.items():
            command = [sys.executable, __file__, "--child", name, "--size", options.size]
            answer = subprocess.run(
                [*command, "--images", str(options.images)], start_new_session=True,
                stdout=subprocess.PIPE, text=True, check=True, env=os.environ,
            )  # fmt: skip
            found.append(json.loads(answer.stdout.splitlines()[-1]))
    return results


def tabulate(results: Results, options: argparse.Namespace) -> Table:
    """Return medians over the processes, and how many times ganbert's each figure is."""
    ours, *others = results
    table = Table(title=f"Inference, size {options.size}, fp32, CPU")
    for heading in ("", ours, *others, *(f"{name} / {ours}" for name in others)):
        table.add_column(heading, justify="right" if heading else "left")
    for figure in results[ours][0]:
        values = {name: statistics.median(r[figure] for r in results[name]) for name in results}
        cells = [f"{value:.2f}" for value in values.values()]
        ratios = [f"{values[name] / values[ours]:.2f}" for name in others]
        table.add_row(figure, *cells, *ratios)
    table.caption = (
        f"{options.repetitions} processes each, {options.images} timed images a process; torch "
        f"{torch.__version__}, MONAI {version('monai')}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}"
    )
    return table


def main() -> None:
    """Measure the variants in turn, print the table, keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=GRIDS, default="demo")
    parser.add_argument("--images", type=int, default=3, help="timed images of a process")
    parser.add_argument("--repetitions", type=int, default=1, help="processes of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="file for all figures of all processes")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child, options.size, options.images)
        return
    results = run_all(options)
    table = tabulate(results, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"size": options.size, "images": options.images, "caption": str(table.caption)}
        options.json.write_text(json.dumps({"about": about, "processes": results}, indent=2) + "\n")
    Console(width=120).print(table)


if __name__ == "__main__":
    with interruptible():
        main()
