"""Which of DALI's operators read and scale an image fastest on the CPU, for `data/pipeline.py`.

    python benchmarks/dali_operators.py WORK [--rounds 5] [--pairs 150]

WORK is that of `loading.py`, whose cache is read: MRI 256^3 uint8, PET 2 x 93 x 76 x 76 float32.

How the bytes come into the graph:

`readers.file`         reads into a buffer of its own, then copies into the output
`readers.file, map`    the same from a memory map
`io.file.read`         reads into the output
`io.file.read, map`    copies from a memory map
`ring`                 no operator: a thread of Python reads into six buffers in turn, which DALI
                       takes over as they are (`external_source(no_copy=True)`)

and how they become float32: `a * image + b` (one pass per sign) or `brightness_contrast` (one in
all). Rates are wall clock, seconds of CPU those of the process; each way is measured in a process
of its own, all in turn, in every round. Whether both give the same numbers is looked at first.
"""

import argparse
import itertools
import json
import mmap
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
from interruption import interruptible
from nvidia.dali import Pipeline
from rich.console import Console
from rich.table import Table

READERS = ("readers.file", "readers.file, map", "io.file.read", "io.file.read, map", "ring")
SCALES = ("a * image + b", "brightness_contrast")
_THREADS = 2
_WARM_UP = 12
_RING = 6
_HUGE_PAGE = 2**21
_SCALE, _OFFSET = np.float32(0.0123), np.float32(-0.456)
Files = tuple[list[Path], list[Path]]


def _buffer(num_bytes: int) -> Any:
    mapped = mmap.mmap(-1, -(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8, count=num_bytes)


def _fill(path: Path, buffer: Any) -> Any:
    with path.open("rb", buffering=0) as file:
        if file.readinto(buffer) != len(buffer):
            sys.exit(f"{path} is shorter than the first")
    return buffer


def ring(files: Files) -> Callable[[], tuple[list[Any], list[Any]]]:
    """Return a source that reads one pair ahead in a thread."""
    rings = [[_buffer(paths[0].stat().st_size) for _ in range(_RING)] for paths in files]
    pool = ThreadPoolExecutor(1)
    turns = itertools.count()

    def submit() -> list[Future[Any]]:
        turn = next(turns)
        return [
            pool.submit(_fill, paths[turn % len(paths)], buffers[turn % _RING])
            for paths, buffers in zip(files, rings, strict=True)
        ]

    ahead = [submit()]

    def source() -> tuple[list[Any], list[Any]]:
        ahead.append(submit())
        mri, pet = ahead.pop(0)
        return [mri.result()], [pet.result()]

    return source


def read(name: str, files: Files) -> tuple[Any, Any]:
    """Describe how the bytes of MRI and PET come."""
    kind, _, mapped = name.partition(", ")
    if kind == "ring":
        given = {"batch": True, "no_copy": True, "dtype": [types.UINT8] * 2, "ndim": 1}
        mri, pet = fn.external_source(ring(files), num_outputs=2, **given)
        return mri, pet
    plain = {"dont_use_mmap": not mapped}
    if kind == "readers.file":
        mri, pet = (
            fn.readers.file(files=[str(path) for path in paths], prefetch_queue_depth=2, **plain)[0]
            for paths in files
        )
        return mri, pet

    def paths_of(paths: list[Path]) -> Iterator[list[Any]]:
        return ([np.frombuffer(os.fsencode(path), np.uint8)] for path in itertools.cycle(paths))

    mri, pet = (
        fn.io.file.read(fn.external_source(paths_of(paths), batch=True), **plain) for paths in files
    )
    return mri, pet


def scale(name: str, image: Any) -> Any:
    """Describe the multiply-add, with its factors per sample as in the pipeline."""
    a, b = fn.external_source(
        lambda: ([np.array(_SCALE)], [np.array(_OFFSET)]), num_outputs=2, batch=True
    )
    if name == "a * image + b":
        return image * a + b
    return fn.brightness_contrast(
        fn.reinterpret(image, shape=(1, -1, 1), layout="HWC"),
        brightness=a,
        brightness_shift=b,
        contrast=1.0,
        contrast_center=0.0,
        dtype=types.FLOAT,
    )


def build(reader: str, scaling: str, files: Files) -> Any:
    """Build the graph of one way."""
    pipeline = Pipeline(
        batch_size=1, num_threads=_THREADS, device_id=None, prefetch_queue_depth=2, seed=0
    )
    with pipeline:
        mri, pet = read(reader, files)
        pet = fn.reinterpret(pet, shape=(-1,), dtype=types.FLOAT)
        pipeline.set_outputs(scale(scaling, mri), scale(scaling, pet))
    pipeline.build()
    return pipeline


def measure(reader: str, scaling: str, files: Files, num_pairs: int) -> dict[str, float]:
    """Pairs per second and milliseconds of CPU a pair."""
    pipeline = build(reader, scaling, files)
    for _ in range(_WARM_UP):
        pipeline.run()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(num_pairs):
        pipeline.run()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": num_pairs / seconds, "cpu_ms": 1e3 * cpu / num_pairs}


def check_equal(files: Files) -> None:
    """Both multiply-adds give the float32 numbers of NumPy."""
    for number, dtype in enumerate((np.uint8, np.float32)):
        raw = np.fromfile(files[number][0], np.uint8).view(dtype)
        exact = raw.astype(np.float32) * _SCALE + _OFFSET
        for scaling in SCALES:
            found = np.asarray(build("io.file.read", scaling, files).run()[number].as_tensor())
            if not np.array_equal(found.ravel(), exact, equal_nan=True):
                sys.exit(f"{scaling} gives other numbers than NumPy for {np.dtype(dtype)}")


def main() -> None:
    """Measure every way in turn, or (in a process of its own) one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cache = options.work / "cached" / "cache"
    files = sorted(cache.glob("*_T1w.nii")), sorted(cache.glob("*_pet.nii"))
    if not all(files):
        sys.exit(f"{cache}: expected cached images, found none; run benchmarks/loading.py first")
    if options.only:
        found = measure(*options.only, files, options.pairs)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    check_equal(files)
    ways = list(itertools.product(READERS, SCALES))
    results: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(options.rounds):
        for way in (*ways[number:], *ways[:number]):
            command = [sys.executable, __file__, str(options.work), "--pairs", str(options.pairs)]
            done = subprocess.run(
                [*command, "--only", *way], check=True, stdout=subprocess.PIPE, text=True
            )
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
    show(results)


def show(results: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    """Print medians over rounds; ratios are to the first way of the same round."""
    table = Table("read", "scale", "pairs per second", "times the first", "ms of CPU a pair")
    first = next(iter(results.values()))
    for (reader, scaling), found in results.items():
        rates = [each["rate"] for each in found]
        ratios = [rate / one["rate"] for rate, one in zip(rates, first, strict=True)]
        table.add_row(
            reader,
            scaling,
            f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{statistics.median(each['cpu_ms'] for each in found):.1f}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"DALI {version('nvidia-dali-cuda120')}, NumPy {np.__version__}"
    )


if __name__ == "__main__":
    with interruptible():
        main()
