"""Bring images onto the common grids and into the common intensities, and back.

Pure functions on volumes; no files. The MRI grid is centred on each subject's head, and the PET
grid on the same point, so that a position in the array means about the same place in every head.
PET must already be registered to the T1w: nothing is registered here, it is only resampled.

Paper, section 3.1: MRI (256, 256, 256), z-scored by its own mean and standard deviation; PET is
normalised by a tenth of the *MRI's* mean and a tenth of its standard deviation, and restored the
same way. That tenth is `ratio` here, because it only fits PET in the paper's unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ganbert.config import Grid
from ganbert.data.nifti import resample
from ganbert.data.volume import FWHM_PER_SIGMA, Affine, FloatArray, Volume
from ganbert.errors import ImageError

# A head without its neck, vertex to below the cerebellum (as `robustfov` of FSL).
HEAD_HEIGHT_MM = 170.0
SKULL_CAP_MM = 100.0
_LEAST_AREA = 0.1
# Ids run to 10^4 at normalised 10; the brightest voxels in a thousand should stay below it.
TARGET_NORMALISED_P999 = 9.0
_WHITEST = 255.0
_SEARCH_SPACING_MM = 4.0

ArrayLike = TypeVar("ArrayLike", bound=Any)


@dataclass(frozen=True)
class ConformedMri:
    """An MRI on the grid that the networks see.

    Attributes
    ----------
    volume : (1, D, H, W) float32, whole numbers 0..255
    mean, std : over all voxels of the grid
    """

    volume: Volume
    mean: float
    std: float


def conform_mri(mri: Volume, grid: Grid) -> ConformedMri:
    """Centre the head on `grid` and scale its intensities to 0..255, robustly.

    Parameters
    ----------
    mri : (1, D, H, W), any unit, any grid

    Raises
    ------
    ImageError
        If it has more than one frame or no contrast.

    Source
    ------
    Shin et al. 2020, section 3.1 (FreeSurfer's conform); design decision, see docs/architecture.md.
    """
    if len(mri.array) != 1:
        found = f"{len(mri.array)} volumes"
        raise ImageError("T1w", expected="one volume", found=found, remedy="choose or average one")
    low, high = (float(value) for value in np.percentile(mri.array, (0.1, 99.9)))
    if not high > low:
        found = f"{low:g} in at least 99.8 % of the voxels"
        remedy = "give an image with a head in it"
        raise ImageError("T1w", expected="an image with contrast", found=found, remedy=remedy)
    scaled = ((mri.array - low) * (_WHITEST / (high - low))).clip(0.0, _WHITEST)
    scaled_mri = Volume(scaled.astype(np.float32), mri.affine, mri.unit)
    affine = grid_affine(head_centre(scaled_mri), grid)
    volume = _resample_smoothly(scaled_mri, affine, grid.shape)
    array = np.rint(volume.array).clip(0.0, _WHITEST).astype(np.float32)
    mean, std = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
    if std == 0.0:
        remedy = "check the orientation and voxel size in its header"
        raise ImageError("T1w", expected="a head on the grid", found="nothing", remedy=remedy)
    return ConformedMri(Volume(array, affine, mri.unit), mean, std)


def conform_pet(pet: Volume, affine: Affine, grid: Grid) -> Volume:
    """Resample PET onto `grid` placed by `affine`, smoothed first where the grid is coarser.

    Parameters
    ----------
    pet : (T, D, H, W), registered to the T1w
    affine : (4, 4), see `concentric_affine`
    """
    return _resample_smoothly(pet, affine, grid.shape)


def head_centre(mri: Volume) -> npt.NDArray[np.float64]:
    """Return the middle of the head's extent, (x, y, z) RAS+ mm.

    Foreground is what Otsu's threshold calls bright, in its largest connected piece; of that the
    `HEAD_HEIGHT_MM` below the vertex, so that the length of the scanned neck does not matter. The
    middle from left to right and from back to front is that of the `SKULL_CAP_MM` below the
    vertex alone: a nose and a jaw must not pull it. Extents, not a centre of mass: the field of
    view of the PET leaves a few mm around a brain, and a brain is heavier at the back.
    """
    coarse = _coarse_in_world(mri)
    bright = coarse.array[0] > otsu_threshold(coarse.array)
    pieces, num_pieces = ndimage.label(bright)
    if num_pieces == 0:
        return (mri.affine @ [*((n - 1) / 2 for n in mri.shape), 1.0])[:3]
    sizes = np.bincount(pieces.ravel())[1:]
    head = pieces == 1 + int(sizes.argmax())
    highest = int(np.flatnonzero(head.any(axis=(0, 2))).max())
    lowest = highest - int(HEAD_HEIGHT_MM / _SEARCH_SPACING_MM)
    head[:, : max(lowest, 0)] = False
    cap = head.copy()
    cap[:, : max(highest - int(SKULL_CAP_MM / _SEARCH_SPACING_MM), 0)] = False
    centre = [_middle_of(cap, 0), _middle_of(head, 1), _middle_of(cap, 2)]
    return (coarse.affine @ [*centre, 1.0])[:3]


def _middle_of(mask: npt.NDArray[np.bool_], axis: int) -> float:
    """Middle of the slices that hold a fair share of the widest one: no neck, no stray voxel."""
    areas = mask.sum(axis=tuple({0, 1, 2} - {axis}))
    slices = np.flatnonzero(areas >= _LEAST_AREA * areas.max())
    return float(slices[0] + slices[-1]) / 2


def otsu_threshold(array: FloatArray, num_bins: int = 256) -> float:
    """Return the threshold that best separates dark from bright.

    Source
    ------
    Otsu 1979, IEEE Trans. SMC 9(1): maximise the variance between the two classes.
    """
    counts, edges = np.histogram(array, num_bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centres)[:-1]
    sum_above = (counts * centres).sum() - sum_below
    valid = np.maximum(below, 1), np.maximum(above, 1)
    between = below * above * (sum_below / valid[0] - sum_above / valid[1]) ** 2
    return float(edges[1 + int(between.argmax())])


def grid_affine(centre_mm: npt.ArrayLike, grid: Grid) -> Affine:
    """Return the affine of an axis-aligned RAS+ grid centred on (x, y, z) mm."""
    spacing_d, spacing_h, spacing_w = grid.spacing_mm
    affine = np.zeros((4, 4))
    affine[1, 0] = spacing_d
    affine[2, 1] = spacing_h
    affine[0, 2] = spacing_w
    affine[3, 3] = 1.0
    affine[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ _middle(grid)
    return affine


def concentric_affine(affine: Affine, grid_from: Grid, grid_to: Grid) -> Affine:
    """Return the affine of `grid_to` with the centre and directions of a placed `grid_from`.

    Parameters
    ----------
    affine : (4, 4) of the placed `grid_from`, index (d, h, w, 1) to RAS+ mm
    """
    centre = affine[:3, :3] @ _middle(grid_from) + affine[:3, 3]
    result = affine.astype(np.float64)
    result[:3, :3] *= np.array(grid_to.spacing_mm) / np.array(grid_from.spacing_mm)
    result[:3, 3] = centre - result[:3, :3] @ _middle(grid_to)
    return result


def normalise_mri(mri: ArrayLike, mean: Any, std: Any) -> ArrayLike:
    """Return the z-score of an MRI (array or tensor).

    Source
    ------
    Shin et al. 2020, section 3.1.
    """
    return (mri - mean) / std


def restore_pet(pet: ArrayLike, mean: Any, std: Any, ratio: float) -> ArrayLike:
    """Return PET in its original unit (array or tensor): the inverse of `pet_scale_offset`.

    >>> restore_pet(2.0, 60.0, 30.0, 0.1)
    12.0

    Source
    ------
    Shin et al. 2020, section 3.1, with ratio = 1/10.
    """
    return pet * (ratio * std) + ratio * mean


def mri_scale_offset(mean: float, std: float) -> tuple[float, float]:
    """Return (a, b) with a * mri + b = `normalise_mri`: one multiply-add per voxel to stream."""
    return 1.0 / std, -mean / std


def pet_scale_offset(mean: float, std: float, ratio: float) -> tuple[float, float]:
    """Return (a, b) with a * pet + b = (pet - ratio * mean) / (ratio * std).

    Source
    ------
    Shin et al. 2020, section 3.1: PET is normalised by a tenth (ratio) of the MRI's statistics.
    """
    return 1.0 / (ratio * std), -mean / std


def suggest_intensity_ratio(
    pet_p999: Sequence[float], mri_mean: Sequence[float], mri_std: Sequence[float]
) -> float:
    """Return the ratio at which a cohort's bright PET voxels normalise to about 9.

    The median over rows of the ratio that normalises p999 to `TARGET_NORMALISED_P999`,
    so that ids fill 1..10^4 and few overflow.

    Parameters
    ----------
    pet_p999 : 99.9th percentile of each PET, in its unit
    mri_mean, mri_std : of the conformed MRI of the same row
    """
    target = TARGET_NORMALISED_P999 * np.asarray(mri_std) + np.asarray(mri_mean)
    return float(np.median(np.asarray(pet_p999) / target))


def _middle(grid: Grid) -> npt.NDArray[np.float64]:
    return (np.array(grid.shape) - 1) / 2


def _resample_smoothly(volume: Volume, affine: Affine, shape: tuple[int, int, int]) -> Volume:
    """Resample; a Gaussian first widens a source voxel to the size of a target voxel.

    Widths add in squares, so the kernel's is sqrt(target^2 - source^2), full width at half maximum.
    """
    to_source = (np.linalg.inv(volume.affine) @ affine)[:3, :3]
    # Length of a target step along each source axis, in source voxels.
    step = np.linalg.norm(to_source, axis=1)
    sigma = np.sqrt(np.maximum(step**2 - 1.0, 0.0)) / FWHM_PER_SIGMA
    if (sigma > 0.0).any():
        array = ndimage.gaussian_filter(volume.array, (0.0, *sigma), mode="nearest")
        volume = Volume(array, volume.affine, volume.unit)
    return resample(volume, affine, shape)


def _coarse_in_world(volume: Volume) -> Volume:
    """Resample onto a coarse axis-aligned grid that holds the whole image."""
    ends = np.array([(0, n - 1) for n in volume.shape])
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    world = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
    low, high = world.min(axis=1), world.max(axis=1)
    x, y, z = np.ceil((high - low) / _SEARCH_SPACING_MM).astype(int) + 1
    spacing = (_SEARCH_SPACING_MM,) * 3
    grid = Grid(shape=(int(y), int(z), int(x)), spacing_mm=spacing)
    return _resample_smoothly(volume, grid_affine((low + high) / 2, grid), grid.shape)
