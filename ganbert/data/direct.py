"""Images of a row without a cache: read from the dataset and conformed anew, each time.

`prepare --no-cache` makes the same pass over a dataset and the same index, but instead of images it
keeps a note beside each row of where they come from:

    cache/sub-01_trc-18FAV45_source.json       the pair, as planned, and the grids

`read_image` is the door for whoever wants an image of a row, cached or not; `DirectReader` feeds
the DALI graph, in processes of its own. It saves the disk of a cache and costs its speed.
"""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import write_text
from ganbert.config import Grid
from ganbert.data.index import CachedImage, Row
from ganbert.data.nifti import read_cache, to_dtype
from ganbert.data.row_images import RowImages, conform_pair
from ganbert.data.row_record import input_files
from ganbert.data.volume import Pair, Volume
from ganbert.errors import DatasetError

# Type on disk of each image of the cache, by the suffix of its name.
STORED_AS: dict[str, type] = {
    "T1w": np.uint8,
    "pet": np.float32,
    "truth": np.float32,
    "dseg": np.int32,
}


class Source(BaseModel):
    """Where the images of a row come from, and what is done to them.

    Of the subject it holds what paths and the factors of frames and units say, and nothing else.

    Attributes
    ----------
    pair : with absolute paths
    files : (path, size in bytes, time of change in ns) of each input, as it was measured
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pair: Pair
    mri_grid: Grid
    pet_grid: Grid
    files: tuple[tuple[str, int, int], ...]


def save_source(image_file: Path, pair: Pair, mri_grid: Grid, pet_grid: Grid) -> None:
    """Write the note that stands in for the images of a row.

    Parameters
    ----------
    image_file : where the cache would have one of them

    Raises
    ------
    OutputError
        If it cannot be written.
    DatasetError
        If an input is gone.
    """
    paths = {
        name: path and os.path.abspath(path)
        for name, path in dataclasses.asdict(pair).items()
        if name in ("mri", "pet", "truth", "dseg", "reference_mask")
    }
    # Dose, weight and dates have had their say in `recast`; the diagnosis is the split's alone.
    impersonal = dataclasses.replace(
        pair, facts={}, dseg_table=None, diagnosis=None, side=None, **paths
    )
    files = tuple(_state_of(file) for file in input_files(impersonal))
    source = Source(pair=impersonal, mri_grid=mri_grid, pet_grid=pet_grid, files=files)
    write_text(source_file(image_file), source.model_dump_json(indent=1) + "\n")


def source_file(image_file: Path) -> Path:
    """Return where the note of a row lies, from the name of one of its images."""
    row_name, _ = _parts(image_file)
    return image_file.with_name(f"{row_name}_source.json")


def read_image(folder: Path, image: CachedImage, unit: str = "arbitrary") -> Volume:
    """Read an image of a row, from the cache or, where there is none, from the dataset.

    Parameters
    ----------
    folder : of the index

    Raises
    ------
    ImageError, DatasetError
        If the image, or what it comes from, is missing or not usable.
    """
    path = folder / image.path
    if path.exists() or not source_file(path).exists():
        return read_cache(path, unit)
    images = _read_source(source_file(path))
    _, kind = _parts(path)
    volume = {"pet": images.pet, "truth": images.truth, "dseg": images.dseg}.get(kind)
    return images.mri.volume if volume is None else volume


def stored_sha256(volume: Volume, kind: str) -> str:
    """SHA-256 of the voxels as a cache would store them: the checksum of an image without file."""
    return hashlib.sha256(to_dtype(volume.array, np.dtype(STORED_AS[kind])).tobytes()).hexdigest()


def image_sha256(folder: Path, image: CachedImage) -> str:
    """Checksum of an image that is made anew from the dataset.

    Raises
    ------
    ImageError, DatasetError
        As `read_image`.
    """
    return stored_sha256(read_image(folder, image), _parts(folder / image.path)[1])


def origin_of(folder: Path, image: CachedImage) -> Path:
    """Return the file of the dataset that an image is made anew from.

    Raises
    ------
    DatasetError
        If the note of its row is missing or damaged.
    """
    pair = _load_source(source_file(folder / image.path)).pair
    _, kind = _parts(folder / image.path)
    return Path({"pet": pair.pet, "truth": pair.truth, "dseg": pair.dseg}.get(kind) or pair.mri)


class DirectReader:
    """Reads the images of a sample, in a process of its own: the source of a DALI graph.

    Parameters
    ----------
    folder : of the index
    rows : of a split
    positions : in `rows`, one per sample
    """

    def __init__(self, folder: Path, rows: Sequence[Row], positions: Sequence[int]) -> None:
        self._files = [str(source_file(folder / row.mri.path)) for row in rows]
        self._positions = list(positions)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Unpickled in a process of DALI's, which would wait for ever for a rank that was killed.
        parent = multiprocessing.parent_process()
        if parent is not None:
            # A terminal sends Ctrl-C to every process; the rank finishes its step first.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=_end_after, args=(parent,), daemon=True).start()

    def __call__(self, sample: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Any]:
        """Answer DALI, which counts samples: `read` of the one that it asks for."""
        return self.read(sample.idx_in_epoch)

    def read(self, sample: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Any]:
        """Return MRI (1, D, H, W) uint8, PET (T, D, H, W) float32 and position of a sample.

        Raises
        ------
        StopIteration
            Behind the last sample.
        ImageError, DatasetError
            If a file is not usable any more.
        """
        if sample >= len(self._positions):
            raise StopIteration
        position = self._positions[sample]
        source = _load_source(Path(self._files[position]))
        _check_unchanged(source)
        images = conform_pair(_for_training(source.pair), source.mri_grid, source.pet_grid)
        mri = images.mri.volume.array.astype(np.uint8)
        return mri, images.pet.array, np.array([position], np.int32)

    def check(self) -> None:
        """Look for the files of all rows, so that a hole shows before any training work.

        Raises
        ------
        DatasetError
            If one is missing, or has changed since it was measured.
        """
        for file in self._files:
            _check_unchanged(_load_source(Path(file)))


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(0)


def _for_training(pair: Pair) -> Pair:
    """Leave out what training does not look at."""
    needs_dseg = pair.recast is not None and pair.recast.reference_labels
    return dataclasses.replace(pair, truth=None, dseg=pair.dseg if needs_dseg else None)


def _parts(image_file: Path) -> tuple[str, str]:
    row_name, _, kind = image_file.stem.rpartition("_")
    return row_name, kind


@functools.lru_cache(maxsize=1)
def _read_source(file: Path) -> RowImages:
    source = _load_source(file)
    _check_unchanged(source)
    images = conform_pair(source.pair, source.mri_grid, source.pet_grid)
    for volume in (images.mri.volume, images.pet, images.truth, images.dseg):
        if volume is not None:
            volume.array.flags.writeable = False  # whoever asks next gets the same array
    return images


def _state_of(file: Path | str) -> tuple[str, int, int]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise DatasetError(
            file,
            expected="an image of the dataset, which was prepared without a cache",
            found=error.strerror or type(error).__name__,
            remedy="bring it back, or run `ganbert prepare` again",
        ) from error
    return str(file), status.st_size, status.st_mtime_ns


def _check_unchanged(source: Source) -> None:
    """Refuse other images than those whose statistics stand in the index."""
    for state in source.files:
        if _state_of(state[0]) != state:
            raise DatasetError(
                state[0],
                expected="the image that was prepared",
                found="one of another size or time",
                remedy="run `ganbert prepare` again",
            )


def _load_source(file: Path) -> Source:
    try:
        return Source.model_validate_json(file.read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "something else"
        raise DatasetError(
            file,
            expected="a note of where a row comes from",
            found=found,
            remedy="run `ganbert prepare` again",
        ) from error
