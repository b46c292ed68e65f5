"""How far a synthesised PET agrees with the real one: distributions, hot voxels, subjects.

`metrics` compares voxel with voxel; a blurred image does well there and loses what is read from a
PET. Here stand the figures that see it: whether intensities are distributed alike, whether the
highest stay where they are, and whether a subject's regional uptake could replace the measured one.

Statistics over subjects are NaN where the data cannot tell, never a number that looks like one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torchmetrics.functional.regression import concordance_corrcoef

from ganbert.data.volume import Array, FloatArray, Mask
from ganbert.tables import MIN_SUBJECTS, Line

IMAGE_FIGURES = ("intensity_distance", "top_recall")
SHARES = ("top_recall",)  # of them, those within 0..1
REGION_KEYS = ("tracer", "reference", "method", "region", "name", "frame")
# Bland and Altman's own rounding of the normal quantile; papers are compared in it.
_LIMITS_SD = 1.96
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure over subjects and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BlandAltman:
    """Bias of `fake - real` and its limits of agreement over `num` subjects, in their unit."""

    bias: Estimate
    lower: Estimate
    upper: Estimate
    num: int


_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def _voxels(
    pet_fake: FloatArray, pet_real: FloatArray, mask: Mask | None
) -> tuple[FloatArray, FloatArray]:
    """Return the voxels that count, (T * voxels of the mask,) each."""
    if pet_fake.shape != pet_real.shape or pet_fake.ndim != 4:
        raise ValueError(
            f"agreement: expected two (T, D, H, W) of one shape, "
            f"got {pet_fake.shape} and {pet_real.shape}"
        )
    inside = np.ones(pet_real.shape[1:], bool) if mask is None else mask
    if not inside.any():
        raise ValueError("agreement: the mask is empty")
    return pet_fake[:, inside].ravel(), pet_real[:, inside].ravel()


def intensity_distance(
    pet_fake: FloatArray, pet_real: FloatArray, mask: Mask | None = None
) -> float:
    """Wasserstein-1 distance between the distributions of the voxels, over all frames.

    Parameters
    ----------
    pet_fake, pet_real : (T, D, H, W) float32, one unit
    mask : (D, H, W) bool, voxels that count; None: all

    Returns
    -------
    The distance, 0 or more, in the images' unit: how far an intensity must move on average. Where a
    voxel lies does not matter.

    Raises
    ------
    ValueError
        If the shapes differ or the mask is empty.

    Source
    ------
    The paper compares the two distributions by eye (Fig. 7); the distance is that of Ramdas et
    al. 2017, Entropy 19(2), computed by scipy.
    """
    fake, real = _voxels(pet_fake, pet_real, mask)
    return float(stats.wasserstein_distance(fake, real))


def top_recall(
    pet_fake: FloatArray, pet_real: FloatArray, share: float = 0.01, mask: Mask | None = None
) -> float:
    """Share of the real PET's highest voxels that are among the highest of the synthesised one.

    Parameters
    ----------
    pet_fake, pet_real : (T, D, H, W) float32, one unit
    share : of the voxels of all frames that counts as high, 0..1 (at least one voxel)
    mask : (D, H, W) bool, voxels that count; None: all

    Returns
    -------
    0..1. The high voxels of `pet_real` are all from the last place on, ties with it included; as
    many places are given out in `pet_fake`. Voxels that tie for its last places share them evenly:
    the value is what a draw among them gives on average, without drawing. So an image recalls
    itself fully, and a constant `pet_fake` scores chance (about `share`). NaN if ties make every
    voxel of `pet_real` a high one.

    Raises
    ------
    ValueError
        If the shapes differ, the mask is empty or `share` is not within 0..1.

    Source
    ------
    The paper's claim that high values survive, which it shows in pictures alone.
    """
    if not 0 < share < 1:
        raise ValueError(f"agreement: expected a share between 0 and 1, got {share}")
    fake, real = _voxels(pet_fake, pet_real, mask)
    num_wanted = max(1, round(share * real.size))
    is_high = real >= np.partition(real, -num_wanted)[-num_wanted]
    num_high = int(is_high.sum())
    if num_high == real.size:
        return math.nan
    last = np.partition(fake, -num_high)[-num_high]
    above, tied = fake > last, fake == last
    place_each = (num_high - int(above.sum())) / int(tied.sum())
    return float(((above & is_high).sum() + place_each * (tied & is_high).sum()) / num_high)


def image_agreement(
    pet_fake: FloatArray, pet_real: FloatArray, mask: Mask | None = None
) -> dict[str, float]:
    """`intensity_distance` and `top_recall` (top 1 %) of one image, by the names `IMAGE_FIGURES`.

    Parameters
    ----------
    pet_fake, pet_real : (T, D, H, W) float32, one unit
    mask : (D, H, W) bool, voxels that count; None: all
    """
    figures = (
        intensity_distance(pet_fake, pet_real, mask),
        top_recall(pet_fake, pet_real, mask=mask),
    )
    return dict(zip(IMAGE_FIGURES, figures, strict=True))


def _paired(first: Sequence[float], second: Sequence[float]) -> tuple[Array, Array]:
    pair = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if pair[0].shape != pair[1].shape or pair[0].ndim != 1:
        raise ValueError(
            f"agreement: expected as many values of one as of the other, "
            f"got {pair[0].shape} and {pair[1].shape}"
        )
    return pair


def bland_altman(fake: Sequence[float], real: Sequence[float]) -> BlandAltman:
    """Bias of `fake - real` over subjects, and the limits between which 95 % of it lie.

    Parameters
    ----------
    fake, real : one value per subject, position by position, in one unit

    Returns
    -------
    Bias, and bias -/+ 1.96 standard deviations, each with a Student's t interval. Below two
    subjects the bias has no interval and the limits are NaN.

    Raises
    ------
    ValueError
        If there are not as many of one as of the other.

    Source
    ------
    Bland and Altman 1986, Lancet 327; the standard error of the limits, s sqrt(1/n + 1.96^2 /
    (2 (n - 1))), is that of 1999, Stat Methods Med Res 8(2), section 2, whose sqrt(3/n) of 1986
    is its value in large samples.
    """
    first, second = _paired(fake, real)
    num = first.size
    if num == 0:
        return BlandAltman(_UNKNOWN, _UNKNOWN, _UNKNOWN, 0)
    bias = float((first - second).mean())
    if num < 2:
        return BlandAltman(Estimate(bias, math.nan, math.nan), _UNKNOWN, _UNKNOWN, num)
    deviation = float((first - second).std(ddof=1))
    quantile = float(stats.t.ppf(0.5 + _LEVEL / 2, num - 1))

    def around(value: float, error: float) -> Estimate:
        return Estimate(value, value - quantile * error, value + quantile * error)

    of_limit = deviation * math.sqrt(1 / num + _LIMITS_SD**2 / (2 * (num - 1)))
    return BlandAltman(
        bias=around(bias, deviation / math.sqrt(num)),
        lower=around(bias - _LIMITS_SD * deviation, of_limit),
        upper=around(bias + _LIMITS_SD * deviation, of_limit),
        num=num,
    )


def _tells_nothing(first: Array, second: Array) -> bool:
    # Two points always lie on a line, and rounding errors lie anywhere.
    def varies(values: Array) -> bool:
        return bool(np.ptp(values) > 1e-9 * np.abs(values).max())

    return first.size < 3 or not varies(first) or not varies(second)


def pearson(fake: Sequence[float], real: Sequence[float]) -> Estimate:
    """Pearson's correlation over subjects: whether the order and the proportions are kept.

    Parameters
    ----------
    fake, real : one value per subject, position by position, in any unit

    Returns
    -------
    -1..1 with the interval of Fisher's z. NaN below three subjects or if either is constant; the
    interval is NaN below four.

    Raises
    ------
    ValueError
        If there are not as many of one as of the other.

    Source
    ------
    Fisher 1921, Metron 1, by scipy.
    """
    first, second = _paired(fake, real)
    if _tells_nothing(first, second):
        return _UNKNOWN
    result = stats.pearsonr(first, second)
    if first.size < 4:
        return Estimate(float(result.statistic), math.nan, math.nan)
    low, high = result.confidence_interval(_LEVEL)
    return Estimate(float(result.statistic), float(low), float(high))


def concordance(fake: Sequence[float], real: Sequence[float]) -> Estimate:
    """Lin's concordance correlation over subjects: 1 only if every pair is equal.

    Parameters
    ----------
    fake, real : one value per subject, position by position, in one unit

    Returns
    -------
    2 cov / (var + var + (mean - mean)^2), -1..1, with variances over n - 1, and the interval of
    Fisher's z with Lin's asymptotic variance, which is too narrow for a handful of subjects. NaN
    below three subjects or if either is constant; the interval is NaN below four and where there is
    no correlation to expand around.

    Raises
    ------
    ValueError
        If there are not as many of one as of the other.

    Source
    ------
    Lin 1989, Biometrics 45(1), with the variance as corrected in 2000, Biometrics 56(1).
    """
    first, second = _paired(fake, real)
    if _tells_nothing(first, second):
        return _UNKNOWN
    value = float(concordance_corrcoef(torch.from_numpy(first), torch.from_numpy(second)))
    correlation = float(stats.pearsonr(first, second).statistic)
    if np.array_equal(first, second) and first.size >= 4:
        return Estimate(value, value, value)
    if first.size < 4 or correlation == 0 or abs(value) >= 1:
        return Estimate(value, math.nan, math.nan)
    spread = math.sqrt(float(first.std(ddof=1) * second.std(ddof=1)))
    shift = float(first.mean() - second.mean()) / spread
    rest = 1 - value**2
    variance = (
        (1 - correlation**2) * value**2 / (rest * correlation**2)
        + 2 * value**3 * (1 - value) * shift**2 / (correlation * rest**2)
        - value**4 * shift**4 / (2 * correlation**2 * rest**2)
    ) / (first.size - 2)
    half = float(stats.norm.ppf(0.5 + _LEVEL / 2)) * math.sqrt(max(variance, 0.0))
    return Estimate(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, num: int = 9999
) -> Estimate:
    """Mean of `first - second` over subjects with a BCa bootstrap interval.

    Parameters
    ----------
    first, second : one value per subject, position by position, in one unit; pairs with a value
        that is no number are left out
    seed : of the draws; the same gives the same interval
    num : draws

    Returns
    -------
    In the unit of the values. With a handful of subjects the interval is too narrow, and
    `metrics.paired_difference` the one to state. NaN bounds below two subjects.

    Raises
    ------
    ValueError
        If there are not as many of one as of the other.

    Source
    ------
    Efron 1987, JASA 82(397), by scipy.
    """
    pair = _paired(first, second)
    differences = pair[0] - pair[1]
    # A recall may be undefined for a subject: it is left out, not the whole comparison.
    differences = differences[np.isfinite(differences)]
    if differences.size == 0:
        return _UNKNOWN
    mean = float(differences.mean())
    if differences.size < 2:
        return Estimate(mean, math.nan, math.nan)
    if np.ptp(differences) <= 1e-9 * np.abs(np.concatenate(pair)).max():
        return Estimate(mean, mean, mean)  # BCa divides by the spread of the draws
    generator = np.random.default_rng(seed)
    result = stats.bootstrap(
        (differences,), np.mean, n_resamples=num, confidence_level=_LEVEL, rng=generator
    )
    low, high = result.confidence_interval
    return Estimate(mean, float(low), float(high))


def agreement_lines(
    lines: Sequence[Line], *, keys: Sequence[str] = REGION_KEYS, value: str = "mean"
) -> list[Line]:
    """Agreement over subjects of one value of each, per group of lines with equal `keys`.

    Parameters
    ----------
    lines : with the columns subject, `keys`, and `value` followed by _fake and _real; sessions of
        one subject are averaged, as they are not independent. Where either value is NaN the line
        is left out, and its subject does not count
    keys : columns that tell the groups apart; default: those of regions.tsv
    value : what is compared

    Returns
    -------
    One line a group: `keys`, num (subjects), and each of bias, lower_limit, upper_limit, pearson
    and concordance with its bounds (`_low`, `_high`). Below `MIN_SUBJECTS` subjects bounds and
    limits are NaN.
    """
    groups: dict[tuple[Any, ...], dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        subjects = groups.setdefault(tuple(line[name] for name in keys), {})
        pair = (line[f"{value}_fake"], line[f"{value}_real"])
        if all(map(math.isfinite, pair)):
            subjects.setdefault(line["subject"], []).append(pair)
    table = []
    for key, subjects in groups.items():
        means = [np.mean(pairs, axis=0) for pairs in subjects.values()]
        fake, real = (tuple(float(mean[i]) for mean in means) for i in (0, 1))
        limits = bland_altman(fake, real)
        estimates = {
            "bias": limits.bias,
            "lower_limit": limits.lower,
            "upper_limit": limits.upper,
            "pearson": pearson(fake, real),
            "concordance": concordance(fake, real),
        }
        if limits.num < MIN_SUBJECTS:
            estimates = {n: Estimate(e.value, math.nan, math.nan) for n, e in estimates.items()}
            estimates |= {"lower_limit": _UNKNOWN, "upper_limit": _UNKNOWN}
        table.append({**dict(zip(keys, key, strict=True)), "num": limits.num, **_flat(estimates)})
    return table


def _flat(estimates: dict[str, Estimate]) -> Line:
    line: Line = {}
    for name, estimate in estimates.items():
        line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return line
