"""One row of the cache: read, conform, measure, write; or find that it is already there.

    cache/sub-01_trc-18FAV45_T1w.nii       uint8, on the MRI grid
    cache/sub-01_trc-18FAV45_pet.nii       float32, on the PET grid; `truth` likewise
    cache/sub-01_trc-18FAV45_dseg.nii      int32 labels on the PET grid
    cache/sub-01_trc-18FAV45.json          the row and its recipe, written after the images

The recipe is everything that the images depend on. A row whose recipe and checksums still hold is
not made again, which is what makes `prepare` resumable.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import output_error, write_text
from ganbert.config import Grid
from ganbert.data.conform import ConformedMri, concentric_affine, conform_mri, conform_pet
from ganbert.data.index import AffineRows, CachedImage, Row, file_sha256
from ganbert.data.nifti import read_volume, resample, write_cache
from ganbert.data.recast import divide_by_reference, recast_frames
from ganbert.data.volume import Affine, Pair, Recast, Volume
from ganbert.errors import DatasetError, ImageError
from ganbert.tracers import TRACERS

CACHE_NAME = "cache"
# Part of every recipe: raise it when the same inputs would give other images.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class CachePlace:
    """Where a cache comes from and goes to.

    Attributes
    ----------
    dataset : root of the input; sources are named relative to it
    out : folder that holds `cache/`
    mri_grid, pet_grid : concentric grids
    """

    dataset: Path
    out: Path
    mri_grid: Grid
    pet_grid: Grid


class RowRecipe(BaseModel):
    """All that the cached images of a row depend on.

    Attributes
    ----------
    inputs : (path relative to the dataset, size in bytes, time of change in ns) of each image
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache_version: int
    inputs: tuple[tuple[str, int, int], ...]
    tracer: str
    unit: str
    frame_start_s: tuple[float, ...]
    frame_duration_s: tuple[float, ...]
    recast: Recast | None
    mri_grid: Grid
    pet_grid: Grid


