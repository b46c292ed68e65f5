"""The generator as an exported graph on the CPU: is it the same, and is it faster than eager?

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/graphs.py --size paper --json graphs_paper.json

`aot`: torch.export, compiled by AOTInductor (needs g++). `onnxruntime` and `openvino`: the ONNX
that torch.onnx writes from the same export. What is not installed is left out, and said. All are
built first, in this process, with the same weights and as many threads; then each computes the
image in turn, round after round, so that noise of the machine falls on all. Read the ratios. The
weights are random.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from interruption import interruptible
from rich.console import Console
from rich.table import Table

from ganbert.config import GRIDS, GeneratorConfig
from ganbert.models.generator import Generator, build_generator

Run = Callable[[np.ndarray], np.ndarray]


def eager(generator: Generator, mri: torch.Tensor, folder: Path) -> Run:
    """The generator as it is used."""

    def run(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return generator(torch.from_numpy(array)).numpy()

    return run


def channels_last(generator: Generator, mri: torch.Tensor, folder: Path) -> Run:
    """Eager, with the channels of a voxel side by side in memory."""
    import copy

    other = copy.deepcopy(generator).to(memory_format=torch.channels_last_3d)

    def run(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy(array).to(memory_format=torch.channels_last_3d)
            return other(image).contiguous().numpy()

    return run


def aot(generator: Generator, mri: torch.Tensor, folder: Path) -> Run:
    """Compiled ahead of time into a package that Python and C++ can load."""
    exported = torch.export.export(generator, (mri,))
    package = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(folder / "generator.pt2")
    )
    compiled = torch._inductor.aoti_load_package(package)

    def run(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = compiled(torch.from_numpy(array)).numpy()
        return found

    return run


def write_onnx(generator: Generator, mri: torch.Tensor, folder: Path) -> Path:
    """Write the graph, once for all that read it."""
    file = folder / "generator.onnx"
    if not file.exists():
        torch.onnx.export(generator, (mri,), str(file), dynamo=True, verbose=False)
    return file


def onnxruntime(generator: Generator, mri: torch.Tensor, folder: Path) -> Run:
    """ONNX Runtime, its own CPU kernels."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = write_onnx(generator, mri, folder)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def openvino(generator: Generator, mri: torch.Tensor, folder: Path) -> Run:
    """OpenVINO, told to compute in float32 as the others do."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = ov.Core().compile_model(write_onnx(generator, mri, folder), "CPU", settings)
    return lambda array: model([array])[0]


VARIANTS = {
    "eager": eager, "channels last": channels_last, "aot": aot, "onnxruntime": onnxruntime,
    "openvino": openvino,
}  # fmt: skip


def build(
    generator: Generator, mri: torch.Tensor, names: list[str], folder: Path
) -> tuple[dict[str, Run], dict[str, float]]:
    """Build what can be built here; return it with the seconds that it took."""
    runs, seconds = {}, {}
    for name in names:
        started = time.perf_counter()
        try:
            runs[name] = VARIANTS[name](generator, mri, folder)
        except Exception as error:  # noqa: BLE001 - whatever one cannot do, the others can
            line = next(iter(str(error).strip().splitlines()), "")
            sys.stderr.write(f"{name}: left out: {type(error).__name__}: {line}\n")
            continue
        seconds[name] = time.perf_counter() - started
        sys.stderr.write(f"{name}: built in {seconds[name]:.1f} s\n")
    return runs, seconds


def measure(runs: dict[str, Run], mri: np.ndarray, rounds: int) -> dict[str, dict[str, list]]:
    """Compute the image `rounds` times with each, in turn, after once untimed."""
    expected = runs["eager"](mri)
    found = {}
    for name, run in runs.items():
        difference = float(np.abs(run(mri) - expected).max())
        found[name] = {"wall s": [], "CPU s": [], "difference": [difference]}
    for number in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(mri)
            found[name]["wall s"].append(time.perf_counter() - wall)
            found[name]["CPU s"].append(time.process_time() - cpu)
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return found


def main() -> None:
    """Build, measure, print the table, keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=GRIDS, default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    mri_grid, pet_grid = GRIDS[options.size]
    generator = build_generator(GeneratorConfig(), mri_grid, pet_grid).eval()
    mri = torch.randn(1, 1, *mri_grid.shape)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs, seconds = build(generator, mri, options.variants, Path(folder))
        found = measure(runs, mri.numpy(), options.rounds)
    span = float(np.ptp(runs["eager"](mri.numpy())))
    table = Table(title=f"The generator as a graph, size {options.size}, fp32, CPU")
    for heading in ("", "build (s)", "s", "CPU s", "eager / it", "CPU, eager / it", "max |diff|"):
        table.add_column(heading, justify="right" if heading else "left")
    first = found["eager"]
    for name, figures in found.items():
        walls, cpus = figures["wall s"], figures["CPU s"]
        # Of each round, whose two were computed one after the other.
        ratios = [
            statistics.median(a / b for a, b in zip(first[key], figures[key], strict=True))
            for key in ("wall s", "CPU s")
        ]
        cells = [seconds[name], statistics.median(walls), statistics.median(cpus), *ratios]
        table.add_row(name, *(f"{v:.2f}" for v in cells), f"{figures['difference'][0]:.1e}")
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", *(n for n in ("onnxruntime", "openvino") if n in runs))
    )
    table.caption = (
        f"medians of {options.rounds} rounds, ratios round by round; output spans {span:.3g}; "
        f"{options.threads} threads, {platform.machine()}, {versions}"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"size": options.size, "caption": str(table.caption), "build s": seconds}
        options.json.write_text(json.dumps({"about": about, "variants": found}, indent=2) + "\n")
    Console(width=120).print(table)


if __name__ == "__main__":
    with interruptible():
        main()
