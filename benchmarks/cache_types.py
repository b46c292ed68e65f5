"""What a type costs and keeps in the streaming cache: error, bytes, and speed of the DALI graph.

    python benchmarks/cache_types.py WORK [--repeats 7] [--volumes 12]
    python benchmarks/cache_types.py WORK --part errors
    python benchmarks/cache_types.py WORK --part speed --tables "PET, place" --repeats 20

WORK keeps two datasets, made in the first run: the MNI152 template (`real_t1w.py`) and one subject
of the phantom at the paper's size. Errors are against the conformed image in float32 before any
rounding, over the voxels that are not 0 and stay finite. The noise of an MRI is estimated in the
head from its finest wavelet coefficients (median / 0.6745: Donoho & Johnstone 1994), that of a
phantom's PET is known: PET minus truth. "ids" is the rms error in token ids (1000 times the
normalised value), "lost" counts voxels that become infinite.

Speed: files in the page cache, `readers.file` -> reinterpret -> multiply-add on the CPU as
`data/pipeline.py` was then (decision 12), with the payload behind headers of several lengths,
sliced off (as it is on a GPU and for rotations) or scaled along (as on the CPU), read or
memory-mapped. Each cell of a table is measured in turn with the others, in one process, so that
other work on the machine falls on all.
"""

import argparse
import contextlib
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
from interruption import interruptible
from nvidia.dali import Pipeline
from real_t1w import make_real_t1w

from ganbert.config import GRIDS
from ganbert.data.conform import (
    concentric_affine,
    conform_pet,
    grid_affine,
    head_centre,
    otsu_threshold,
    suggest_intensity_ratio,
)
from ganbert.data.nifti import HEADER_BYTES, read_volume
from ganbert.data.phantom import make_cohort
from ganbert.data.volume import FloatArray, Volume

MRI_GRID, PET_GRID = GRIDS["paper"]
MRI_SHAPE = (1, *MRI_GRID.shape)
PET_SHAPE = (2, *PET_GRID.shape)
MRI_TYPES, PET_TYPES = ("uint8", "int16", "float16", "float32"), ("int16", "float16", "float32")
_WHITEST = 255.0
# The hottest voxels then come to 1e5 Bq/mL, as FDG's may.
BQ_PER_SUVR = 5e4
_NUM_FILES = 4


def unrounded_mri(path: Path) -> Volume:
    """Conform as `conform_mri` does, without its last step, the rounding to 0..255."""
    mri = read_volume(path)
    low, high = np.percentile(mri.array, (0.1, 99.9))
    scaled = ((mri.array - low) * (_WHITEST / (high - low))).clip(0, _WHITEST).astype(np.float32)
    scaled_mri = Volume(scaled, mri.affine, mri.unit)
    affine = grid_affine(head_centre(scaled_mri), MRI_GRID)
    return conform_pet(scaled_mri, affine, MRI_GRID)


def store(array: FloatArray, kind: str, slope: float = 1.0) -> tuple[FloatArray, int]:
    """Return what is read back of `array` / `slope`, and how many voxels are not finite then."""
    if np.dtype(kind).kind in "iu":
        stored = np.rint(array / np.float32(slope)).astype(kind)
    else:
        with np.errstate(over="ignore"):
            stored = (array / np.float32(slope)).astype(kind)
    back = stored.astype(np.float32) * np.float32(slope)
    return back, int(np.count_nonzero(~np.isfinite(back)))


def finest_noise(array: FloatArray) -> float:
    """Estimate noise in the head from the finest diagonal coefficients of a Haar wavelet."""
    image = array[0]
    head = image[::2, ::2, ::2] > otsu_threshold(image)
    for axis in range(3):
        even, odd = (np.take(image, np.arange(s, image.shape[axis], 2), axis) for s in (0, 1))
        image = (even - odd) / np.float32(np.sqrt(2))
    return float(np.median(np.abs(image[head])) / 0.6745)


@dataclass(frozen=True)
class Exact:
    """An image before it is stored, with what its errors are measured by.

    Attributes
    ----------
    noise : standard deviation of its noise
    id_step : one token id, in the image's unit
    """

    name: str
    array: FloatArray
    noise: float
    id_step: float


def error_line(image: Exact, kind: str, slope: float = 1.0) -> str:
    """Return a line of the table of errors."""
    exact = image.array
    back, num_lost = store(exact, kind, slope)
    finite = np.isfinite(back)
    difference = (back - exact)[finite & (exact != 0)].astype(np.float64)
    rms, largest = float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).max())
    span = float(exact.max() - exact.min())
    psnr = f"{20 * np.log10(span / rms):.1f}" if rms else "exact"
    size = exact.size * np.dtype(kind).itemsize / 1e6
    scaled = "" if slope == 1.0 else f", slope {slope:.3g}"
    return (
        f"| {image.name} | {kind}{scaled} | {size:.1f} | {rms:.2g} | {largest:.2g} "
        f"| {largest / span:.1e} | {rms / image.noise:.1e} | {psnr} | {rms / image.id_step:.2g} "
        f"| {num_lost} |"
    )


