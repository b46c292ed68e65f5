import dataclasses

import numpy as np
import pytest

from ganbert.data.phantom_anatomy import Anatomy, Person, build_anatomy, centred_affine
from ganbert.data.phantom_template import REGIONS, load_template
from ganbert.data.phantom_uptake import UPTAKE, paint_uptake, reference_mask
from ganbert.tracers import TRACERS

SHAPE = (48, 58, 48)
HEALTHY = Person(label="001", age_years=70, sex="F", diagnosis="CN", severity=0.0)
ILL = dataclasses.replace(HEALTHY, diagnosis="AD", severity=1.0)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    affine = centred_affine(SHAPE, (4.0, 4.0, 4.0))
    return build_anatomy(load_template(4), HEALTHY, SHAPE, affine, np.random.default_rng(0))


def suvr(tracer: str, anatomy: Anatomy, person: Person) -> dict[str, float]:
    """Mean late uptake of grey (white for white matter) by region over the reference region."""
    activity = paint_uptake(tracer, anatomy, person, np.random.default_rng(0)).activity[1]
    reference = activity[reference_mask(tracer, anatomy) > 0].mean()
    return {
        name: float(activity[anatomy.dseg == label].mean() / reference)
        for name, label in REGIONS.items()
    }


@pytest.mark.parametrize("tracer", TRACERS)
def test_every_tracer_has_a_pattern_that_names_known_regions(tracer: str) -> None:
    pattern = UPTAKE[tracer]
    for table in (pattern.grey, pattern.white_of, pattern.change, pattern.per_decade):
        assert set(table) <= REGIONS.keys()
    (early, late), (early_s, _) = pattern.frame_start_s, pattern.frame_duration_s
    assert 0 < early < early + early_s <= late


@pytest.mark.parametrize("tracer", TRACERS)
def test_uptake_is_positive_finite_and_the_frames_differ(tracer: str, anatomy: Anatomy) -> None:
    activity = paint_uptake(tracer, anatomy, ILL, np.random.default_rng(1)).activity
    assert activity.shape == (2, *SHAPE)
    assert activity.dtype == np.float32
    assert np.isfinite(activity).all()
    assert activity.min() >= 0
    # Not one a multiple of the other.
    inside = anatomy.dseg > 0
    assert np.corrcoef(activity[0][inside], activity[1][inside])[0, 1] < 0.999


def test_amyloid_reaches_precuneus_and_frontal_cortex_and_spares_the_medial_temporal_lobe(
    anatomy: Anatomy,
) -> None:
    healthy, ill = suvr("AV45", anatomy, HEALTHY), suvr("AV45", anatomy, ILL)
    rise = {name: ill[name] - healthy[name] for name in healthy}
    assert rise["precuneus_posterior_cingulate"] > rise["sensorimotor"] > rise["medial_temporal"]
    assert rise["frontal"] > rise["occipital"]
    # Amyloid-negative white matter keeps more tracer than negative cortex.
    assert healthy["cerebral_white_matter"] > 1.3 * healthy["frontal"]


def test_tau_spreads_from_the_medial_temporal_lobe(anatomy: Anatomy) -> None:
    early_ill = dataclasses.replace(HEALTHY, severity=0.35)
    healthy, mild = suvr("AV1451", anatomy, HEALTHY), suvr("AV1451", anatomy, early_ill)
    rise = {name: mild[name] - healthy[name] for name in healthy}
    assert rise["medial_temporal"] > rise["lateral_temporal"] > rise["frontal"]
    assert rise["sensorimotor"] == pytest.approx(0, abs=0.02)


def test_tau_tracer_binds_off_target_and_more_so_with_age(anatomy: Anatomy) -> None:
    young = suvr("AV1451", anatomy, dataclasses.replace(HEALTHY, age_years=55))
    old = suvr("AV1451", anatomy, dataclasses.replace(HEALTHY, age_years=90))
    assert old["striatum"] > young["striatum"] + 0.15
    assert young["choroid_plexus"] > 1.5 * young["frontal"]


def test_glucose_falls_in_temporoparietal_cortex(anatomy: Anatomy) -> None:
    healthy, ill = suvr("FDG", anatomy, HEALTHY), suvr("FDG", anatomy, ILL)
    assert ill["precuneus_posterior_cingulate"] < 0.8 * healthy["precuneus_posterior_cingulate"]
    assert ill["lateral_parietal"] < 0.8 * healthy["lateral_parietal"]
    assert ill["sensorimotor"] == pytest.approx(healthy["sensorimotor"], rel=0.08)
    assert healthy["frontal"] > healthy["cerebral_white_matter"]


def test_unexplained_atrophy_raises_the_local_load(anatomy: Anatomy) -> None:
    """The random part of atrophy, which the MRI shows, moves the PET as well."""
    label = REGIONS["lateral_parietal"]
    more = anatomy.atrophy.copy()
    more[label] += 0.1
    person = dataclasses.replace(HEALTHY, severity=0.5)
    thinner = dataclasses.replace(anatomy, atrophy=more)
    before, after = (suvr("AV45", a, person)["lateral_parietal"] for a in (anatomy, thinner))
    assert after > before + 0.03


@pytest.mark.parametrize("tracer", TRACERS)
def test_people_of_the_same_severity_differ(tracer: str, anatomy: Anatomy) -> None:
    person = dataclasses.replace(HEALTHY, severity=0.5)
    loads = [
        paint_uptake(tracer, anatomy, person, np.random.default_rng(seed)).load
        for seed in range(20)
    ]
    assert 0.05 < np.std(loads) < 0.35
