"""Training pairs per second, from disk to normalised float32 tensors, beside MONAI's loaders.

    python benchmarks/loading.py WORK
    python benchmarks/loading.py WORK --contenders dali_cache --endurance 10000

All read the same images, conformed and compressed (MRI 256^3 uint8, PET 2 x 93 x 76 x 76 float32,
`.nii.gz`), and deliver the same tensors, --micro-batch pairs at a time (one), in one process of two
threads or with two workers:

`dali_cache`        this project, from the cache that `ganbert prepare` makes of them
`dali_nii_gz`       this project without a cache: conforms (resamples) each image anew
`monai_dataset`     MONAI's Dataset: LoadImage (nibabel), EnsureChannelFirst, normalise
`monai_persistent`  its PersistentDataset: the tensors, pickled on disk
`monai_cache`       its CacheDataset: the tensors in memory (four pairs here; 71 MB a pair)
`memory_copy`       one thread copies as many bytes as the tensors have

`_with_2` behind a name: two worker processes instead of none; `_in_thread`: MONAI's
ThreadDataLoader, which reads ahead in a thread of the same process. Each repetition of a contender
is a process of its own, alternating, so that noise of the machine falls on all; what was read ahead
before the clock starts is taken out first. WORK keeps the images; they are made in the first run.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from interruption import interruptible
from rich.console import Console
from rich.table import Table

from ganbert.config import GRIDS
from ganbert.data.index import Index, load_index
from ganbert.data.loader import build_loader
from ganbert.data.nifti import read_cache, write_volume
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare

MRI_GRID, PET_GRID = GRIDS["paper"]
RATIO = 0.01
# More than any contender reads ahead.
_SKIPPED = 12
_BYTES = 4 * (np.prod(MRI_GRID.shape) + 2 * np.prod(PET_GRID.shape))
Pairs = Iterator[tuple[Any, Any]]


def make_images(work: Path, subjects: int) -> None:
    """Make the images, compressed, and prepare them with and without a cache."""
    if (work / "direct" / "index.json").exists():
        return
    grids = {"mri_grid": MRI_GRID, "pet_grid": PET_GRID, "fractions": (1.0, 0.0, 0.0)}
    if not (work / "bids").exists():
        make_cohort(work / "bids", num_subjects=subjects, tracer="AV45", seed=3, size="paper")
    first = prepare(work / "bids", work / "first", **grids).index
    folder = work / "conformed"
    folder.mkdir(exist_ok=True)
    lines = ["subject,mri,pet,tracer,Units,FrameTimesStart,FrameDuration"]
    for row in first.rows:
        for name, dtype in (("mri", np.uint8), ("pet", np.float32)):
            volume = read_cache(work / "first" / getattr(row, name).path)
            write_volume(folder / f"{row.subject}_{name}.nii.gz", volume, dtype=dtype)
        starts, lasts = (
            " ".join(f"{value:g}" for value in values)
            for values in (row.frame_start_s, row.frame_duration_s)
        )
        names = f"{row.subject}_mri.nii.gz,{row.subject}_pet.nii.gz"
        lines.append(f"{row.subject},{names},AV45,{row.unit},{starts},{lasts}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    prepare(folder, work / "cached", layout="table", **grids)
    prepare(folder, work / "direct", layout="table", cached=False, **grids)


def dali_pairs(folder: Path, micro_batch: int, num_pairs: int) -> Pairs:
    """Stream pairs as training does."""
    loader = build_loader(
        folder,
        load_index(folder),
        "train",
        intensity_ratio=RATIO,
        micro_batch=micro_batch,
        rank=0,
        world_size=1,
        seed=0,
        start_micro_step=0,
        num_micro_steps=num_pairs // micro_batch,
        device_id=None,
    )
    return ((batch.mri, batch.pet_real) for batch in loader)


def monai_pairs(kind: str, work: Path, micro_batch: int, helpers: str) -> Pairs:
    """Load pairs with one of MONAI's datasets, for ever."""
    from monai import data, transforms

    # Only what is a Transform of MONAI's does it cache.
    class NormalisePair(transforms.Transform):  # type: ignore[misc]
        """z-score of the MRI, and the PET by the MRI's statistics."""

        num_calls = 0

        def __call__(self, pair: dict[str, Any]) -> dict[str, Any]:
            NormalisePair.num_calls += 1
            mean, std = pair["mri"].mean(), pair["mri"].std(correction=0)
            pet = (pair["pet"] - RATIO * mean) / (RATIO * std)
            return {"mri": (pair["mri"] - mean) / std, "pet": pet}

    index: Index = load_index(work / "cached")
    folder = work / "conformed"
    pairs = [
        {name: str(folder / f"{row.subject}_{name}.nii.gz") for name in ("mri", "pet")}
        for row in index.select("train")
    ]
    steps = transforms.Compose(
        [
            transforms.LoadImaged(("mri", "pet"), reader="NibabelReader", image_only=True),
            transforms.EnsureChannelFirstd("mri", channel_dim="no_channel"),
            transforms.EnsureChannelFirstd("pet", channel_dim=-1),
            transforms.EnsureTyped(("mri", "pet"), dtype=torch.float32, track_meta=False),
            NormalisePair(),
        ]
    )
    if kind == "monai_cache":
        dataset = data.CacheDataset(pairs, steps, num_workers=2, progress=False)
    elif kind == "monai_persistent":
        dataset = data.PersistentDataset(pairs, steps, work / "persistent")
        list(dataset)  # the first pass writes
        before = NormalisePair.num_calls
        list(dataset)
        if NormalisePair.num_calls > before:
            sys.exit("PersistentDataset does not keep the normalised tensors")
    else:
        dataset = data.Dataset(pairs, steps)
    # A sampler that does not end: starting workers anew for each epoch of four would be unfair.
    sampler = itertools.cycle(range(len(pairs)))
    options = {"batch_size": micro_batch, "sampler": _Endless(sampler)}
    if helpers == "in_thread":
        loader = data.ThreadDataLoader(dataset, **options, buffer_size=2, num_workers=0)
    else:
        loader = data.DataLoader(dataset, **options, num_workers=2 if helpers == "with_2" else 0)
    return ((batch["mri"], batch["pet"]) for batch in loader)


