"""The index: what `prepare` decided, in writing, as JSON beside the cache.

Data decides once. The rows, the subject-level split, the statistics, the checksums and the versions
that produced them stand here; training, evaluation and the exported model read them and compute
nothing again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import write_text
from ganbert.config import Grid
from ganbert.errors import ConfigError, DatasetError
from ganbert.strict import nearest_remedy
from ganbert.tracers import find_tracer

INDEX_NAME = "index.json"
SCHEMA_VERSION = 1
_ADDED = ("region_names", "frames", "reference", "cached")  # since the first files of this version
_MAX_NAMED = 3
Split = Literal["train", "val", "test"]
Times = tuple[float, ...]
AffineRows = tuple[tuple[float, float, float, float], ...]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CachedImage(_Entry):
    """One NIfTI of the cache.

    Attributes
    ----------
    path : relative to the folder of the index
    affine : tensor index (d, h, w, 1) to RAS+ mm
    sha256 : of the whole file; without a cache, of the voxels as one would store them
    mean, std, minimum, maximum, p999 : of all voxels, in the image's unit (p999: 99.9th percentile)
    """

    path: str
    affine: AffineRows
    sha256: str
    mean: float
    std: float
    minimum: float
    maximum: float
    p999: float


class Row(_Entry):
    """One MRI and PET pair in the cache.

    Attributes
    ----------
    mri : (1, D, H, W) uint8, 0..255, on the MRI grid
    pet : (T, D, H, W) float32, in `unit`, on the PET grid
    truth : noise-free PET on the PET grid, where the dataset has it
    dseg : region labels (1, D, H, W) on the PET grid, where the dataset has them
    sources : paths of the original images, relative to the dataset
    """

    subject: str
    session: str | None
    tracer: str
    unit: str
    split: Split
    frame_start_s: tuple[float, ...]
    frame_duration_s: tuple[float, ...]
    mri: CachedImage
    pet: CachedImage
    truth: CachedImage | None
    dseg: CachedImage | None
    sources: tuple[str, ...]


class Index(_Entry):
    """A whole prepared cohort.

    Attributes
    ----------
    mri_grid, pet_grid : concentric grids, centred on each subject's head
    intensity_ratio : suggested per tracer: the training PETs' tokens then fill the vocabulary
    region_names : label of a `dseg` -> name; empty where the dataset has no table (or the index is
        from before they were kept)
    frames : rule by which the PETs got their two frames, see `data/frames.py`
    reference : tracer -> reference region (or mask) by which `prepare` made SUVR; empty where it
        did not
    versions : of the packages that wrote the cache
    cached : whether the images lie in the cache; else they are made anew (`data/direct.py`)
    """

    schema_version: int
    mri_grid: Grid
    pet_grid: Grid
    intensity_ratio: dict[str, float]
    rows: tuple[Row, ...]
    versions: dict[str, str]
    region_names: dict[int, str] = {}
    frames: str = "as-is"
    reference: dict[str, str] = {}
    cached: bool = True

    def select(self, split: Split, tracer: str | None = None) -> list[Row]:
        """Rows of one split, and of one tracer if it is given, in the order of the index."""
        return [row for row in self.rows if row.split == split and tracer in (None, row.tracer)]


@dataclass(frozen=True)
class ReadIndex:
    """An index, and the SHA-256 of the bytes that it was read from, by which runs know it."""

    index: Index
    sha256: str


def training_tracer(where: Path, index: Index, asked: str | None = None) -> str:
    """Return the tracer to train on: what was asked for, or the only one that there is.

    Parameters
    ----------
    where : the prepared folder, for the error
    asked : any of its names, in any case

    Raises
    ------
    ConfigError
        If no row shows the tracer that was asked for, or there are several and none was.
    DatasetError
        If there are no training rows of it.
    """
    there, trained = (
        sorted({row.tracer for row in rows}) for rows in (index.rows, index.select("train"))
    )
    option = "--tracer"
    if asked is None and len(trained) > 1:
        remedy = f"choose one with {option}"
        expected = f"one tracer to train on of those in {where}"
        raise ConfigError(option, expected=expected, found=", ".join(trained), remedy=remedy)
    row = find_tracer(asked) if asked is not None else None
    name = row.name if row else asked
    if name is not None and name not in there:
        expected = f"a tracer of {where} ({', '.join(there)})"
        remedy = nearest_remedy(name, there)
        raise ConfigError(option, expected=expected, found=repr(asked), remedy=remedy)
    if not trained or (name is not None and name not in trained):
        raise DatasetError(
            where,
            expected=f"training rows{f' of {name}' if name else ''}",
            found="none",
            remedy="prepare more subjects",
        )
    return name or trained[0]


def suggested_ratio(data: Path, index: Index, tracer: str) -> float:
    """Return the intensity ratio that `prepare` suggests for a tracer.

    Raises
    ------
    DatasetError
        If there is none.
    """
    if tracer not in index.intensity_ratio:
        raise DatasetError(
            data,
            expected=f"a suggested intensity_ratio for {tracer}",
            found="none",
            remedy="set intensity_ratio in run.yaml, or run `ganbert prepare` again",
        )
    return index.intensity_ratio[tracer]


def frame_timing(rows: Sequence[Row]) -> tuple[Times, Times]:
    """Return start after injection and duration of each frame, s: the median over rows.

    The lower one where two are in the middle: their average may be a time of no scan.
    """
    starts = zip(*(row.frame_start_s for row in rows), strict=True)
    durations = zip(*(row.frame_duration_s for row in rows), strict=True)
    return tuple(map(median_low, starts)), tuple(map(median_low, durations))


def describe_odd_timing(rows: Sequence[Row]) -> str | None:
    """Name the rows of a tracer whose frames are others than the usual; None if there are none.

    Nobody starts the scanner to the second: a frame is the usual one if it starts at most a quarter
    of its duration earlier or later (design decision), and lasts as long, to a tenth. No two rows
    are then more than half a frame apart; with half of it each way they could be a whole one.
    """
    starts, durations = frame_timing(rows)
    odd = dict.fromkeys(
        f"sub-{row.subject}"
        for row in rows
        if any(
            abs(start - usual) > lasts / 4 or abs(duration - lasts) > lasts / 10
            for start, usual, duration, lasts in zip(
                row.frame_start_s, starts, row.frame_duration_s, durations, strict=True
            )
        )
    )
    if not odd:
        return None
    more = f" and {len(odd) - _MAX_NAMED} more" if len(odd) > _MAX_NAMED else ""
    usual = ", ".join(f"{s:g} to {s + d:g} s" for s, d in zip(starts, durations, strict=True))
    return f"other frames than {usual} (the median) in {', '.join(list(odd)[:_MAX_NAMED])}{more}"


def check_alike(data: Path, rows: Sequence[Row]) -> None:
    """Refuse training rows of a tracer that differ in unit or frame timing.

    Raises
    ------
    DatasetError
        Naming what there is.
    """
    units = sorted({row.unit for row in rows})
    # A generator cannot tell which of several units or frame timings is asked for.
    for name, found in (
        ("unit", ", ".join(units) if len(units) > 1 else None),
        ("frame timing", describe_odd_timing(rows)),
    ):
        if found is not None:
            raise DatasetError(
                data,
                expected=f"{rows[0].tracer} training rows of one {name}",
                found=found,
                remedy="prepare a dataset that agrees in it",
            )


def index_path(path: Path) -> Path:
    """Return the index file for a prepared folder or for the file itself."""
    return path / INDEX_NAME if path.is_dir() else path


def load_index(path: Path) -> Index:
    """Read the index of a prepared folder; raises what `read_index` does."""
    return read_index(path).index


def read_index(path: Path) -> ReadIndex:
    """Read the index of a prepared folder, and take its checksum of the same bytes.

    Raises
    ------
    DatasetError
        If it is missing, not an index, or of another schema version.
    """
    file = index_path(path)
    remedy = "run `ganbert prepare` first and give its output folder"
    try:
        content = file.read_bytes()
        index = Index.model_validate_json(content.decode())
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise DatasetError(file, expected="an index", found=found, remedy=remedy) from error
    except (ValidationError, UnicodeDecodeError) as error:
        found = str(error).splitlines()[0]
        raise DatasetError(file, expected="a valid index", found=found, remedy=remedy) from error
    if index.schema_version != SCHEMA_VERSION:
        found = f"version {index.schema_version}"
        expected = f"schema version {SCHEMA_VERSION}"
        raise DatasetError(
            file, expected=expected, found=found, remedy="run `ganbert prepare` again"
        )
    return ReadIndex(index, hashlib.sha256(content).hexdigest())


def save_index(index: Index, folder: Path) -> Path:
    """Write the index into `folder`, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    file = folder / INDEX_NAME
    # Runs know their index by its checksum: what an earlier version did not write, and what says
    # nothing, must not change it.
    fields = type(index).model_fields
    silent = {name for name in _ADDED if getattr(index, name) == fields[name].default}
    write_text(file, index.model_dump_json(indent=1, exclude=silent) + "\n")
    return file


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
