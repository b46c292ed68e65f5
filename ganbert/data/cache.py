"""One row of the cache: read, conform, measure, write; or find that it is already there.

    cache/sub-01_trc-18FAV45_T1w.nii       uint8, on the MRI grid
    cache/sub-01_trc-18FAV45_pet.nii       float32, on the PET grid; `truth` likewise
    cache/sub-01_trc-18FAV45_dseg.nii      int32 labels on the PET grid
    cache/sub-01_trc-18FAV45.json          the row and its recipe, written after the images

The recipe is everything that the images depend on (`row_record.py`). A row whose recipe and
checksums still hold is not made again, which is what makes `prepare` resumable.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ganbert.atomic import output_error, write_text
from ganbert.config import Grid
from ganbert.data.direct import STORED_AS, save_source, stored_sha256
from ganbert.data.index import AffineRows, CachedImage, Row, file_sha256
from ganbert.data.nifti import write_cache
from ganbert.data.row_images import RowImages, conform_pair
from ganbert.data.row_record import (
    FinishedRow,
    images_of,
    input_files,
    load_finished,
    make_recipe,
    relative,
    still_holds,
)
from ganbert.data.volume import Affine, Pair, Volume
from ganbert.tracers import TRACERS

CACHE_NAME = "cache"


@dataclass(frozen=True)
class CachePlace:
    """Where a cache comes from and goes to.

    Attributes
    ----------
    dataset : root of the input; sources are named relative to it
    out : folder that holds `cache/`
    mri_grid, pet_grid : concentric grids
    keep_images : write them; else only where they come from (`data/direct.py`)
    verify_inputs : read every input to see whether it has changed, whatever its time of change
    """

    dataset: Path
    out: Path
    mri_grid: Grid
    pet_grid: Grid
    keep_images: bool = True
    verify_inputs: bool = False


class MadeRow(NamedTuple):
    """A row of the cache, and whether a previous run had made it."""

    row: Row
    was_kept: bool


def make_row(pair: Pair, place: CachePlace) -> MadeRow:
    """Cache the images of one pair, or return the row of a previous run if nothing has changed.

    Returns
    -------
    MadeRow
        The split of the row is a placeholder, "train".

    Raises
    ------
    ImageError, DatasetError
        Naming the image that is not usable; nothing is written then.
    OutputError
        If the cache cannot be written.
    """
    name = _row_name(pair)
    record = place.out / CACHE_NAME / f"{name}.json"
    files = input_files(pair)
    recipe = make_recipe(pair, files, place.dataset, place.mri_grid, place.pet_grid)
    finished = load_finished(record)
    if (
        finished
        and still_holds(finished, recipe, files, verify=place.verify_inputs)
        and _is_whole(finished.row, place)
    ):
        if finished.recipe != recipe:
            _write_record(record, finished.model_copy(update={"recipe": recipe}))
        _save_note(finished.row, pair, place)
        return MadeRow(finished.row, was_kept=True)
    sha256: dict[str, str] = {}
    images = conform_pair(pair, place.mri_grid, place.pet_grid, sha256=sha256)
    _remove(record)
    row = _save(pair, images, place, name)
    _save_note(row, pair, place)
    checksums = tuple(sha256[str(file)] for file in files)
    _write_record(record, FinishedRow(recipe=recipe, row=row, input_sha256=checksums))
    return MadeRow(row, was_kept=False)


def _write_record(record: Path, finished: FinishedRow) -> None:
    write_text(record, finished.model_dump_json(indent=1) + "\n")


def _remove(record: Path) -> None:
    """An unfinished row has no record; its images are about to change."""
    try:
        record.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(record, error) from error


def _row_name(pair: Pair) -> str:
    session = f"_ses-{pair.session}" if pair.session else ""
    return f"sub-{pair.subject}{session}_trc-{TRACERS[pair.tracer].bids_label}"


def _is_whole(row: Row, place: CachePlace) -> bool:
    if not place.keep_images:
        return True
    images = [image for image in (row.mri, row.pet, row.truth, row.dseg) if image]
    return all(
        (place.out / image.path).is_file() and file_sha256(place.out / image.path) == image.sha256
        for image in images
    )


def _save_note(row: Row, pair: Pair, place: CachePlace) -> None:
    # Anew for a row that is kept too: times of change may be others, and a note may be damaged.
    if not place.keep_images:
        save_source(place.out / row.mri.path, pair, place.mri_grid, place.pet_grid)


def _save(pair: Pair, images: RowImages, place: CachePlace, name: str) -> Row:
    def save(volume: Volume, kind: str) -> CachedImage:
        return _save_image(place, name, volume, kind)

    frames = pair.recast or pair
    return Row(
        subject=pair.subject,
        session=pair.session,
        tracer=pair.tracer,
        unit=frames.unit,
        split="train",
        frame_start_s=frames.frame_start_s,
        frame_duration_s=frames.frame_duration_s,
        mri=save(images.mri.volume, "T1w"),
        pet=save(images.pet, "pet"),
        truth=save(images.truth, "truth") if images.truth else None,
        dseg=save(images.dseg, "dseg") if images.dseg else None,
        sources=tuple(relative(path, place.dataset) for path in images_of(pair)),
    )


def _save_image(place: CachePlace, row_name: str, volume: Volume, kind: str) -> CachedImage:
    path = f"{CACHE_NAME}/{row_name}_{kind}.nii"
    if place.keep_images:
        write_cache(place.out / path, volume, dtype=STORED_AS[kind])
        sha256 = file_sha256(place.out / path)
    else:
        sha256 = stored_sha256(volume, kind)
    array = volume.array
    return CachedImage(
        path=path,
        affine=_affine_rows(volume.affine),
        sha256=sha256,
        mean=float(array.mean(dtype=np.float64)),
        std=float(array.std(dtype=np.float64)),
        minimum=float(array.min()),
        maximum=float(array.max()),
        p999=float(np.percentile(array, 99.9)),
    )


def _affine_rows(affine: Affine) -> AffineRows:
    x, y, z, last = ((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
    return (x, y, z, last)