class _Endless(torch.utils.data.Sampler[int]):
    def __init__(self, order: Iterator[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return self._order


def memory_copies(micro_batch: int) -> Pairs:
    """Copy the bytes of a micro-batch's tensors."""
    mri = torch.rand(micro_batch, 1, *MRI_GRID.shape)
    pet = torch.rand(micro_batch, 2, *PET_GRID.shape)
    torch.set_num_threads(1)
    copies = torch.empty_like(mri), torch.empty_like(pet)
    while True:
        yield copies[0].copy_(mri), copies[1].copy_(pet)


def open_pairs(contender: str, work: Path, micro_batch: int, num_pairs: int) -> Pairs:
    """Start a contender."""
    if contender == "memory_copy":
        return memory_copies(micro_batch)
    if contender.startswith("dali"):
        folder = work / ("cached" if contender == "dali_cache" else "direct")
        return dali_pairs(folder, micro_batch, num_pairs)
    kind, dataset, *helpers = contender.split("_", 2)
    return monai_pairs(f"{kind}_{dataset}", work, micro_batch, "".join(helpers))


CONTENDERS = (
    "dali_cache",
    "dali_nii_gz",
    "monai_dataset",
    "monai_dataset_with_2",
    "monai_persistent",
    "monai_persistent_with_2",
    "monai_persistent_in_thread",
    "monai_cache",
    "monai_cache_with_2",
    "memory_copy",
)


def measure(contender: str, work: Path, micro_batch: int, seconds: float) -> dict[str, float]:
    """Pairs per second of one contender, over at least `seconds` and twelve micro-batches."""
    pairs = open_pairs(contender, work, micro_batch, 100_000)
    for _ in range(_SKIPPED):
        mri, pet = next(pairs)
    if mri.dtype != torch.float32 or 4 * (mri.numel() + pet.numel()) != micro_batch * _BYTES:
        sys.exit(f"{contender} does not deliver the pair that the others do")
    started, count = time.perf_counter(), 0
    while count < 12 or time.perf_counter() - started < seconds:
        next(pairs)
        count += 1
    return {"rate": micro_batch * count / (time.perf_counter() - started)}


def endure(contender: str, work: Path, num_pairs: int, console: Console) -> None:
    """Resident memory of the process and its children over many pairs."""
    process = psutil.Process()
    table = Table("pairs", "resident memory (GiB)", "pairs per second")
    started = time.perf_counter()
    for count, _ in enumerate(open_pairs(contender, work, 1, num_pairs), start=1):
        if count in (100, 1000) or count % 2000 == 0:
            family = [process, *process.children(recursive=True)]
            resident = sum(each.memory_info().rss for each in family) / 2**30
            rate = count / (time.perf_counter() - started)
            table.add_row(str(count), f"{resident:.3f}", f"{rate:.1f}")
    console.print(table)


def in_own_process(contender: str, options: argparse.Namespace) -> float:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, str(options.work), "--only", contender]
    command += ["--seconds", str(options.seconds), "--micro-batch", str(options.micro_batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contender}: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["rate"])


def show(rates: dict[str, list[float]], console: Console) -> None:
    """Print medians over rounds, of rates and of their ratios within a round."""
    table = Table("", "pairs per second", "spread")
    references = [name for name in ("monai_dataset", "memory_copy") if name in rates]
    for reference in references:
        table.add_column(f"/ {reference}")
    for name, values in rates.items():
        ratios = (
            statistics.median(a / b for a, b in zip(values, rates[reference], strict=True))
            for reference in references
        )
        spread = f"{min(values):.2f} to {max(values):.2f}"
        cells = [f"{statistics.median(values):.2f}", spread, *(f"{r:.2f}" for r in ratios)]
        table.add_row(name, *cells)
    console.print(table)
    if {"dali_cache", "monai_persistent"} <= set(rates):
        of_persistent = [values for name, values in rates.items() if "persistent" in name]
        best = [max(of_round) for of_round in zip(*of_persistent, strict=True)]
        ratio = statistics.median(a / b for a, b in zip(rates["dali_cache"], best, strict=True))
        console.print(f"dali_cache / the better of PersistentDataset: {ratio:.2f}")
    packages = ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "monai", "nibabel", "numpy", "nvidia-dali-cuda120")
    )
    console.print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )
    console.print(packages)


def main() -> None:
    """Measure all, or (in a process of its own) one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--subjects", type=int, default=6, help="two of them are not trained on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--micro-batch", type=int, default=1, help="pairs delivered at a time")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--endurance", type=int, metavar="PAIRS", help="watch memory instead")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    console = Console(width=110)
    if options.only:
        found = measure(options.only, options.work, options.micro_batch, options.seconds)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    make_images(options.work, options.subjects)
    if options.endurance:
        for contender in options.contenders:
            console.print(contender)
            endure(contender, options.work, options.endurance, console)
        return
    rates: dict[str, list[float]] = {name: [] for name in options.contenders}
    for number in range(options.rounds):
        # Not always after the same neighbour.
        shift = number % len(options.contenders)
        for name in (*options.contenders[shift:], *options.contenders[:shift]):
            rates[name].append(in_own_process(name, options))
            console.print(f"round {number + 1}: {name} {rates[name][-1]:.2f} pairs per second")
    show(rates, console)


if __name__ == "__main__":
    with interruptible():
        main()