def mri_images(work: Path) -> list[Exact]:
    """Return the template and the phantom's T1w, making both in the first run."""
    if not (work / "t1w").exists():
        make_real_t1w(work / "t1w")
    if not (work / "bids").exists():
        make_cohort(work / "bids", num_subjects=1, tracer="AV45", seed=0, size="paper", jobs=1)
    files = {
        "MNI152 T1w": next((work / "t1w").rglob("*_T1w.nii.gz")),
        "phantom T1w": next((work / "bids").glob("sub-*/anat/*_T1w.nii.gz")),
    }
    arrays = {name: unrounded_mri(file).array for name, file in files.items()}
    return [
        Exact(name, array, finest_noise(array), float(np.rint(array).std()) / 1000)
        for name, array in arrays.items()
    ]


def pet_images(work: Path) -> list[Exact]:
    """Return the phantom's PET in SUVR and in Bq/mL."""
    t1w = unrounded_mri(next((work / "bids").glob("sub-*/anat/*_T1w.nii.gz")))
    affine = concentric_affine(t1w.affine, MRI_GRID, PET_GRID)
    pet, truth = (
        conform_pet(read_volume(next((work / "bids").rglob(name))), affine, PET_GRID).array
        for name in ("*AV45_pet.nii.gz", "*desc-truth_pet.nii.gz")
    )
    noise = float((pet - truth)[:, truth[0] > 0.1 * truth.max()].std())
    rounded = np.rint(t1w.array)
    p999, mean, std = (float(x) for x in (np.percentile(pet, 99.9), rounded.mean(), rounded.std()))
    id_step = suggest_intensity_ratio([p999], [mean], [std]) * std / 1000
    return [
        Exact(f"phantom PET, {unit}", pet * np.float32(k), noise * k, id_step * k)
        for unit, k in (("SUVR", 1.0), ("Bq/mL", BQ_PER_SUVR))
    ]


def print_errors(work: Path) -> None:
    """Print the table of errors, and noise and range of each image."""
    lines = [
        "| image | type | MB | rms error | largest | / range | / noise | PSNR, dB | ids | lost |",
        "|---" * 10 + "|",
    ]
    mris = mri_images(work)
    pets = pet_images(work)
    steps = np.iinfo(np.int16).max
    for image in mris:
        lines += [
            error_line(image, "uint8"),
            error_line(image, "int16", _WHITEST / steps),
            error_line(image, "float16"),
        ]
    for image in pets:
        top = float(np.abs(image.array).max())
        lines += [
            error_line(image, "int16", top / steps),
            error_line(image, "float16"),
            error_line(image, "float16", top / 1024),
        ]
    for image in mris + pets:
        low, high = image.array.min(), image.array.max()
        size = image.array.nbytes / 1e6
        lines.append(
            f"{image.name}: {low:.3g} to {high:.3g}, noise {image.noise:.2g}, "
            f"one token id {image.id_step:.2g}; {size:.1f} MB in float32  "
        )
    lines.insert(-len(mris + pets), "")
    sys.stdout.write("\n".join(lines) + "\n\n")


@dataclass(frozen=True)
class Cell:
    """One way to read one type.

    Attributes
    ----------
    sliced : the header is cut off before the multiply-add, else scaled along
    mapped : the reader maps files instead of reading them
    """

    shape: tuple[int, ...]
    kind: str
    header: int = HEADER_BYTES
    sliced: bool = False
    mapped: bool = False

    @property
    def name(self) -> str:
        """Name of its files, and of its line."""
        return f"{self.kind}-{self.header}-{np.prod(self.shape)}"


def write_files(folder: Path, cell: Cell) -> list[str]:
    """Write files of noise behind a header of zeros; they stay in the page cache."""
    rng, dtype = np.random.default_rng(0), np.dtype(cell.kind)
    files = []
    for number in range(_NUM_FILES):
        path = folder / f"{cell.name}-{number}.nii"
        if not path.exists():
            payload = rng.integers(0, 255, int(np.prod(cell.shape)), np.uint8).astype(dtype)
            path.write_bytes(bytes(cell.header) + payload.tobytes())
        files.append(str(path))
    return files


