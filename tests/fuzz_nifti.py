"""Broken NIfTI files by the hundred: each is read, or refused in one line. A process of its own.

    python -m tests.fuzz_nifti --seed 0 --count 500 --megabytes 400 --seconds 5

A sound file (one of several formats) is changed at random, in its header, in its voxels or in its
gzip stream; then it is read, and what could be read is conformed. Any other exception than a
`GanbertError`, more memory than allowed (by the system's limit) or a case that takes too long ends
the process with a traceback that names the case. Prints how many were read and refused.
"""

import argparse
import contextlib
import gzip
import json
import resource
import signal
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.conform import concentric_affine, conform_mri, conform_pet
from ganbert.data.nifti import check_header, read_volume
from ganbert.errors import GanbertError
from tests.bids_tree import affine, head

KINDS = {
    "a.nii": nib.Nifti1Image,
    "b.nii.gz": nib.Nifti1Image,
    "c.nii": nib.Nifti2Image,
    "d.nii.gz": nib.Nifti2Image,
    "e.img": nib.Nifti1Pair,
    "f.img.gz": nib.nifti2.Nifti2Pair,
}
# Values at which fields break: the ends of their types, NaN, infinity, powers of two.
EDGES = [
    np.array(value, dtype).tobytes()
    for dtype, values in {
        "<i2": (0, 1, -1, 2, 7, 8, 255, 32767, -32768),
        "<i4": (0, -1, 2**31 - 1, -(2**31)),
        "<i8": (0, -1, 2**62, 2**63 - 1, -(2**63)),
        "<f4": (0, -1, 1e-38, 1e38, -1e38, np.nan, np.inf, -np.inf, 100, 0.06),
        "<f8": (0, -1, 1e-300, 1e300, np.nan, np.inf, -np.inf),
    }.items()
    for value in values
]


def sound_files() -> dict[str, dict[str, bytes]]:
    """Name of the image -> its files, name to bytes."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in KINDS.items():
            place = Path(folder, name.split(".")[0])
            place.mkdir()
            image = kind((head(0) / 4).astype(np.int16), affine())
            image.header.set_slope_inter(0.5, 1.0)
            image.set_qform(affine(), "scanner")
            image.to_filename(place / name)
            files[name] = {path.name: path.read_bytes() for path in place.iterdir()}
    return files


def mutate(content: bytes, rng: np.random.Generator, *, packed: bool) -> bytes:
    """Return the file with something wrong; in the stream itself, or behind its compression."""
    if packed and rng.random() < 0.7:
        inner = mutate(gzip.decompress(content), rng, packed=False)
        return gzip.compress(inner, compresslevel=1, mtime=0)
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        # Mostly the header.
        where = int(rng.integers(0, 540 if rng.random() < 0.9 else len(changed) + 1))
        choice = rng.random()
        if choice < 0.5:
            value = EDGES[rng.integers(len(EDGES))]
            changed[where : where + len(value)] = value
        elif choice < 0.8:
            changed[where : where + 1] = rng.bytes(1)
        elif choice < 0.9:
            value = rng.bytes(int(rng.integers(1, 200)))
            changed[where : where + len(value)] = value
        elif choice < 0.95:
            del changed[int(rng.integers(0, len(changed) + 1)) :]
        else:
            changed[where:where] = rng.bytes(int(rng.integers(1, 5000)))
    return bytes(changed)


def use(path: Path) -> bool:
    """Read and conform; return whether that went well."""
    try:
        check_header(path)
        volume = read_volume(path)
        conformed = conform_mri(volume, TINY_MRI_GRID)
        place = concentric_affine(conformed.volume.affine, TINY_MRI_GRID, TINY_PET_GRID)
        pet = conform_pet(volume, place, TINY_PET_GRID)
        if not (np.isfinite(pet.array).all() and np.isfinite(conformed.volume.array).all()):
            raise AssertionError("values that are not finite came through")
    except GanbertError as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error
        return False
    return True


def limit_memory(megabytes: int) -> None:
    """Forbid this process to take more than it has by so much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def take_too_long(*_: object) -> None:
    """Handle the alarm."""
    raise TimeoutError("a case takes too long")


@contextlib.contextmanager
def at_most(seconds: float):
    """Raise `TimeoutError` in the `with` after so many seconds."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser()
    for name in ("--seed", "--count", "--megabytes", "--seconds"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    files = sound_files()
    counts = {"read": 0, "refused": 0}
    signal.signal(signal.SIGALRM, take_too_long)
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in files.items():
            for part, content in parts.items():
                Path(folder, part).write_bytes(content)
            if not use(Path(folder, name)):
                raise AssertionError(f"{name} should be sound")
        limit_memory(options.megabytes)
        for case in range(options.seed, options.seed + options.count):
            rng = np.random.default_rng(case)
            name = list(files)[rng.integers(len(files))]
            target = list(files[name])[rng.integers(len(files[name]))]
            for part, content in files[name].items():
                changed = mutate(content, rng, packed=part.endswith(".gz"))
                Path(folder, part).write_bytes(changed if part == target else content)
            try:
                with at_most(options.seconds):
                    is_read = use(Path(folder, name))
            except BaseException as error:
                error.add_note(f"case {case}: {name}, {target} changed")
                raise
            counts["read" if is_read else "refused"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
