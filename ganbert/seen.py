"""What the T1w images of a training were like, in a few numbers that travel with the model.

Whoever uses the model later compares a new image with them (`quality`): a T1w without its skull, a
T2w, a head on its side are outside of what a network saw that was trained on whole upright heads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ganbert.config import SeenImages
from ganbert.data.conform import otsu_threshold
from ganbert.data.direct import read_image
from ganbert.data.index import Index, Row
from ganbert.data.volume import FloatArray
from ganbert.errors import GanbertError

MAX_MEASURED = 16
_CORE_MM, _INNER_MM = 40.0, 60.0


def measure_mri(mri: FloatArray, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """Describe a conformed T1w by a few numbers.

    Parameters
    ----------
    mri : (1, D, H, W), 0..255, on the MRI grid, centred on the head
    spacing_mm : of the grid along (D, H, W)

    Returns
    -------
    mean, std : over the grid
    foreground : share of voxels above Otsu's threshold
    brightness : median of the foreground, of 255
    contrast : from its 10th to its 90th percentile, over its median
    core : median within 40 mm of the middle of the grid, over that of the foreground
    skew : mean less median within 60 mm of the middle, over the standard deviation there; negative
        where white matter, the bright majority, has a tail of darker tissue, as in a T1w
    black : share of voxels that are 0; near all around a brain without its skull, and few where
        air is noisy

    Source
    ------
    Design decision.
    """
    array = mri[0]
    bright = array > otsu_threshold(array)
    head = array[bright] if bright.any() else array.ravel()
    low, median, high = (max(float(v), 1e-3) for v in np.percentile(head, (10, 50, 90)))
    radius = _radius_mm(array.shape, spacing_mm)
    inner = array[radius < _INNER_MM].astype(np.float64)
    spread = max(float(inner.std()), 1e-3)
    return {
        "mean": float(array.mean(dtype=np.float64)),
        "std": float(array.std(dtype=np.float64)),
        "foreground": float(bright.mean()),
        "brightness": median / 255.0,
        "contrast": (high - low) / median,
        "core": float(np.median(array[radius < _CORE_MM])) / median,
        "skew": float(inner.mean() - np.median(inner)) / spread,
        "black": float((array == 0).mean()),
    }


def _radius_mm(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> FloatArray:
    axes = [
        ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * s) ** 2
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    squares = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
    radius: FloatArray = np.sqrt(squares)
    return radius


def summarise_seen(measured: Sequence[Mapping[str, float]]) -> SeenImages | None:
    """Return the smallest and the largest of each measure over training images; None of none.

    Parameters
    ----------
    measured : of `measure_mri`, one for each image
    """
    if not measured:
        return None
    names = measured[0]
    ranges = {name: (min(m[name] for m in measured), max(m[name] for m in measured))
              for name in names}  # fmt: skip
    return SeenImages(num_images=len(measured), mri=ranges)


def measure_training(data: Path, index: Index, rows: Sequence[Row]) -> SeenImages | None:
    """Measure a few MRIs of a training, spread evenly over its rows.

    Parameters
    ----------
    data : the prepared folder
    rows : of the training

    Returns
    -------
    None if there is no cache (to conform the images anew takes minutes), or it cannot be read any
    more: an export does not fail for that.
    """
    if not index.cached or not rows:
        return None
    places = np.unique(np.linspace(0, len(rows) - 1, MAX_MEASURED).round().astype(int))
    spacing = index.mri_grid.spacing_mm
    try:
        arrays = (read_image(data, rows[place].mri).array for place in places)
        return summarise_seen([measure_mri(array, spacing) for array in arrays])
    except GanbertError:
        return None