class FinishedRow(BaseModel):
    """The JSON beside a row's images. The split is the index's to decide: here always "train"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: RowRecipe
    row: Row


@dataclass(frozen=True)
class _Images:
    mri: ConformedMri
    pet: Volume
    truth: Volume | None
    dseg: Volume | None


def make_row(pair: Pair, place: CachePlace) -> Row:
    """Cache the images of one pair, or return the row of a previous run if nothing has changed.

    Returns
    -------
    Row
        Its split is a placeholder, "train".

    Raises
    ------
    ImageError, DatasetError
        Naming the image that is not usable; nothing is written then.
    OutputError
        If the cache cannot be written.
    """
    name = _row_name(pair)
    record = place.out / CACHE_NAME / f"{name}.json"
    recipe = _recipe(pair, place)
    finished = _load_finished(record)
    if finished and finished.recipe == recipe and _is_whole(finished.row, place.out):
        return finished.row
    images = _conform(pair, place)
    _remove(record)
    row = _save(pair, images, place, name)
    write_text(record, FinishedRow(recipe=recipe, row=row).model_dump_json(indent=1) + "\n")
    return row


def _remove(record: Path) -> None:
    """An unfinished row has no record; its images are about to change."""
    try:
        record.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(record, error) from error


def _row_name(pair: Pair) -> str:
    session = f"_ses-{pair.session}" if pair.session else ""
    return f"sub-{pair.subject}{session}_trc-{TRACERS[pair.tracer].bids_label}"


def images_of(pair: Pair) -> list[str]:
    """Return the paths of all images that a row is made from, T1w first, then PET."""
    paths = (pair.mri, pair.pet, pair.truth, pair.dseg, pair.reference_mask)
    return [path for path in paths if path]


def _relative(path: str, place: CachePlace) -> str:
    return os.path.relpath(path, place.dataset.absolute())


def _recipe(pair: Pair, place: CachePlace) -> RowRecipe:
    inputs = []
    for path in images_of(pair):
        try:
            status = os.stat(path)
        except OSError as error:
            found = error.strerror or type(error).__name__
            remedy = "check the dataset"
            raise ImageError(path, expected="an image", found=found, remedy=remedy) from error
        inputs.append((_relative(path, place), status.st_size, status.st_mtime_ns))
    return RowRecipe(
        cache_version=_CACHE_VERSION,
        inputs=tuple(inputs),
        tracer=pair.tracer,
        unit=pair.unit,
        frame_start_s=pair.frame_start_s,
        frame_duration_s=pair.frame_duration_s,
        recast=pair.recast,
        mri_grid=place.mri_grid,
        pet_grid=place.pet_grid,
    )


def _load_finished(record: Path) -> FinishedRow | None:
    try:
        return FinishedRow.model_validate_json(record.read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        return None  # not finished: it is made again


def _is_whole(row: Row, out: Path) -> bool:
    images = [image for image in (row.mri, row.pet, row.truth, row.dseg) if image]
    return all(
        (out / image.path).is_file() and file_sha256(out / image.path) == image.sha256
        for image in images
    )


def _conform(pair: Pair, place: CachePlace) -> _Images:
    mri = _conform_mri(pair.mri, place.mri_grid)
    affine = concentric_affine(mri.volume.affine, place.mri_grid, place.pet_grid)
    shape = place.pet_grid.shape
    dseg = read_volume(pair.dseg) if pair.dseg else None
    mask = read_volume(pair.reference_mask) if pair.reference_mask else None

    def pet_on_grid(path: str) -> Volume:
        pet = _recast_pet(path, pair, mask or dseg)
        return conform_pet(pet, affine, place.pet_grid)

    pet = pet_on_grid(pair.pet)
    if not pet.array.max() > pet.array.min():
        raise ImageError(
            pair.pet,
            expected=f"a PET that overlaps with {Path(pair.mri).name}",
            found="the same value everywhere on the PET grid",
            remedy="register the PET to the T1w first",
        )
    return _Images(
        mri=mri,
        pet=pet,
        truth=pet_on_grid(pair.truth) if pair.truth else None,
        dseg=resample(dseg, affine, shape, order=0) if dseg else None,
    )


def _conform_mri(path: str, grid: Grid) -> ConformedMri:
    mri = read_volume(path)
    try:
        return conform_mri(mri, grid)
    except ImageError as error:
        # A function on arrays does not know the file.
        raise ImageError(
            path, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def _read_pet(path: str, pair: Pair) -> Volume:
    pet = read_volume(path, pair.unit)
    if len(pet.array) != len(pair.frame_start_s):
        raise DatasetError(
            path,
            expected=f"{len(pair.frame_start_s)} frames, as its sidecar (or series) says",
            found=f"{len(pet.array)} in the image",
            remedy="mend FrameTimesStart and FrameDuration or the image",
        )
    if not pet.array.max() > pet.array.min():
        raise ImageError(
            path,
            expected="a PET with contrast",
            found=f"{pet.array.flat[0]:g} in all voxels",
            remedy="export the image again",
        )
    return pet


def _recast_pet(path: str, pair: Pair, reference: Volume | None) -> Volume:
    """Read a PET into the frames and the unit that were planned."""
    pet = _read_pet(path, pair)
    if pair.recast is None:
        return pet
    pet = recast_frames(pet, pair.recast)
    has_region = pair.recast.reference_labels or pair.reference_mask
    if reference is None or not has_region:
        return pet
    try:
        return divide_by_reference(pet, reference, pair.recast.reference_labels)
    except DatasetError as error:
        # A function on arrays does not know the file.
        raise DatasetError(
            path,
            expected=f"{error.expected} in the reference region",
            found=error.found,
            remedy=error.remedy,
        ) from error


def _save(pair: Pair, images: _Images, place: CachePlace, name: str) -> Row:
    def save(volume: Volume, suffix: str, dtype: npt.DTypeLike) -> CachedImage:
        return _save_image(place.out, f"{name}_{suffix}.nii", volume, dtype)

    frames = pair.recast or pair
    return Row(
        subject=pair.subject,
        session=pair.session,
        tracer=pair.tracer,
        unit=frames.unit,
        split="train",
        frame_start_s=frames.frame_start_s,
        frame_duration_s=frames.frame_duration_s,
        mri=save(images.mri.volume, "T1w", np.uint8),
        pet=save(images.pet, "pet", np.float32),
        truth=save(images.truth, "truth", np.float32) if images.truth else None,
        dseg=save(images.dseg, "dseg", np.int32) if images.dseg else None,
        sources=tuple(_relative(path, place) for path in images_of(pair)),
    )


def _save_image(out: Path, name: str, volume: Volume, dtype: npt.DTypeLike) -> CachedImage:
    path = out / CACHE_NAME / name
    write_cache(path, volume, dtype=dtype)
    array = volume.array
    return CachedImage(
        path=f"{CACHE_NAME}/{name}",
        affine=_affine_rows(volume.affine),
        sha256=file_sha256(path),
        mean=float(array.mean(dtype=np.float64)),
        std=float(array.std(dtype=np.float64)),
        minimum=float(array.min()),
        maximum=float(array.max()),
        p999=float(np.percentile(array, 99.9)),
    )


def _affine_rows(affine: Affine) -> AffineRows:
    x, y, z, last = ((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
    return (x, y, z, last)
