"""The streaming graphs of `pipeline.py` in plain NumPy: the oracle that tests hold DALI against.

Step by step the same arithmetic in the same precision (float32 multiply, then float32 add), so that
the comparison needs no tolerance on the CPU. A GPU may fuse the two into one rounding: there the
results agree within one unit in the last place of the larger term. Where images are moved, DALI
computes positions in float32: within a few ten-thousandths of the image's range.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ganbert.config import Grid
from ganbert.data.augmentation import UNCHANGED, Transform, to_source
from ganbert.data.index import CachedImage, Row
from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.volume import FloatArray


def reference_batch(
    folder: Path,
    rows: Sequence[Row],
    intensity_ratio: float,
    *,
    mri_grid: Grid,
    pet_grid: Grid,
    transforms: Sequence[Transform] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Read, change and normalise the images of `rows`.

    Parameters
    ----------
    folder : of the index
    intensity_ratio : the tenth of paper section 3.1
    transforms : what is done to each row; None: nothing

    Returns
    -------
    mri : (N, 1, D, H, W) float32, normalised
    pet_real : (N, T, D, H, W) float32, normalised

    Source
    ------
    Shin et al. 2020, section 3.1.
    """
    mri, pet = [], []
    for row, transform in zip(rows, transforms or [UNCHANGED] * len(rows), strict=True):
        mean, std = row.mri.mean, row.mri.std
        mri_shape = (1, *mri_grid.shape)
        pet_shape = (len(row.frame_start_s), *pet_grid.shape)
        raw_mri = _read_raw(folder, row.mri, np.uint8, mri_shape)
        raw_pet = _read_raw(folder, row.pet, np.float32, pet_shape)
        gain, offset = transform.gain, transform.offset
        moved_mri = _move(raw_mri, transform, mri_grid)
        moved_pet = _move(raw_pet, transform, pet_grid)
        mri.append(_multiply_add(moved_mri, gain / std, offset - gain * mean / std))
        pet.append(_multiply_add(moved_pet, 1.0 / (intensity_ratio * std), -mean / std))
    return np.stack(mri), np.stack(pet)


def _read_raw(
    folder: Path, image: CachedImage, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    payload = (folder / image.path).read_bytes()[HEADER_BYTES:]
    return np.frombuffer(payload, dtype).reshape(shape)


def _move(
    raw: npt.NDArray[np.generic], transform: Transform, grid: Grid
) -> npt.NDArray[np.generic]:
    if not transform.moves:
        return raw[..., ::-1] if transform.flip else raw
    matrix = to_source(transform, grid)
    frames = [
        # "constant" would turn a rounding error just outside of the first voxel into 0.
        ndimage.affine_transform(frame, matrix[:, :3], matrix[:, 3], order=1, mode="grid-constant")
        for frame in raw.astype(np.float32)
    ]
    return np.stack(frames)


def _multiply_add(raw: npt.NDArray[np.generic], scale: float, offset: float) -> FloatArray:
    product = raw.astype(np.float32) * np.float32(scale)
    return product + np.float32(offset)
