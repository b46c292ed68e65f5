"""What the images of a cached row were made from, and whether they still follow from it.

    cache/sub-01_trc-18FAV45.json          recipe, checksums of the inputs, row

An input counts as unchanged if its path, size and time of change are those of the record; it is not
opened then. Where the size is the same and the time another (a copy, a new download), its SHA-256
decides, and the record takes over the new time. What was made from it is not made again either way,
unless the version of this software that made it wrote other images, or accepted images that this
one refuses (`_CACHE_VERSION`).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.config import Grid
from ganbert.data.index import Row, file_sha256
from ganbert.data.nifti_header import files_of, unreadable
from ganbert.data.volume import Pair, Recast
from ganbert.errors import ImageError

# Part of every recipe, so that rows of another version are made again. Raise it whenever the same
# inputs would give other images, or none: when `row_images` or what it calls writes something else
# or refuses what it accepted. Nothing else asks a kept row about its voxels. What layouts, sidecars
# and headers are asked before (`prepare.prepare`) is asked of kept rows each time, and needs no
# other version.
# 2: refuses frames without contrast, and masks that are none.
_CACHE_VERSION = 2


class RowRecipe(BaseModel):
    """All that the cached images of a row depend on.

    Attributes
    ----------
    inputs : (path relative to the dataset, size in bytes, time of change in ns) of each file
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
    """The JSON beside a row's images. The split is the index's to decide: here always "train".

    Attributes
    ----------
    input_sha256 : of each file of `recipe.inputs`, as it was read; empty in records of versions
        that did not keep it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: RowRecipe
    row: Row
    input_sha256: tuple[str, ...] = ()


def images_of(pair: Pair) -> list[str]:
    """Return the paths of all images that a row is made from, T1w first, then PET."""
    paths = (pair.mri, pair.pet, pair.truth, pair.dseg, pair.reference_mask)
    return [path for path in paths if path]


def input_files(pair: Pair) -> list[Path]:
    """Return the files of `images_of`: a pair of header and voxels is two.

    Raises
    ------
    ImageError
        If a name is not that of a NIfTI.
    """
    return [file for path in images_of(pair) for file in files_of(Path(path))]


def relative(path: str | Path, dataset: Path) -> str:
    """Return how a record and the index name an input."""
    return os.path.relpath(path, dataset.absolute())


def make_recipe(
    pair: Pair, files: Sequence[Path], dataset: Path, mri_grid: Grid, pet_grid: Grid
) -> RowRecipe:
    """Return the recipe of a pair as its files are now; none is opened.

    Parameters
    ----------
    files : `input_files` of the pair

    Raises
    ------
    ImageError
        Naming the file that is not there.
    """
    inputs = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError as error:
            found = error.strerror or type(error).__name__
            remedy = "check the dataset"
            raise ImageError(path, expected="an image", found=found, remedy=remedy) from error
        inputs.append((relative(path, dataset), status.st_size, status.st_mtime_ns))
    return RowRecipe(
        cache_version=_CACHE_VERSION,
        inputs=tuple(inputs),
        tracer=pair.tracer,
        unit=pair.unit,
        frame_start_s=pair.frame_start_s,
        frame_duration_s=pair.frame_duration_s,
        recast=pair.recast,
        mri_grid=mri_grid,
        pet_grid=pet_grid,
    )


def load_finished(record: Path) -> FinishedRow | None:
    """Read a record; None where there is none that can be used: the row is made again."""
    try:
        return FinishedRow.model_validate_json(record.read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def still_holds(
    finished: FinishedRow, recipe: RowRecipe, files: Sequence[Path], *, verify: bool
) -> bool:
    """Whether the inputs are what the row was made from.

    Parameters
    ----------
    recipe : of the inputs as they are now
    files : those of `recipe.inputs`
    verify : compare the content of every input, whatever its time of change

    Raises
    ------
    ImageError
        If an input must be read and cannot.
    """
    if _timeless(finished.recipe) != _timeless(recipe):
        return False
    before, now = finished.recipe.inputs, recipe.inputs
    doubtful = [index for index in range(len(now)) if verify or before[index] != now[index]]
    if doubtful and len(finished.input_sha256) != len(now):
        return False  # a record of an earlier version
    return all(_sha256(files[i]) == finished.input_sha256[i] for i in doubtful)


def _timeless(recipe: RowRecipe) -> RowRecipe:
    return recipe.model_copy(update={"inputs": tuple((*x[:2], 0) for x in recipe.inputs)})


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
