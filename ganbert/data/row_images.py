"""The images of a row from the files of a pair: conformed, in the planned frames and unit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ganbert.config import Grid
from ganbert.data.conform import ConformedMri, concentric_affine, conform_mri, conform_pet
from ganbert.data.nifti import read_volume, resample
from ganbert.data.recast import divide_by_reference, recast_frames
from ganbert.data.volume import Pair, Volume
from ganbert.errors import DatasetError, ImageError


@dataclass(frozen=True)
class RowImages:
    """What a row consists of.

    Attributes
    ----------
    mri : (1, D, H, W) float32, whole numbers 0..255, on the MRI grid
    pet, truth : (T, D, H, W) float32 on the PET grid, in the row's unit
    dseg : (1, D, H, W) labels on the PET grid
    """

    mri: ConformedMri
    pet: Volume
    truth: Volume | None
    dseg: Volume | None


def conform_pair(
    pair: Pair, mri_grid: Grid, pet_grid: Grid, *, sha256: dict[str, str] | None = None
) -> RowImages:
    """Read the images of a pair and bring them onto the grids, into frames and unit as planned.

    Parameters
    ----------
    sha256 : filled in: path of each file that is read -> SHA-256 of its bytes

    Raises
    ------
    ImageError, DatasetError
        Naming the image that is not usable.
    """

    def read(path: str, unit: str = "arbitrary") -> Volume:
        return read_volume(path, unit, sha256=sha256)

    mri = _conform_mri(pair.mri, read(pair.mri), mri_grid)
    affine = concentric_affine(mri.volume.affine, mri_grid, pet_grid)
    dseg = _only_volume(pair.dseg, read(pair.dseg)) if pair.dseg else None
    mask = _read_mask(pair.reference_mask, read) if pair.reference_mask else None

    def pet_on_grid(path: str) -> Volume:
        pet = _recast_pet(path, read(path, pair.unit), pair, mask or dseg)
        return conform_pet(pet, affine, pet_grid)

    pet = pet_on_grid(pair.pet)
    if _without_contrast(pet):
        raise ImageError(
            pair.pet,
            expected=f"a PET that overlaps with {Path(pair.mri).name}",
            found="the same value everywhere on the PET grid",
            remedy="register the PET to the T1w first",
        )
    return RowImages(
        mri=mri,
        pet=pet,
        truth=pet_on_grid(pair.truth) if pair.truth else None,
        dseg=resample(dseg, affine, pet_grid.shape, order=0) if dseg else None,
    )


def _conform_mri(path: str, mri: Volume, grid: Grid) -> ConformedMri:
    try:
        return conform_mri(mri, grid)
    except ImageError as error:
        # A function on arrays does not know the file.
        raise ImageError(
            path, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def _check_pet(path: str, pet: Volume, pair: Pair) -> None:
    if len(pet.array) != len(pair.frame_start_s):
        raise DatasetError(
            path,
            expected=f"{len(pair.frame_start_s)} frames, as its sidecar (or series) says",
            found=f"{len(pet.array)} in the image",
            remedy="mend FrameTimesStart and FrameDuration or the image",
        )
    used = [frame for frame in range(len(pet.array)) if _is_used(frame, pair)]
    empty = [frame for frame in _without_contrast(pet) if frame in used]
    if empty:
        where = "" if empty == used else f" of frame {empty[0] + 1}"
        raise ImageError(
            path,
            expected="a PET with contrast",
            found=f"{pet.array[empty[0]].flat[0]:g} in all voxels{where}",
            remedy="export the image again",
        )


def _is_used(frame: int, pair: Pair) -> bool:
    return pair.recast is None or any(row[frame] for row in pair.recast.matrix)


def _without_contrast(pet: Volume) -> list[int]:
    return [number for number, frame in enumerate(pet.array) if not frame.max() > frame.min()]


def _only_volume(path: str, volume: Volume) -> Volume:
    if len(volume.array) != 1:
        found = f"{len(volume.array)} volumes"
        raise ImageError(path, expected="one volume", found=found, remedy="choose one")
    return volume


def _read_mask(path: str, read: Callable[[str], Volume]) -> Volume:
    """Read a mask; where the region ends in a map of probabilities or labels is not guessed."""
    mask = _only_volume(path, read(path))
    inside = mask.array[mask.array != 0]
    if inside.size and not inside.min() == inside.max() > 0:
        raise ImageError(
            path,
            expected="a mask: 0, and one value above 0",
            found=f"{inside.min():g} to {inside.max():g} beside 0",
            remedy="make it 1 in the reference region and 0 elsewhere",
        )
    return mask


def _recast_pet(path: str, pet: Volume, pair: Pair, reference: Volume | None) -> Volume:
    """Bring a PET into the frames and the unit that were planned."""
    _check_pet(path, pet, pair)
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
