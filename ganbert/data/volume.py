"""The nouns of the data column.

Axes, once and for all. An array is (C, D, H, W): C is frames (PET) or 1 (MRI); D runs posterior to
anterior, H inferior to superior, W left to right. `affine` maps the homogeneous voxel index
(d, h, w, 1) to world coordinates (x, y, z, 1) in mm, RAS+ (x to the right, y to anterior, z to
superior). NIfTI's own order (i, j, k) exists only inside `data/nifti.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# Full width at half maximum of a Gaussian, in standard deviations.
FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


@dataclass(frozen=True)
class Volume:
    """An image with its place in the world and its unit.

    Attributes
    ----------
    array : (C, D, H, W) float32
    affine : (4, 4) float64, voxel index (d, h, w, 1) to RAS+ mm
    unit : unit of the intensities: "SUVR", "Bq/mL", ...; "arbitrary" for MRI
    """

    array: FloatArray
    affine: Affine
    unit: str

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.affine.shape != (4, 4):
            raise ValueError(
                f"Volume: expected array (C, D, H, W) and affine (4, 4), "
                f"got {self.array.shape} and {self.affine.shape}"
            )
        if not self.unit:
            raise ValueError("Volume: expected a unit, got an empty string")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (D, H, W)."""
        _, d, h, w = self.array.shape
        return (d, h, w)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge of a voxel along (D, H, W), mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(d), float(h), float(w))


@dataclass(frozen=True)
class Recast:
    """What is done to the frames and the unit of one PET, decided before any image is read.

    Attributes
    ----------
    matrix : (frames of the result, frames of the source): each frame of the result is this weighted
        sum of those of the source; rules for frames and linear conversions of units together
    unit : of the result
    frame_start_s, frame_duration_s : of each frame of the result, s after injection
    reference_labels : labels of the `dseg` by whose mean each frame is then divided (SUVR); empty:
        it is not divided, or the pair has a mask of its own for that
    """

    matrix: tuple[tuple[float, ...], ...]
    unit: str
    frame_start_s: tuple[float, ...]
    frame_duration_s: tuple[float, ...]
    reference_labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A T1w and a PET of one subject, as found on disk, not yet read.

    Attributes
    ----------
    subject, session : BIDS labels without `sub-` and `ses-`; session may be absent
    tracer : short name, a key of `ganbert.tracers.TRACERS`
    mri, pet : paths of the images
    unit : unit of the PET as its sidecar states it
    frame_start_s, frame_duration_s : of each PET frame on disk, s after injection
    truth, dseg : noise-free PET and region labels, where the dataset has them (the phantom does)
    dseg_table : names of the region labels, where the dataset has them
    facts : what the dataset says about dose, weight and decay, by the names of `units.FACTS`
    reference_mask : image that is not 0 in the reference region, instead of labels of `dseg`
    recast : what becomes of frames and unit; None: they stay as they are
    diagnosis : of the subject, where the dataset has it; only for the strata of the split
    side : of the split ("train", "val", "test"), where the user names a column for it
    """

    subject: str
    session: str | None
    tracer: str
    mri: str
    pet: str
    unit: str
    frame_start_s: tuple[float, ...]
    frame_duration_s: tuple[float, ...]
    truth: str | None = None
    dseg: str | None = None
    dseg_table: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reference_mask: str | None = None
    recast: Recast | None = None
    diagnosis: str | None = None
    side: Literal["train", "val", "test"] | None = None
