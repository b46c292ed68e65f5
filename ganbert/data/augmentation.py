"""Random changes of a training pair, the same for its MRI and its PET.

What is done to sample k of the stream of samples (`sample_order.py`) is a function of (seed, k)
alone. So the same run draws the same on any number of ranks, and a resumed run what an undisturbed
one would have drawn; there is no state to save.

Both grids have the same centre and directions, so one flip and one rigid motion about that centre,
in mm, become a matrix in voxels for each of them. Intensities of the MRI alone change: those of the
PET are what is to be learnt.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ganbert.config import AugmentationConfig, Grid
from ganbert.data.volume import Array

# Tells these draws from those of the order of samples, which have the same seed.
_STREAM = 0xA06
_DRAWS = 9
NO_AUGMENTATION = AugmentationConfig()


@dataclass(frozen=True)
class Transform:
    """What is done to one pair.

    Attributes
    ----------
    flip : swap left and right
    rotation_deg : about the axes D, then H, then W
    translation_mm : along (D, H, W)
    gain, offset : normalised MRI -> gain * MRI + offset
    """

    flip: bool
    rotation_deg: tuple[float, float, float]
    translation_mm: tuple[float, float, float]
    gain: float
    offset: float

    @property
    def moves(self) -> bool:
        """Whether the images must be interpolated."""
        return any(self.rotation_deg) or any(self.translation_mm)


UNCHANGED = Transform(False, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0, 0.0)


def draw_transform(config: AugmentationConfig, seed: int, sample: int) -> Transform:
    """Return what happens to sample `sample` of the stream, sample >= 0."""
    # Raw bits: NumPy promises those of PCG64 for good, and a resumed run must go on the same.
    raw = np.random.PCG64([seed, _STREAM, sample]).random_raw(_DRAWS)
    first, *others = (float(value) for value in (raw >> np.uint64(11)) * 2.0**-53)
    signed = [2.0 * value - 1.0 for value in others]
    a, b, c = (config.rotation_deg * value for value in signed[:3])
    d, h, w = (config.translation_mm * value for value in signed[3:6])
    gain, offset = (config.intensity * value for value in signed[6:])
    return Transform(first < config.flip, (a, b, c), (d, h, w), 1.0 + gain, offset)


def motion_of(config: AugmentationConfig) -> Literal["none", "flip", "warp"]:
    """Return what images must go through: flips alone need no interpolation."""
    if config.rotation_deg > 0 or config.translation_mm > 0:
        return "warp"
    return "flip" if config.flip > 0 else "none"


def to_source(transform: Transform, grid: Grid) -> Array:
    """Return the (3, 4) matrix from a voxel of the result to where it comes from.

    Parameters
    ----------
    grid : the grid of both; its centre stays where it is, but for the translation

    Returns
    -------
    (3, 4) float64, index (d, h, w, 1) to index (d, h, w); whole numbers are centres of voxels
    """
    spacing = np.array(grid.spacing_mm)
    centre = (np.array(grid.shape) - 1) / 2
    linear = _rotation(transform.rotation_deg)
    if transform.flip:
        linear = linear @ np.diag([1.0, 1.0, -1.0])
    in_voxels = linear * spacing[np.newaxis] / spacing[:, np.newaxis]
    shift = np.array(transform.translation_mm) / spacing + centre - in_voxels @ centre
    return np.column_stack((in_voxels, shift))


def _rotation(degrees: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = turn @ matrix
    return matrix
