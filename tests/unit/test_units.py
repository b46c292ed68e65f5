"""Conversions of units at values computed by hand, and the facts that they miss."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ganbert.data.units import (
    TARGETS,
    UNITS,
    check_target,
    needs_reference,
    read_facts,
    unit_factors,
)
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError
from ganbert.tracers import TRACERS

HALF_LIFE_S = TRACERS["FDG"].half_life_s
# 70 kg and 350 MBq: 1 SUV is 5000 Bq/mL.
FACTS: dict[str, Any] = {
    "InjectedRadioactivity": 350,
    "InjectedRadioactivityUnits": "MBq",
    "InjectionStart": 0,
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
    "weight": "70",
}


def pet(unit: str, **facts: Any) -> Pair:
    return Pair(
        subject="01",
        session=None,
        tracer="FDG",
        mri="t1w.nii",
        pet="pet.nii",
        unit=unit,
        frame_start_s=(1800.0, 2400.0),
        frame_duration_s=(600.0, 600.0),
        facts=FACTS | facts,
    )


def test_suv_is_activity_by_dose_and_weight() -> None:
    assert unit_factors(pet("Bq/mL"), "SUV") == pytest.approx((1 / 5000, 1 / 5000))
    assert unit_factors(pet("kBq/mL"), "SUV") == pytest.approx((1 / 5, 1 / 5))


@pytest.mark.parametrize(
    ("dose", "unit"),
    [(350e6, "Bq"), (350e3, "kBq"), (0.35, "GBq"), (350 / 37, "mCi"), (350e3 / 37, "\u00b5Ci")],
)
def test_doses_in_other_units(dose: float, unit: str) -> None:
    facts = {"InjectedRadioactivity": dose, "InjectedRadioactivityUnits": unit}
    assert unit_factors(pet("Bq/mL", **facts), "SUV") == pytest.approx((1 / 5000, 1 / 5000))


def test_decay_corrected_to_another_time_than_the_injection() -> None:
    # Corrected to one half-life after the injection: then it was twice as much.
    facts = {"InjectionStart": -1000, "ImageDecayCorrectionTime": HALF_LIFE_S - 1000}
    assert unit_factors(pet("Bq/mL", **facts), "SUV") == pytest.approx((2 / 5000, 2 / 5000))


def test_decay_that_is_not_corrected_is_corrected_for_each_frame() -> None:
    uncorrected = {"ImageDecayCorrected": False, "ImageDecayCorrectionTime": None}
    short = replace(
        pet("Bq/mL", **uncorrected),
        frame_start_s=(HALF_LIFE_S, 2 * HALF_LIFE_S),
        frame_duration_s=(1e-3, 1e-3),
    )
    assert unit_factors(short, "SUV") == pytest.approx((2 / 5000, 4 / 5000))
    # Over one half-life from the injection on, the mean is (1 - 1/2) / ln 2 of the start.
    long = replace(short, frame_start_s=(0.0, HALF_LIFE_S), frame_duration_s=(HALF_LIFE_S,) * 2)
    first = 2 * math.log(2) / 5000
    assert unit_factors(long, "SUV") == pytest.approx((first, 2 * first))
    # What is left of it in a ratio is that later frames count as much as earlier ones.
    assert unit_factors(long, "SUVR") == pytest.approx((2 * math.log(2), 4 * math.log(2)))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("Bq/mL", 1),
        ("Bq/ml", 1),
        ("BQML", 1),
        ("kBq/mL", 1e3),
        ("MBq/mL", 1e6),
        ("nCi/cc", 37),
        (" kBq / mL ", 1e3),
    ],
)
def test_activity_concentrations_are_scaled_by_a_table(unit: str, factor: float) -> None:
    assert unit_factors(pet(unit), "Bq/mL") == (factor, factor)


@pytest.mark.parametrize(
    ("unit", "target"),
    [
        ("SUV", "SUV"),
        ("g/mL", "SUV"),
        ("SUV", "SUVR"),
        ("SUVR", "SUVR"),
        ("arbitrary", "SUVR"),
    ],
)
def test_nothing_is_needed_where_nothing_is_converted(unit: str, target: str) -> None:
    assert unit_factors(replace(pet(unit), facts={}), target) == (1, 1)


@pytest.mark.parametrize(
    ("unit", "target"),
    [
        ("SUVR", "SUV"),
        ("SUVR", "Bq/mL"),
        ("SUV", "Bq/mL"),
        ("arbitrary", "SUV"),
        ("counts", "SUVR"),
        ("counts", "Bq/mL"),
    ],
)
def test_what_does_not_follow_is_refused(unit: str, target: str) -> None:
    with pytest.raises(DatasetError, match=f"pet.nii: expected a unit that {target} follows from"):
        unit_factors(pet(unit), target)


@pytest.mark.parametrize("key", FACTS)
def test_a_missing_fact_is_named(key: str) -> None:
    for nothing in (None, "n/a", ""):
        with pytest.raises(DatasetError, match=f"'{key}'") as caught:
            unit_factors(pet("Bq/mL", **{key: nothing}), "SUV")
        others = [f"'{other}'" for other in FACTS if other != key]
        assert not any(other in str(caught.value) for other in others)


def test_all_missing_facts_are_named_at_once() -> None:
    with pytest.raises(DatasetError) as caught:
        unit_factors(replace(pet("Bq/mL"), facts={}), "SUV")
    assert str(caught.value) == (
        "pet.nii: expected 'InjectedRadioactivity', 'InjectedRadioactivityUnits', "
        "'InjectionStart', 'ImageDecayCorrected', 'ImageDecayCorrectionTime' in its JSON sidecar "
        "and 'weight' (kg) of the subject in participants.tsv, to turn Bq/mL into SUV, found none; "
        "add them, or leave out --unit"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("InjectedRadioactivity", 0),
        ("InjectedRadioactivity", True),
        ("InjectedRadioactivity", "much"),
        ("InjectedRadioactivityUnits", "MBq/kg"),
        ("weight", "-70"),
        ("ImageDecayCorrected", "yes"),
        ("ImageDecayCorrectionTime", math.nan),
        ("ImageDecayCorrectionTime", 1e9),
        ("ImageDecayCorrectionTime", -1e9),
    ],
)
def test_a_fact_without_sense_is_named(key: str, value: Any) -> None:
    with pytest.raises(DatasetError, match=f"'{key}'"):
        unit_factors(pet("Bq/mL", **{key: value}), "SUV")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("weight", 70_000, "1 to 500 kg"),
        ("weight", 0.07, "1 to 500 kg"),
        ("InjectedRadioactivity", 350e6, "1 MBq to 10 GBq"),
        ("InjectedRadioactivity", 0.35, "1 MBq to 10 GBq"),
    ],
)
def test_a_dose_or_weight_in_another_unit_than_it_says(
    key: str, value: float, expected: str
) -> None:
    with pytest.raises(DatasetError, match=f"{expected} as '{key}'") as caught:
        unit_factors(pet("Bq/mL", **{key: value}), "SUV")
    assert f"{value:g}" not in str(caught.value)  # of a person
    assert unit_factors(pet("Bq/mL", **{key: value}), "SUVR") == (1, 1)


@pytest.mark.parametrize("said", ["false", "true", 0, 1])
def test_what_is_neither_true_nor_false_is_not_taken_for_true(said: Any) -> None:
    # Frames that are not corrected would count less and less in an average.
    with pytest.raises(DatasetError, match="true or false as 'ImageDecayCorrected'"):
        unit_factors(pet("Bq/mL", ImageDecayCorrected=said), "SUVR")


def test_the_way_to_suvr_leads_through_a_reference_region() -> None:
    assert [unit for unit in UNITS if not needs_reference(unit, "SUVR")] == ["suvr"]
    assert not any(needs_reference("Bq/mL", target) for target in ("Bq/mL", "SUV", None))


def test_targets() -> None:
    for target in (*TARGETS, None):
        check_target(target)
    with pytest.raises(ConfigError, match="one of Bq/mL, SUV, SUVR, found counts"):
        check_target("counts")


def test_facts_of_a_sidecar() -> None:
    content = {"InjectionStart": 0, "Units": "SUV", "ImageDecayCorrected": None}
    assert read_facts(content) == {"InjectionStart": 0}
    assert read_facts(content, "70") == {"InjectionStart": 0, "weight": "70"}


def test_millibecquerels_are_not_taken_for_megabecquerels() -> None:
    assert unit_factors(pet("MBq/mL"), "Bq/mL") == (1e6, 1e6)
    assert unit_factors(pet("mbq/ml"), "Bq/mL") == (1e6, 1e6)
    with pytest.raises(DatasetError, match=r"found 'mBq/mL'"):
        unit_factors(pet("mBq/mL"), "Bq/mL")
    with pytest.raises(DatasetError, match=r"any case but mBq\), found 'mBq'"):
        unit_factors(pet("Bq/mL", InjectedRadioactivityUnits="mBq"), "SUV")
