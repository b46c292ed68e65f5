"""Units of PET: what they are called, what turns one into another, and which facts that needs.

Nothing is guessed: an unknown name stays what it is unless a conversion is asked for, and then it
is an error; a conversion that lacks a fact says which key of the sidecar is missing.

    Bq/mL, kBq/mL, ...   activity concentration, by a table of factors
    SUV (g/mL)           activity concentration / (injected activity / body weight)
    SUVR                 activity concentration / its mean in a reference region
    arbitrary            proportional to activity by a factor that nobody knows

    Bq/mL -> SUV, SUVR;  SUV -> SUVR;  arbitrary -> SUVR
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ganbert.data.volume import FloatArray, Mask, Pair
from ganbert.errors import ConfigError, DatasetError
from ganbert.tracers import TRACERS

# Keys of the PET sidecar (BIDS 1.11, "PET recording data") that conversions need, and the column of
# participants.tsv with the body weight: BIDS has no key for it and leaves further columns free.
WEIGHT = "weight"
_CORRECTED = "ImageDecayCorrected"
FACTS = (
    "InjectedRadioactivity",
    "InjectedRadioactivityUnits",
    "InjectionStart",
    _CORRECTED,
    "ImageDecayCorrectionTime",
    WEIGHT,
)
TARGETS = ("Bq/mL", "SUV", "SUVR")
# Dose and weight are of a person, and not repeated.
_OTHER = "something else"
# Of people, with room on both sides: outside are grams for kg, Bq for MBq and the like.
_WEIGHT_KG = (1.0, 500.0)
_DOSE_BQ = (1e6, 1e10)
# Of a decay by 20 half-lives, a factor of a million.
_MAX_EXPONENT = 20 * math.log(2)


@dataclass(frozen=True)
class Unit:
    """A unit by its kind.

    Attributes
    ----------
    kind : "Bq/mL", "SUV", "SUVR" or "arbitrary"
    factor : times this it is in `kind`
    """

    kind: str
    factor: float = 1.0


# By lower-case name. "bqml" and "gml" are DICOM's (0054,1001); mL and cc are the same volume.
UNITS: dict[str, Unit] = {
    "bq/ml": Unit("Bq/mL"),
    "bqml": Unit("Bq/mL"),
    "bq/cc": Unit("Bq/mL"),
    "kbq/ml": Unit("Bq/mL", 1e3),
    "kbq/cc": Unit("Bq/mL", 1e3),
    "mbq/ml": Unit("Bq/mL", 1e6),
    "bq/l": Unit("Bq/mL", 1e-3),
    "kbq/l": Unit("Bq/mL"),
    "nci/ml": Unit("Bq/mL", 37.0),
    "nci/cc": Unit("Bq/mL", 37.0),
    "uci/ml": Unit("Bq/mL", 37e3),
    "suv": Unit("SUV"),
    "suvbw": Unit("SUV"),
    "g/ml": Unit("SUV"),
    "gml": Unit("SUV"),
    "suvr": Unit("SUVR"),
    "arbitrary": Unit("arbitrary"),
}
# Of injected activity, in Bq.
ACTIVITIES: dict[str, float] = {
    "bq": 1.0,
    "kbq": 1e3,
    "mbq": 1e6,
    "gbq": 1e9,
    "uci": 37e3,
    "mci": 37e6,
    "ci": 37e9,
}
# Proportional to activity as it was measured, so that decay is still in it or was taken out; SUV is
# corrected by its definition.
_OF_ACTIVITY = ("Bq/mL", "arbitrary")
_NOT_SAID = (None, "", "n/a")
# From which kinds a target can be reached.
_SOURCES: dict[str, tuple[str, ...]] = {
    "Bq/mL": ("Bq/mL",),
    "SUV": ("Bq/mL", "SUV"),
    "SUVR": ("Bq/mL", "SUV", "arbitrary", "SUVR"),
}


def check_target(unit: str | None) -> None:
    """Refuse a unit that nothing converts to.

    Raises
    ------
    ConfigError
        If it is not one of `TARGETS` (None is as the sidecar says).
    """
    if unit is not None and unit not in TARGETS:
        expected = f"one of {', '.join(TARGETS)}"
        raise ConfigError("--unit", expected=expected, found=unit, remedy="choose one")


def needs_reference(unit: str, target: str | None) -> bool:
    """Return whether the way from `unit` to `target` leads through a reference region."""
    return target == "SUVR" and _find(unit) != Unit("SUVR")


def unit_factors(pair: Pair, target: str) -> tuple[float, ...]:
    """Return what each frame on disk must be multiplied by, on its way to `target`.

    Parameters
    ----------
    target : one of `TARGETS`; for SUVR the division by the reference region is still to come

    Raises
    ------
    DatasetError
        If the unit of the PET is unknown, `target` cannot be reached from it, or a fact is missing
        or makes no sense; all that are missing are named at once.

    Notes
    -----
    SUV = C w / A0 with C the activity concentration (Bq/mL), corrected for decay back to the
    injection, w the body weight (g) and A0 the activity at injection (Bq); 1 mL of tissue counts
    as 1 g.

    A PET whose sidecar does not say `ImageDecayCorrected` is refused on the way to SUV. On the way
    to SUVR it counts as corrected: in a single frame decay cancels in the ratio, and where frames
    are averaged it changes their weights a little, of which `is_decay_assumed` tells.

    Source
    ------
    DICOM PS3.3 C.8.9.1 (units, decay correction); Thie 2004, J Nucl Med 45(9) (SUV).
    """
    source = _find(pair.unit)
    if source is None or source.kind not in _SOURCES[target]:
        raise DatasetError(
            pair.pet,
            expected=f"a unit that {target} follows from ({', '.join(_SOURCES[target])})",
            found=f"{pair.unit!r}",
            remedy="convert the image yourself, or leave out --unit",
        )
    num = len(pair.frame_start_s)
    if source.kind not in _OF_ACTIVITY or target == "Bq/mL":
        return (source.factor,) * num
    is_uncorrected = _is_uncorrected(pair)
    if target == "SUVR" and not is_uncorrected:
        return (source.factor,) * num  # a common decay cancels in the ratio
    _require(pair, target, _keys(target, is_uncorrected))
    decay = _decay_factors(pair, is_uncorrected)
    per_dose = _grams_per_becquerel(pair) if target == "SUV" else 1.0
    return tuple(source.factor * factor * per_dose for factor in decay)


def is_decay_assumed(pair: Pair, target: str) -> bool:
    """Whether `unit_factors` takes the frames for decay-corrected although nothing says so.

    Parameters
    ----------
    target : as there
    """
    source = _find(pair.unit)
    is_of_activity = source is not None and source.kind in _OF_ACTIVITY
    return target == "SUVR" and is_of_activity and pair.facts.get(_CORRECTED) in _NOT_SAID


def _is_uncorrected(pair: Pair) -> bool:
    said = pair.facts.get(_CORRECTED)
    # A "false" in quotation marks must not be taken for true.
    if said not in _NOT_SAID and not isinstance(said, bool):
        expected = "true or false as 'ImageDecayCorrected'"
        raise DatasetError(pair.pet, expected=expected, found=repr(said), remedy="mend it")
    return said is False


def _find(unit: str) -> Unit | None:
    return UNITS.get(_plain(unit))


def _plain(name: str) -> str:
    """Return the name of a unit as the tables have it, but for millibecquerels."""
    name = name.strip().replace("\u00b5", "u").replace("\u03bc", "u").replace(" ", "")
    # Case tells mega from milli, and which of the two somebody meant is not guessed.
    return name if name.startswith("mB") else name.lower()


def _keys(target: str, is_uncorrected: bool) -> Sequence[str]:
    timing = ["InjectionStart"]
    if not is_uncorrected:
        timing += [_CORRECTED, "ImageDecayCorrectionTime"]
    if target == "SUVR":
        return timing
    return ["InjectedRadioactivity", "InjectedRadioactivityUnits", *timing, WEIGHT]


def _require(pair: Pair, target: str, keys: Sequence[str]) -> None:
    missing = [key for key in keys if pair.facts.get(key) in _NOT_SAID]
    in_sidecar = [f"'{key}'" for key in missing if key != WEIGHT]
    wanted = [f"{', '.join(in_sidecar)} in its JSON sidecar"] if in_sidecar else []
    if WEIGHT in missing:
        wanted.append(f"'{WEIGHT}' (kg) of the subject in participants.tsv")
    if wanted:
        raise DatasetError(
            pair.pet,
            expected=f"{' and '.join(wanted)}, to turn {pair.unit} into {target}",
            found="none",
            remedy="add them, or leave out --unit",
        )


def _number(pair: Pair, key: str, *, positive: bool = False) -> float:
    value = pair.facts[key]
    try:
        # `float(True)` would be 1.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        expected = f"a {'positive ' if positive else ''}number as '{key}'"
        raise DatasetError(pair.pet, expected=expected, found=_OTHER, remedy="mend it")
    return number


def _grams_per_becquerel(pair: Pair) -> float:
    unit = _plain(str(pair.facts["InjectedRadioactivityUnits"]))
    if unit not in ACTIVITIES:
        raise DatasetError(
            pair.pet,
            expected=f"'InjectedRadioactivityUnits' in {', '.join(ACTIVITIES)} (any case but mBq)",
            found=repr(pair.facts["InjectedRadioactivityUnits"]),
            remedy="mend it",
        )
    dose = _number(pair, "InjectedRadioactivity", positive=True) * ACTIVITIES[unit]
    weight = _number(pair, WEIGHT, positive=True)
    for key, value, (low, high), words in (
        ("InjectedRadioactivity", dose, _DOSE_BQ, "1 MBq to 10 GBq"),
        (WEIGHT, weight, _WEIGHT_KG, "1 to 500 kg"),
    ):
        if not low <= value <= high:
            raise DatasetError(
                pair.pet,
                expected=f"{words} as '{key}'",
                found=_OTHER,
                remedy="check its unit; SUV would be off by its factor",
            )
    return weight * 1e3 / dose


def _decay_factors(pair: Pair, is_uncorrected: bool) -> list[float]:
    """Return what takes each frame to the activity at injection.

    Corrected images are corrected to one point in time, T after injection: exp(l T), l = ln 2 /
    half-life. A frame that is not corrected is the mean of exp(-l t) over its duration d from its
    start s: l d / (exp(-l s) (1 - exp(-l d))).
    """
    rate = math.log(2) / TRACERS[pair.tracer].half_life_s
    if not is_uncorrected:
        corrected_to = _number(pair, "ImageDecayCorrectionTime") - _number(pair, "InjectionStart")
        if abs(rate * corrected_to) > _MAX_EXPONENT:
            raise DatasetError(
                pair.pet,
                expected="'ImageDecayCorrectionTime' within 20 half-lives of 'InjectionStart'",
                found=f"{corrected_to:g} s between them",
                remedy="mend them; both are in seconds from TimeZero",
            )
        return [math.exp(rate * corrected_to)] * len(pair.frame_start_s)
    _number(pair, "InjectionStart")  # from which the starts of the frames were counted
    return [
        math.exp(rate * start) * rate * duration / -math.expm1(-rate * duration)
        for start, duration in zip(pair.frame_start_s, pair.frame_duration_s, strict=True)
    ]


def read_facts(content: Mapping[str, Any], weight_kg: Any = None) -> dict[str, Any]:
    """Pick from a sidecar what conversions need.

    Parameters
    ----------
    content : of the sidecar
    weight_kg : of the subject, where the dataset has it
    """
    facts = {key: content[key] for key in FACTS if content.get(key) is not None}
    return facts if weight_kg is None else facts | {WEIGHT: weight_kg}


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
