"""The scales that PETs of different scanners and tracers are read on: SUVR and Centiloid."""

import numpy as np

from ganbert.data.volume import FloatArray, Mask
from ganbert.errors import ConfigError, DatasetError
from ganbert.tracers import get_tracer


def suvr(pet: FloatArray, reference_mask: Mask) -> FloatArray:
    """Divide each frame by its mean over the reference region.

    Parameters
    ----------
    pet : (T, D, H, W) float32, any unit that is proportional to activity
    reference_mask : (D, H, W) bool, the tracer's reference region

    Returns
    -------
    (T, D, H, W) float32, SUVR

    Raises
    ------
    DatasetError
        If the region is empty, or its mean in a frame is not positive.
    ValueError
        If the mask is not on the grid of the PET.
    """
    if pet.ndim != 4 or pet.shape[1:] != reference_mask.shape:
        raise ValueError(
            f"scales: expected (T, D, H, W) and its (D, H, W), "
            f"got {pet.shape} and {reference_mask.shape}"
        )
    remedy = "check the region labels and the PET of this subject"
    if not reference_mask.any():
        raise DatasetError(
            "reference region", expected="at least one voxel", found="none", remedy=remedy
        )
    means = pet[:, reference_mask].mean(axis=1, dtype=np.float64)
    if not (np.isfinite(means) & (means > 0)).all():
        found = ", ".join(f"{mean:g}" for mean in means)
        raise DatasetError(
            "reference region", expected="a positive mean in each frame", found=found, remedy=remedy
        )
    result: FloatArray = (pet / means[:, None, None, None]).astype(np.float32)
    return result


def centiloid(suvr_value: float, tracer: str) -> float:
    """Amyloid burden on the Centiloid scale: 0 for young controls, 100 for typical Alzheimer's.

    The slope belongs to the pipeline that it was fitted on (its target region, its reference
    region, its registration). For an SUVR from any other, this one's among them, the result is an
    approximation until that pipeline is calibrated as Klunk et al. 2015 describe.

    Parameters
    ----------
    suvr_value : mean cortical SUVR to the tracer's reference region
    tracer : short name, a key of `ganbert.tracers.TRACERS`

    Raises
    ------
    ConfigError
        If the tracer is not in the table, is not an amyloid tracer, or has no scale there.

    Source
    ------
    Klunk et al. 2015, Alzheimers Dement 11(1); the line of each tracer: see its row.
    """
    row = get_tracer(tracer)
    if row.centiloid is None:
        is_amyloid = row.target == "amyloid"
        raise ConfigError(
            "tracer",
            expected="an amyloid tracer with a Centiloid scale",
            found=f"{row.name} " + ("without one" if is_amyloid else "which is not amyloid"),
            remedy="use SUVR, or give the tracer's published line in ganbert/tracers.py",
        )
    return row.centiloid.slope * suvr_value + row.centiloid.intercept