def build(cell: Cell, files: Sequence[str]) -> Any:
    """Build the graph of `data/pipeline.py` for one image and any type."""
    dtype = np.dtype(cell.kind)
    stored = {
        "uint8": types.UINT8,
        "int16": types.INT16,
        "float16": types.FLOAT16,
        "float32": types.FLOAT,
    }[cell.kind]
    factors = [np.array([0.01], np.float32), np.array([-1.0], np.float32)]
    with Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1) as graph:
        raw, _ = fn.readers.file(
            files=list(files), dont_use_mmap=not cell.mapped, prefetch_queue_depth=1
        )
        scale, offset = fn.external_source(
            source=lambda _: [factor[np.newaxis] for factor in factors], num_outputs=2, batch=True
        )
        if cell.sliced:
            image = fn.reinterpret(raw[cell.header :], shape=cell.shape, dtype=stored)
        else:
            flat = (cell.header // dtype.itemsize + int(np.prod(cell.shape)),)
            image = fn.reinterpret(raw, shape=flat, dtype=stored)
        if cell.kind == "float16":
            image = fn.cast(image, dtype=types.FLOAT)
        graph.set_outputs(image * scale + offset)
    graph.build()
    return graph


def rounds(cells: Sequence[Cell], folder: Path, repeats: int, volumes: int) -> Iterator[list[Any]]:
    """Yield (seconds, seconds of CPU) a volume of each cell, once for each round."""
    files = {cell: write_files(folder, cell) for cell in cells}
    for _ in range(repeats + 1):
        found = []
        for cell in cells:
            graph = build(cell, files[cell])
            for _ in range(4):
                graph.run()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(volumes):
                graph.run()
            found.append(
                (
                    (time.perf_counter() - wall) / volumes,
                    (time.process_time() - cpu) / volumes,
                )
            )
            del graph
        yield found


def print_speed(title: str, cells: Sequence[Cell], work: Path, repeats: int, volumes: int) -> None:
    """Print a table of speed; ratios are medians over rounds of the ratio to the first line."""
    folder = work / "files"
    folder.mkdir(exist_ok=True)
    # The first round brings the files into the page cache.
    found = list(rounds(cells, folder, repeats, volumes))[1:]
    lines = [
        f"| {title} | header | | reader | volumes/s | CPU ms a volume | CPU, ratio to the first |",
        "|---" * 7 + "|",
    ]
    for index, cell in enumerate(cells):
        wall = statistics.median(round_[index][0] for round_ in found)
        cpu = statistics.median(round_[index][1] for round_ in found)
        ratios = sorted(round_[index][1] / round_[0][1] for round_ in found)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(
            f"| {cell.kind} | {cell.header} | {'sliced off' if cell.sliced else 'scaled along'} "
            f"| {'mmap' if cell.mapped else 'read'} | {1 / wall:.1f} | {1000 * cpu:.2f} | {ratio} |"
        )
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()
    for path in folder.iterdir():
        path.unlink()


def speed_cells() -> dict[str, list[Cell]]:
    """Title -> what is compared."""
    headers = (352, 512, 4096)
    return {
        "MRI 256^3": [Cell(MRI_SHAPE, kind) for kind in MRI_TYPES],
        "PET 2 x 93 x 76 x 76": [Cell(PET_SHAPE, kind) for kind in PET_TYPES],
        **{
            f"{name}, place of the payload": [
                Cell(shape, kind, header, sliced) for sliced in (False, True) for header in headers
            ]
            for name, shape, kind in (("MRI", MRI_SHAPE, "uint8"), ("PET", PET_SHAPE, "float32"))
        },
        **{
            f"{name}, mapped or read": [
                Cell(shape, kind, header, sliced, mapped)
                for sliced in (False, True)
                for mapped in (False, True)
                for header in headers[::2]
            ]
            for name, shape, kind in (("MRI", MRI_SHAPE, "uint8"), ("PET", PET_SHAPE, "float32"))
        },
    }


def dali_version() -> str:
    """Return the version of the DALI that is installed, for one CUDA or another."""
    for name in ("nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--part", choices=("errors", "speed", "all"), default="all")
    parser.add_argument("--tables", default="", help="of speed: those with this in their title")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--volumes", type=int, default=12)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    place = f"Python {platform.python_version()}, NumPy {np.__version__}, DALI {dali_version()}"
    sys.stdout.write(f"{place}, {platform.machine()}\n\n")
    if options.part != "speed":
        print_errors(options.work)
    if options.part != "errors":
        for title, cells in speed_cells().items():
            if options.tables in title:
                print_speed(title, cells, options.work, options.repeats, options.volumes)


if __name__ == "__main__":
    with interruptible():
        main()
