"""From a T1w to all that is said of its synthetic PET: the image, how sure, and what to beware of.

    from ganbert import load_generator
    pet = load_generator("runs/av45")(nibabel.load("T1w.nii.gz"))

Shared by the command line (`infer`), the service and whoever calls it from Python. The uncertainty
comes from test-time augmentation: the T1w is moved by a voxel and its contrast bent, the network is
asked again, and where its answers differ it is not sure. That is a part of the error alone: what
the network has learnt wrongly, it says wrongly each time. docs/inference.md says how large a part.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ganbert.config import ModelCard
from ganbert.data.conform import ConformedMri, concentric_affine, conform_mri
from ganbert.data.nifti import from_nibabel, name_of, to_nibabel
from ganbert.data.volume import FloatArray, Volume
from ganbert.errors import ConfigError, ImageError
from ganbert.predict import Predictor, load_predictor
from ganbert.quality import Quality, assess

MAX_PASSES = 16
_WHITEST = 255.0


@dataclass(frozen=True)
class Change:
    """One augmentation of a conformed T1w.

    Attributes
    ----------
    shift : MRI voxels along (D, H, W)
    gamma : exponent of the intensities, which stay within 0..255
    """

    shift: tuple[int, int, int]
    gamma: float


# The corners of a cube, opposite ones after each other, so that any even number of them is centred;
# contrast bent up and down. Fixed, so that the same T1w gets the same map.
_CORNERS = (
    (1, 1, 1), (-1, -1, -1), (1, -1, 1), (-1, 1, -1), (1, 1, -1), (-1, -1, 1), (-1, 1, 1),
    (1, -1, -1),
)  # fmt: skip
_GAMMAS = (0.9, 1.1)
CHANGES = tuple(
    Change(corner, _GAMMAS[(number + turn) % 2])
    for turn in (0, 1)
    for number, corner in enumerate(_CORNERS)
)


@dataclass(frozen=True)
class Synthesis:
    """A synthetic PET and what is known of it.

    Attributes
    ----------
    pet : (2, D, H, W) float32 in the model's unit
    uncertainty : standard deviation over test-time augmentations, the same grid and unit; 0 at the
        few edges of the field of view that no moved answer reaches; None if not asked for
    quality : flags and measures
    conformed : the T1w as the network saw it
    """

    pet: Volume
    uncertainty: Volume | None
    quality: Quality
    conformed: ConformedMri


def synthesise(
    predictor: Predictor,
    mri: Volume,
    *,
    conformed: ConformedMri | None = None,
    passes: int = 0,
    tracers: Sequence[str] = (),
) -> Synthesis:
    """Synthesise the PET of a T1w, judge it, and say how sure the network is.

    Parameters
    ----------
    mri : (1, D, H, W), any grid, orientation and scale
    conformed : of `mri` on the model's grid, where somebody has made it already
    passes : augmented passes through the network for the uncertainty; 0: no map
    tracers : that are wanted, see `quality.assess`

    Raises
    ------
    ImageError
        If the T1w has no contrast or more than one frame.
    ConfigError
        If there are not so many augmentations.
    """
    check_passes(passes)
    card = predictor.card
    conformed = conformed or conform_mri(mri, card.mri_grid)
    array = conformed.volume.array
    pet = predictor.predict_conformed(array, conformed.mean, conformed.std)
    affine = concentric_affine(conformed.volume.affine, card.mri_grid, card.pet_grid)
    volume = Volume(pet, affine, card.unit)
    uncertainty = None
    if passes:
        deviation = _deviation(predictor, conformed, pet, CHANGES[:passes])
        uncertainty = Volume(deviation, affine, card.unit)
    quality = assess(mri, conformed, volume, card, tracers=tracers)
    return Synthesis(volume, uncertainty, quality, conformed)


def check_passes(passes: int, option: str = "passes") -> None:
    """Refuse a number of augmented passes that there is not.

    Raises
    ------
    ConfigError
        If it is negative, or more than `MAX_PASSES`.
    """
    if not 0 <= passes <= MAX_PASSES:
        remedy = "0 leaves the map of uncertainty out"
        expected = f"0 to {MAX_PASSES} augmented passes"
        raise ConfigError(option, expected=expected, found=str(passes), remedy=remedy)


def _deviation(
    predictor: Predictor, conformed: ConformedMri, pet: FloatArray, changes: Sequence[Change]
) -> FloatArray:
    """Standard deviation over the plain pass and the changed ones; one image in memory a time."""
    total = pet.astype(np.float64)
    squares, count = total**2, np.ones(pet.shape)
    for change in changes:
        other = augmented_pass(predictor, conformed, change).astype(np.float64)
        known = np.isfinite(other)
        other[~known] = 0.0
        total += other
        squares += other**2
        count += known
    variance = (squares - total**2 / count) / np.maximum(count - 1, 1)
    deviation: FloatArray = np.sqrt(np.maximum(variance, 0.0)).astype(np.float32)
    return deviation


def augmented_pass(predictor: Predictor, conformed: ConformedMri, change: Change) -> FloatArray:
    """Change the T1w, ask the network, and undo the change of place in its answer.

    Returns
    -------
    (2, D, H, W) float32, on the grid of the plain answer; NaN at the edge, where the moved field of
    view did not reach

    Source
    ------
    Test-time augmentation: Wang et al. 2019, Neurocomputing 338; which changes: design decision.
    """
    card = predictor.card
    array = _bend(_move(conformed.volume.array, change.shift), change.gamma)
    mean, std = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
    moved = predictor.predict_conformed(array, mean, std)
    # A voxel of the MRI is a part of one of the PET.
    ratio = np.array(card.mri_grid.spacing_mm) / np.array(card.pet_grid.spacing_mm)
    back = [0.0, *(-np.array(change.shift) * ratio)]
    result: FloatArray = ndimage.shift(moved, back, order=3, cval=np.nan)
    return result


def _move(array: FloatArray, shift: tuple[int, int, int]) -> FloatArray:
    """Move an MRI (1, D, H, W) by whole voxels; what comes in is 0, as around a head."""
    moved = np.zeros_like(array)
    target, source = [slice(None)], [slice(None)]
    for step, size in zip(shift, array.shape[1:], strict=True):
        target.append(slice(max(step, 0), size + min(step, 0)))
        source.append(slice(max(-step, 0), size + min(-step, 0)))
    moved[tuple(target)] = array[tuple(source)]
    return moved


def _bend(array: FloatArray, gamma: float) -> npt.NDArray[np.float32]:
    bent: FloatArray = _WHITEST * (array / np.float32(_WHITEST)) ** np.float32(gamma)
    return bent.astype(np.float32)


class Synthesiser:
    """A loaded model as a function of nibabel images.

    Parameters
    ----------
    predictor : the loaded generator and its card
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def card(self) -> ModelCard:
        """What the model was made for: tracer, unit, grids, frames."""
        return self.predictor.card

    def __call__(self, image: Any) -> Any:
        """Synthesise the PET of a T1w.

        Parameters
        ----------
        image : `nibabel.SpatialImage`, 3D, any grid, orientation and scale

        Returns
        -------
        `nibabel.Nifti1Image`, (x, y, z, frame) float32 in the model's unit, that lies on the T1w

        Raises
        ------
        ImageError
            If it is no T1w that can be used.
        TypeError
            If it is no nibabel image.
        """
        with _named(image):
            return to_nibabel(self.predictor.predict(from_nibabel(image)))

    def synthesise(self, image: Any, *, passes: int = 0, tracers: Sequence[str] = ()) -> Synthesis:
        """Return the PET with its flags and, for `passes` above 0, its map of uncertainty.

        Parameters and errors: see `synthesise`.
        """
        with _named(image):
            mri = from_nibabel(image)
            return synthesise(self.predictor, mri, passes=passes, tracers=tracers)


@contextlib.contextmanager
def _named(image: Any) -> Iterator[None]:
    """Refuse what is no nibabel image, and name the image in errors that know of voxels alone."""
    if not isinstance(image, nib.spatialimages.SpatialImage):
        remedy = "pass nibabel.load(path)"
        if not isinstance(image, str | os.PathLike):
            remedy = "pass nibabel.Nifti1Image(array, affine), or nibabel.load(path)"
        kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"T1w: expected a nibabel image, found a {kind}; {remedy}")
    try:
        yield
    except ImageError as error:
        if isinstance(error.where, Path):
            raise
        raise ImageError(
            name_of(image), expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def load_generator(path: str | Path, device: str = "auto") -> Synthesiser:
    """Load a model; call what comes back with a nibabel image.

    Parameters
    ----------
    path : a run, its `export` folder, or either of the two files in it
    device : "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises
    ------
    CheckpointError
        If there is none, its card or weights cannot be read, or they do not belong together.
    PlatformError
        If the device is not there.
    """
    return Synthesiser(load_predictor(Path(path), device))
