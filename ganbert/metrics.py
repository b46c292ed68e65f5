"""How close a synthesised PET comes to a reference: image, regional and cohort figures.

Every PSNR and SSIM has a declared data range, which belongs to the tracer or to the cohort and
never to the image at hand: a range read from the image rewards images that are easy. Only its
width enters the formulas; nothing is clipped to it, so that an error outside still counts and
PSNR = 20 log10(width / RMSE) holds (torchmetrics would clip if it were given the bounds).

Intervals are Student's t over subjects. The alternative, a bootstrap percentile, is too narrow
for the handful of subjects that a test split often has.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, special, stats
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

from ganbert.data.conform import otsu_threshold
from ganbert.data.nifti import resample
from ganbert.data.volume import Affine, Array, FloatArray, Mask, Volume
from ganbert.errors import DatasetError
from ganbert.tables import MIN_SUBJECTS, Line

METRICS = ("psnr", "ssim", "rmse", "mae")
GAIN = "ganbert - mean_of_training"
# Wang et al. 2004: Gaussian window of 11 voxels with a standard deviation of 1.5.
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K = (0.01, 0.03)
# The head is closed over this distance before its holes are filled: sinuses, orbits, a thin skull.
_CLOSING_MM = 12.0


@dataclass(frozen=True)
class Interval:
    """A mean over `num` subjects and its 95 % confidence interval (NaN below two subjects)."""

    mean: float
    low: float
    high: float
    num: int


def ssim_window(shape: tuple[int, ...]) -> int:
    """Return the edge of the SSIM window, voxels: 11, or the largest odd edge that fits.

    Parameters
    ----------
    shape : voxels along (D, H, W)
    """
    smallest = min(*shape, _SSIM_WINDOW)
    return smallest if smallest % 2 else smallest - 1


def _check_shapes(pet_fake: FloatArray, pet_real: FloatArray) -> None:
    if pet_fake.shape != pet_real.shape or pet_fake.ndim != 4:
        raise ValueError(
            f"metrics: expected two (T, D, H, W) of one shape, "
            f"got {pet_fake.shape} and {pet_real.shape}"
        )


def ssim_map(
    pet_fake: FloatArray, pet_real: FloatArray, *, data_range: tuple[float, float]
) -> FloatArray:
    """Structural similarity at every voxel, in 3D, frame by frame.

    Parameters
    ----------
    pet_fake, pet_real : (T, D, H, W) float32, one unit
    data_range : declared (low, high), in that unit

    Returns
    -------
    (T, D, H, W) float32, -1..1. The window is `ssim_window`; its standard deviation keeps the
    proportion of the original.

    The values are those of torchmetrics, which slides the whole window (1331 voxels) over the
    image; the Gaussian is separable, and axis by axis it takes a twentieth of the time.

    Source
    ------
    Wang et al. 2004, IEEE TIP 13(4), Eq. 13, with the window in 3D.
    """
    _check_shapes(pet_fake, pet_real)
    window = ssim_window(pet_real.shape[1:])
    sigma, radius = _SSIM_SIGMA * window / _SSIM_WINDOW, window // 2

    def local_mean(images: Array) -> Array:
        result: Array = ndimage.gaussian_filter(
            images, (0, sigma, sigma, sigma), radius=(0, radius, radius, radius), mode="mirror"
        )
        return result

    # Variances are small differences of large squares: float32 would lose them.
    fake, real = pet_fake.astype(np.float64), pet_real.astype(np.float64)
    mean_fake, mean_real = local_mean(fake), local_mean(real)
    covariance = local_mean(fake * real) - mean_fake * mean_real
    variances = (local_mean(fake**2) - mean_fake**2).clip(0.0)
    variances += (local_mean(real**2) - mean_real**2).clip(0.0)
    c1, c2 = ((k * (data_range[1] - data_range[0])) ** 2 for k in _SSIM_K)
    luminance = (2 * mean_fake * mean_real + c1) / (mean_fake**2 + mean_real**2 + c1)
    similarity: FloatArray = (luminance * (2 * covariance + c2) / (variances + c2)).astype("f4")
    return similarity


def image_metrics(
    pet_fake: FloatArray,
    pet_real: FloatArray,
    *,
    data_range: tuple[float, float],
    mask: Mask | None = None,
    similarity: FloatArray | None = None,
) -> dict[str, float]:
    """PSNR (dB), SSIM, RMSE and MAE (in the images' unit) of one subject, over all its frames.

    Parameters
    ----------
    pet_fake, pet_real : (T, D, H, W) float32, one unit
    data_range : declared (low, high), in that unit
    mask : (D, H, W) bool, voxels that count; None: all
    similarity : `ssim_map` of the two, if it is already there (it is the costly part)

    Returns
    -------
    {"psnr", "ssim", "rmse", "mae"}. SSIM within a mask is the mean of the SSIM map over the mask:
    the windows at its edge see what lies outside. PSNR of equal images is infinite.
    """
    _check_shapes(pet_fake, pet_real)
    if similarity is None:
        similarity = ssim_map(pet_fake, pet_real, data_range=data_range)
    inside = np.ones(pet_real.shape[1:], bool) if mask is None else mask
    if not inside.any():
        raise ValueError("metrics: the mask is empty")
    fake = torch.from_numpy(pet_fake[:, inside])  # (T, D, H, W) -> (T, voxels of the mask)
    real = torch.from_numpy(pet_real[:, inside])
    width = data_range[1] - data_range[0]
    return {
        "psnr": float(peak_signal_noise_ratio(fake, real, data_range=width)),
        "ssim": float(similarity[:, inside].mean(dtype=np.float64)),
        "rmse": float(mean_squared_error(fake.flatten(), real.flatten(), squared=False)),
        "mae": float(mean_absolute_error(fake.flatten(), real.flatten())),
    }


def head_mask(mri: Volume, affine: Affine, shape: tuple[int, int, int]) -> Mask:
    """Return where the head is, on the PET grid.

    Foreground of the conformed MRI (Otsu), in one piece, closed and without holes.

    Parameters
    ----------
    mri : (1, D, H, W), conformed
    affine, shape : of the PET grid

    Raises
    ------
    DatasetError
        If no voxel of the PET grid lies in the head.
    """
    bright = Volume((mri.array > otsu_threshold(mri.array)).astype(np.float32), mri.affine, "1")
    on_pet = resample(bright, affine, shape)
    steps = max(1, round(_CLOSING_MM / 2 / float(np.mean(on_pet.spacing_mm))))
    # A margin keeps the closing from being cut at the edge of the field of view.
    padded = np.pad(on_pet.array[0] >= 0.5, steps + 1)
    closed = ndimage.binary_closing(padded, iterations=steps)
    filled = ndimage.binary_fill_holes(closed)[(slice(steps + 1, -steps - 1),) * 3]
    pieces, num_pieces = ndimage.label(filled)
    if num_pieces == 0:
        remedy = "check the T1w of this subject and prepare again"
        raise DatasetError(
            "T1w", expected="a head on the PET grid", found="background", remedy=remedy
        )
    mask: Mask = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    return mask


def regional_means(pet: FloatArray, labels: npt.NDArray[np.integer]) -> dict[int, list[float]]:
    """Mean intensity per region and frame.

    Parameters
    ----------
    pet : (T, D, H, W) float32
    labels : (D, H, W) integer, 0 is background and no region

    Returns
    -------
    {label: [mean of frame 0, mean of frame 1, ...]}, in the unit of `pet`
    """
    regions = [int(label) for label in np.unique(labels) if label != 0]
    frames = [ndimage.mean(frame, labels, regions) for frame in pet]
    return {region: [float(f[i]) for f in frames] for i, region in enumerate(regions)}


def confidence_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over subjects with Student's t interval.

    Parameters
    ----------
    values : one per subject; one that is not a number (a recall may be undefined) is left out and
        not counted; an infinite one (PSNR of equal images) leaves the bounds undefined
    level : coverage, 0..1
    """
    sample = np.asarray(values, np.float64)
    sample = sample[~np.isnan(sample)]
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(sample.mean())
    if sample.size < 2 or not np.isfinite(sample).all():
        return Interval(mean, math.nan, math.nan, int(sample.size))
    error = float(stats.sem(sample))
    half = error * float(stats.t.ppf(0.5 + level / 2, sample.size - 1))
    return Interval(mean, mean - half, mean + half, int(sample.size))


def share_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over subjects of shares, 0..1, with an interval that does not leave 0..1.

    Student's t interval of the mean's logit, carried back. Student's t of the mean itself leaves
    0..1 where few subjects have shares near an end, and covers less: over 6 subjects with shares of
    mean 0.10 and SD 0.09 (beta distribution), 89 % instead of 95 %, this one 94 %.

    Parameters
    ----------
    values : one per subject, 0..1; one that is not a number is left out and not counted
    level : coverage, 0..1

    Returns
    -------
    Interval
        Not symmetric. Without a spread, and below two subjects, as `confidence_interval`.

    Source
    ------
    `svyciprop(method = "xlogit")` of R's package survey, for a simple random sample.
    """
    plain = confidence_interval(values, level)
    half = plain.high - plain.mean
    if not half > 0 or not 0 < plain.mean < 1:
        return plain
    # The derivative of the logit at m is 1 / (m (1 - m)).
    half /= plain.mean * (1 - plain.mean)
    low, high = (float(special.expit(special.logit(plain.mean) + d)) for d in (-half, half))
    return Interval(plain.mean, low, high, plain.num)


def paired_difference(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> Interval:
    """Mean of `first - second` with Student's t interval; position by position one subject."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return confidence_interval(differences, level)


def _by_subject(lines: Sequence[Line], metric: str) -> list[float]:
    """Mean over the sessions of each subject: subjects are independent, sessions are not."""
    values: dict[str, list[float]] = {}
    for line in lines:
        values.setdefault(line["subject"], []).append(line[metric])
    return [float(np.mean(values[subject])) for subject in sorted(values)]


def summarise(
    lines: Sequence[Line], metrics: Sequence[str] = METRICS, shares: Collection[str] = ()
) -> list[Line]:
    """Mean and interval over subjects per reference, mask, method and metric.

    Parameters
    ----------
    lines : of metrics.tsv: keys subject, tracer, reference, mask, method, and each of `metrics`
    metrics : which columns
    shares : those of them that are shares, 0..1, and have the interval of `share_interval`

    Returns
    -------
    Lines with the keys tracer, reference, mask, method, metric, mean, low, high, num; the bounds
    are NaN below `MIN_SUBJECTS` subjects. The method `GAIN` is the paired difference between the
    generator and the mean of the training PETs; that of two shares lies within -1..1.
    """
    groups: dict[tuple[str, str, str, str], list[Line]] = {}
    for line in lines:
        key = (line["tracer"], line["reference"], line["mask"], line["method"])
        groups.setdefault(key, []).append(line)
    summary = []
    for (tracer, reference, mask, method), group in groups.items():
        keys = {"tracer": tracer, "reference": reference, "mask": mask}
        for metric in metrics:
            ours = _by_subject(group, metric)
            interval = (share_interval if metric in shares else confidence_interval)(ours)
            summary.append(_summary_line(keys, method, metric, interval))
            if method == "ganbert":
                other = _by_subject(groups[tracer, reference, mask, "mean_of_training"], metric)
                gain = paired_difference(ours, other)
                summary.append(_summary_line(keys, GAIN, metric, gain))
    return summary


def _summary_line(keys: Line, method: str, metric: str, interval: Interval) -> Line:
    if interval.num < MIN_SUBJECTS:
        interval = Interval(interval.mean, math.nan, math.nan, interval.num)
    return {**keys, "method": method, "metric": metric, **asdict(interval)}
