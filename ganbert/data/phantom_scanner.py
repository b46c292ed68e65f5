"""The phantom's two scanners: an MRI with bias field and Rician noise, a PET with blur and noise.

Sources. Point spread 5 to 8 mm FWHM: measured on scanners of ADNI-like studies (Ikari 2016, EJNMMI
Physics 3:23: 5.3 to 9 mm, criterion 8 mm). Noise: coefficient of variation 6 to 14 % in the same
phantom tables; its SD follows sqrt(activity / frame duration) (Turku PET Centre, fvar4img); the
noise of a reconstruction is correlated, so it is smoothed. Design decisions: everything else, among
it the misregistration of up to 2 mm and 1.5 degrees between what the PET header says and what the
image shows, the bias field of up to about 20 %, and the MRI noise of 1.5 to 3.5 % of white matter.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ganbert.data.phantom_anatomy import Anatomy, rigid, smooth_field
from ganbert.data.phantom_template import T1_CONTRAST
from ganbert.data.volume import FWHM_PER_SIGMA, Affine, FloatArray

_NOISE_FWHM_MM = 5.0
_REFERENCE_DURATION_S = 600.0
_MAX_SHIFT_MM, _MAX_ROTATION_DEG = 2.0, 1.5


@dataclass(frozen=True)
class PetScan:
    """What the PET scanner saw.

    Attributes
    ----------
    image : (X, Y, Z, 2) float32, SUVR
    truth : the same without noise, on the same voxels, misregistration included
    affine : what the header says, voxel index to RAS+ mm
    psf_fwhm_mm : point spread of the scanner
    noise_cv : coefficient of variation at 1 SUVR in a frame of 10 min
    shift_mm, rotation_deg : size of the misregistration
    """

    image: FloatArray
    truth: FloatArray
    affine: Affine
    psf_fwhm_mm: float
    noise_cv: float
    shift_mm: float
    rotation_deg: float


def scan_mri(anatomy: Anatomy, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Simulate a T1w: contrast, bias field, gain, Rician noise.

    Returns
    -------
    (X, Y, Z) int16, arbitrary unit, about 0 to 1000
    """
    signal = (
        np.float32(T1_CONTRAST["grey"]) * anatomy.grey
        + np.float32(T1_CONTRAST["white"]) * anatomy.white
        + np.float32(T1_CONTRAST["fluid"]) * anatomy.fluid
        + anatomy.t1_detail
    )
    shape = signal.shape
    spacing = tuple(float(s) for s in np.linalg.norm(anatomy.affine[:3, :3], axis=0))
    bias = np.exp(np.float32(0.09) * smooth_field(rng, shape, spacing, 90.0))
    noise_sd = rng.uniform(0.015, 0.035)
    gain = rng.uniform(450, 850)
    real, imaginary = (
        np.float32(noise_sd) * rng.standard_normal(shape, dtype=np.float32) for _ in range(2)
    )
    magnitude = np.hypot(np.maximum(signal, 0) * bias + real, imaginary)
    return np.rint(gain * magnitude).astype(np.int16)


def _direction(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _blur(
    activity: FloatArray, grid_mm: tuple[float, ...], psf_fwhm_mm: float, pet_mm: tuple[float, ...]
) -> FloatArray:
    # A voxel averages over itself: a box of width w has variance w^2 / 12.
    sigma_mm = [np.hypot(psf_fwhm_mm / FWHM_PER_SIGMA, w / np.sqrt(12)) for w in pet_mm]
    sigma = [s / g for s, g in zip(sigma_mm, grid_mm, strict=True)]
    return np.stack([ndimage.gaussian_filter(frame, sigma, truncate=3.0) for frame in activity])


def _noise(
    truth: FloatArray,
    durations_s: tuple[float, ...],
    pet_mm: tuple[float, ...],
    cv: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Correlated noise of SD cv * sqrt(activity * 600 s / duration), (X, Y, Z, 2)."""
    frames = []
    for frame, duration_s in zip(np.moveaxis(truth, -1, 0), durations_s, strict=True):
        white = rng.standard_normal(frame.shape, dtype=np.float32)
        sigma = [_NOISE_FWHM_MM / FWHM_PER_SIGMA / s for s in pet_mm]
        smooth = ndimage.gaussian_filter(white, sigma)
        smooth /= smooth.std()
        # The floor: randoms and scatter leave some noise where there is no activity.
        variance = (np.maximum(frame, 0) + 0.02) * (_REFERENCE_DURATION_S / duration_s)
        frames.append(np.float32(cv) * np.sqrt(variance) * smooth)
    return np.stack(frames, axis=-1)


def scan_pet(
    activity: FloatArray,
    reference: FloatArray,
    anatomy_affine: Affine,
    *,
    grid_shape: tuple[int, ...],
    grid_affine: Affine,
    durations_s: tuple[float, ...],
    rng: np.random.Generator,
) -> PetScan:
    """Simulate a PET in SUVR on its own grid.

    Parameters
    ----------
    activity : (2, X, Y, Z) float32 on the T1w grid
    reference : (X, Y, Z) 0 or 1, the region whose mean becomes 1 in each frame
    anatomy_affine : of the T1w grid
    grid_shape, grid_affine : the PET grid as its header tells it
    durations_s : of the frames, s
    """
    shift_mm, rotation_deg = rng.uniform(0, _MAX_SHIFT_MM), rng.uniform(0, _MAX_ROTATION_DEG)
    moved = rigid(rotation_deg * _direction(rng), shift_mm * _direction(rng))
    psf_fwhm_mm, cv = rng.uniform(5.0, 8.0), rng.uniform(0.06, 0.12)
    grid_mm = tuple(float(s) for s in np.linalg.norm(anatomy_affine[:3, :3], axis=0))
    pet_mm = tuple(float(s) for s in np.linalg.norm(grid_affine[:3, :3], axis=0))
    blurred = _blur(activity, grid_mm, psf_fwhm_mm, pet_mm)
    blurred /= np.array([np.average(f, weights=reference) for f in blurred])[:, None, None, None]
    to_anatomy = np.linalg.inv(anatomy_affine) @ moved @ grid_affine
    truth = np.stack(
        [
            ndimage.affine_transform(
                frame, to_anatomy, output_shape=grid_shape, order=1, output=np.float32
            )
            for frame in blurred
        ],
        axis=-1,
    )
    noise = _noise(truth, durations_s, pet_mm, cv, rng)
    return PetScan(
        # Iterative reconstructions do not go below zero.
        image=np.maximum(truth + noise, 0).astype(np.float32),
        truth=truth,
        affine=grid_affine,
        psf_fwhm_mm=psf_fwhm_mm,
        noise_cv=cv,
        shift_mm=shift_mm,
        rotation_deg=rotation_deg,
    )
