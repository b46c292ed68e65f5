"""What holds for every tracer of the table, also for one that is added tomorrow."""

import re

import pytest

from ganbert.data.phantom_template import REGIONS
from ganbert.data.regions import find_region
from ganbert.errors import ConfigError
from ganbert.tracers import TRACERS, Tracer, get_tracer

EVERY = pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)


@EVERY
def test_key_is_the_name(tracer: Tracer) -> None:
    assert TRACERS[tracer.name] is tracer


@EVERY
def test_is_found_by_name_and_by_label_in_any_case(tracer: Tracer) -> None:
    assert get_tracer(tracer.name.lower()) is tracer
    assert get_tracer(tracer.bids_label.upper()) is tracer


@EVERY
def test_label_is_a_bids_label(tracer: Tracer) -> None:
    assert re.fullmatch("[0-9A-Za-z]+", tracer.bids_label)


@EVERY
def test_numbers_are_plausible(tracer: Tracer) -> None:
    low, high = tracer.data_range_suvr
    assert low < high
    # From O-15 (2 minutes) to Zr-89 (78 hours).
    assert 120 <= tracer.half_life_s <= 300_000


@EVERY
def test_only_amyloid_has_a_centiloid_scale(tracer: Tracer) -> None:
    if tracer.centiloid is not None:
        assert tracer.target == "amyloid"
        assert tracer.centiloid.slope > 0 > tracer.centiloid.intercept
        assert tracer.centiloid.source


@EVERY
def test_reference_region_is_found_in_the_phantom(tracer: Tracer) -> None:
    assert find_region({label: name for name, label in REGIONS.items()}, tracer.reference_region)


def test_fluorine_18_decays_with_a_half_life_of_110_minutes() -> None:
    assert TRACERS["FDG"].half_life_s / 60 == pytest.approx(109.77, abs=0.01)


def test_unknown_tracer_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"AV45, AV1451, FDG.*'PIB'"):
        get_tracer("PIB")
