"""The streaming graphs of `pipeline.py` in plain NumPy: the oracle that tests hold DALI against.

Step by step the same arithmetic in the same precision (float32 multiply, then float32 add), so that
the comparison needs no tolerance on the CPU. A GPU may fuse the two into one rounding: there the
results agree within one unit in the last place of the larger term.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ganbert.config import Grid
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
) -> tuple[FloatArray, FloatArray]:
    """Read and normalise the images of `rows`.

    Parameters
    ----------
    folder : of the index
    intensity_ratio : the tenth of paper section 3.1

    Returns
    -------
    mri : (N, 1, D, H, W) float32, normalised
    pet_real : (N, T, D, H, W) float32, normalised

    Source
    ------
    Shin et al. 2020, section 3.1.
    """
    mri, pet = [], []
    for row in rows:
        mean, std = row.mri.mean, row.mri.std
        mri_shape = (1, *mri_grid.shape)
        pet_shape = (len(row.frame_start_s), *pet_grid.shape)
        raw_mri = _read_raw(folder, row.mri, np.uint8, mri_shape)
        raw_pet = _read_raw(folder, row.pet, np.float32, pet_shape)
        mri.append(_multiply_add(raw_mri, 1.0 / std, -mean / std))
        pet.append(_multiply_add(raw_pet, 1.0 / (intensity_ratio * std), -mean / std))
    return np.stack(mri), np.stack(pet)


def _read_raw(
    folder: Path, image: CachedImage, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    payload = (folder / image.path).read_bytes()[HEADER_BYTES:]
    return np.frombuffer(payload, dtype).reshape(shape)


def _multiply_add(raw: npt.NDArray[np.generic], scale: float, offset: float) -> FloatArray:
    product = raw.astype(np.float32) * np.float32(scale)
    return product + np.float32(offset)
