"""What it costs to read a T1w from `.nii.gz`: the libraries, and the whole way to a float32 array.

    python benchmarks/inflate.py [--repeats 7]

The image is the MNI152 template of nilearn on 256^3 voxels with Rician noise, int16, gzip level 6,
about 20 MB; once as the array lies in memory (RAS), once sagittal (PSR), as most scanners write.
`zlib_ng` and `indexed_gzip` are measured where they are installed. Ways are measured in turn, in
one process, on one thread; seconds of CPU, so that other work on the machine counts little: median
(least) over the repeats, and the ratio of the medians to the first line.
"""

import argparse
import gzip
import hashlib
import importlib
import importlib.metadata
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from interruption import interruptible
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nilearn.datasets import load_mni152_template

from ganbert.data.nifti import read_volume

Way = Callable[[Path], object]
_LIBRARIES = {
    "gzip": ("gzip", "GzipFile"),
    "isal": ("isal.igzip", "IGzipFile"),
    "zlib_ng": ("zlib_ng.gzip_ng", "GzipNGFile"),
    "indexed_gzip": ("indexed_gzip", "IndexedGzipFile"),
}
_SIZE, _NOISE = 256, 40.0


def noisy_head(seed: int = 0) -> np.ndarray:
    """Return (256, 256, 256) float32, RAS: the template at 0..4095 in Rician noise."""
    voxels = np.asarray(load_mni152_template(resolution=1).dataobj, np.float32)
    head = np.zeros((_SIZE,) * 3, np.float32)
    starts = [(_SIZE - size) // 2 for size in voxels.shape]
    place = tuple(
        slice(start, start + size) for start, size in zip(starts, voxels.shape, strict=True)
    )
    head[place] = voxels * (4095 / voxels.max())
    rng = np.random.default_rng(seed)
    real, imaginary = (rng.normal(0, _NOISE, head.shape).astype(np.float32) for _ in range(2))
    return np.hypot(head + real, imaginary)


def write_images(folder: Path) -> dict[str, Path]:
    """Write the image in both orders of axes; return order -> file."""
    image = nib.Nifti1Image(np.rint(noisy_head()).astype(np.int16), np.eye(4))
    files = {}
    for order in ("RAS", "PSR"):
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(order))
        files[order] = folder / f"{order}.nii.gz"
        content = image.as_reoriented(turn).to_bytes()
        files[order].write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
    return files


def inflate(module: str, name: str) -> Way:
    """Return a function that decompresses a file to its end in pieces of 1 MB."""
    kind = getattr(importlib.import_module(module), name)

    def way(path: Path) -> None:
        with path.open("rb") as raw, kind(fileobj=raw, mode="rb") as stream:
            while stream.read(1 << 20):
                pass

    return way


def read_with_nibabel(path: Path) -> np.ndarray:
    """Read as most tools do: no checksum, then a copy in the order of the array."""
    image = nib.load(path)
    voxels = apply_orientation(
        np.asarray(image.dataobj, np.float32)[..., np.newaxis], io_orientation(image.affine)
    )
    return np.ascontiguousarray(voxels.transpose(3, 1, 2, 0))


def read_twice(path: Path) -> np.ndarray:
    """Read as `read_volume` did before: once to the checksum, once by nibabel."""
    inflate(*_LIBRARIES["gzip"])(path)
    return read_with_nibabel(path)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the compressed file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure(ways: dict[str, tuple[Way, Path]], repeats: int) -> dict[str, list[float]]:
    """Return seconds of CPU of each way, measured in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (way, path) in ways.items():
            start = time.process_time()
            way(path)
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


def table(title: str, seconds: dict[str, list[float]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {title} | s of CPU: median (least) | times as fast |", "|---|---|---|"]
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(f"| {name} | {median:.3f} ({min(values):.3f}) | {first / median:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder))
        libraries: dict[str, tuple[Way, Path]] = {}
        versions = [f"Python {platform.python_version()}", platform.machine()]
        for package, (module, name) in _LIBRARIES.items():
            try:
                libraries[package] = (inflate(module, name), files["RAS"])
            except ImportError:
                continue
            if package != "gzip":
                versions.append(f"{package} {importlib.metadata.version(package)}")
        libraries["SHA-256 of the file"] = (hash_file, files["RAS"])
        size = files["RAS"].stat().st_size / 1e6
        sys.stdout.write(f"{', '.join(versions)}; {size:.1f} MB for {_SIZE}^3 int16\n\n")
        sys.stdout.write(table("decompress", measure(libraries, repeats)) + "\n")
        for order, file in files.items():
            ways = {
                "as before: zlib to the checksum, nibabel, copy": (read_twice, file),
                "nibabel and copy, no checksum": (read_with_nibabel, file),
                "`read_volume`": (read_volume, file),
            }
            sys.stdout.write("\n" + table(f"whole read, {order}", measure(ways, repeats)) + "\n")


if __name__ == "__main__":
    with interruptible():
        main()
