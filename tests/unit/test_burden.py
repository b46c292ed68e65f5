"""The burden of a subject: which regions make it, and its value by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.burden import (
    BURDEN_KEYS,
    BurdenPlan,
    burden_lines,
    composite_suvr,
    describe_burden,
    plan_burden,
    why_left_out,
)
from ganbert.data.phantom_template import REGIONS
from ganbert.data.regions import reference_labels
from ganbert.errors import ConfigError
from ganbert.tracers import TRACERS

PHANTOM = {label: name for name, label in REGIONS.items()}
NAMES = {1: "frontal", 2: "insula", 3: "cerebellum", 4: "Pons"}
LABELS = np.array([1, 1, 2, 3, 3, 0]).reshape(1, 1, 6)


def plan(target: list[str], reference: list[str], tracer: str = "AV45") -> BurdenPlan:
    found = plan_burden(tracer, NAMES, target, reference)
    assert found is not None
    return found


def pet(*voxels: float) -> np.ndarray:
    """Two frames of six voxels; the first is noise that must not count."""
    late = np.array(voxels, np.float32).reshape(1, 1, 1, 6)
    return np.concatenate([late[..., ::-1] + 7, late])


@pytest.mark.parametrize("tracer", TRACERS)
def test_every_tracer_has_its_regions_in_the_phantom(tracer: str) -> None:
    found = plan_burden(tracer, PHANTOM)
    assert found is not None
    assert {PHANTOM[label] for label in found.target_labels} == set(found.target)
    assert {PHANTOM[label] for label in found.reference_labels} == set(found.reference)


def test_the_reference_is_that_of_the_tracer() -> None:
    references = {t: plan_burden(t, PHANTOM).reference for t in TRACERS}  # type: ignore[union-attr]
    assert references["FDG"] == ("pons",)
    assert references["AV1451"] == ("cerebellar_grey_matter",)
    assert references["AV45"] == ("cerebellar_grey_matter", "cerebellar_white_matter")


def test_freesurfer_names_are_known_and_both_sides_taken() -> None:
    row = TRACERS["AV45"].burden[1]
    sides = [f"{s}-Cerebellum-{t}" for t in ("Cortex", "White-Matter") for s in ("Left", "Right")]
    names = dict(enumerate((*row.target, *sides, "WM"), 1))
    found = plan_burden("AV45", names)
    assert found is not None
    assert {"ctx-lh-precuneus", "ctx-rh-precuneus"} <= set(found.target)
    assert list(found.reference) == sides
    assert len(found.target_labels) == 36
    # Without one of them the composite would be another one.
    del names[1]
    assert plan_burden("AV45", names) is None


def test_without_known_names_it_is_left_out_with_a_reason() -> None:
    assert plan_burden("AV45", NAMES) is None
    assert "--target-regions" in why_left_out("AV45", NAMES)
    assert "\n" not in why_left_out("AV45", NAMES)
    assert plan_burden("AV45", {}) is None
    assert "no names" in why_left_out("AV45", {})


def test_one_side_may_come_from_the_tracer_table() -> None:
    found = plan_burden("AV45", PHANTOM, target=["precuneus_posterior_cingulate"])
    assert found is not None
    assert found.target_labels == (12,)
    assert found.reference == ("cerebellar_grey_matter", "cerebellar_white_matter")
    assert found.source == "as asked for"


@pytest.mark.parametrize(
    ("target", "reference", "names", "message"),
    [
        (["frontl"], ["cerebellum"], NAMES, "--target-regions: .*'frontl'; did you mean 'frontal'"),
        (["frontal"], ["PON"], NAMES, r"--reference-regions: .*'PON'; did you mean 'Pons'\?"),
        (["xyz"], ["cerebellum"], NAMES, "choose among Pons, cerebellum, frontal, insula"),
        (["frontal"], None, {1: "frontal"}, "--reference-regions: .*give both"),
        (None, ["cerebellum"], NAMES, "--target-regions: .*give both"),
        ([], ["cerebellum"], NAMES, "separate them by commas"),
        (["frontal"], ["cerebellum"], {}, "found none in its index; put a _dseg"),
        (["frontal", "insula"], ["insula"], NAMES, "no region in both, found insula"),
    ],
)
def test_names_that_do_not_fit_are_one_line(
    target: list[str] | None, reference: list[str] | None, names: dict[int, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_burden("AV45", names, target, reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "asked", ["precuneus_posterior_cingulate", "Precuneus-Posterior cingulate"]
)
def test_case_and_what_joins_the_words_do_not_count(asked: str) -> None:
    found = plan_burden("AV45", PHANTOM, [asked, "FRONTAL", "frontal"], ["Whole Cerebellum"])
    assert found is not None
    assert found.target == ("precuneus_posterior_cingulate", "frontal")
    assert found.reference == ("cerebellar_grey_matter", "cerebellar_white_matter")


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("entry", [0, 1])
def test_prepare_and_burden_divide_by_the_same_region(tracer: str, entry: int) -> None:
    aseg = [f"{s}-Cerebellum-{t}" for s in ("Left", "Right") for t in ("White-Matter", "Cortex")]
    own = dict(enumerate([*TRACERS[tracer].burden[entry].target, *aseg, "Brain-Stem", "Pons"], 1))
    for names in (PHANTOM, own):
        found = plan_burden(tracer, names)
        assert found is not None
        of_prepare = reference_labels(names, [TRACERS[tracer].reference_region])
        assert tuple(sorted(found.reference_labels)) == of_prepare


def test_many_names_are_not_all_listed() -> None:
    names = {label: f"region{label:03d}" for label in range(1, 101)}
    with pytest.raises(ConfigError, match="region012 and 88 more"):
        plan_burden("AV45", names, ["???"], ["region001"])


def test_the_composite_is_the_mean_of_its_voxels_over_the_reference_in_the_last_frame() -> None:
    image = pet(2, 4, 9, 1, 3, 100)
    assert composite_suvr(image, LABELS, plan(["frontal"], ["cerebellum"])) == pytest.approx(1.5)
    # (2 + 4 + 9) / 3 = 5, not the mean of the regions' means (3 + 9) / 2.
    both = plan(["frontal", "insula"], ["cerebellum"])
    assert composite_suvr(image, LABELS, both) == pytest.approx(2.5)


@given(st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_a_factor_does_not_change_it(factor: float, seed: int) -> None:
    voxels = np.random.default_rng(seed).uniform(0.5, 3, 6)
    chosen = plan(["frontal", "insula"], ["cerebellum"])
    once = composite_suvr(pet(*voxels), LABELS, chosen)
    scaled = composite_suvr(np.float32(factor) * pet(*voxels), LABELS, chosen)
    assert scaled == pytest.approx(once, rel=1e-4)


@pytest.mark.parametrize("reference", [-1.0, 0.0, math.nan])
def test_a_reference_without_uptake_leaves_a_gap(reference: float) -> None:
    image = pet(2, 4, 9, reference, reference, 1)
    assert math.isnan(composite_suvr(image, LABELS, plan(["frontal"], ["cerebellum"])))


def test_a_region_without_a_voxel_leaves_a_gap() -> None:
    image = pet(2, 4, 9, 1, 3, 1)
    assert math.isnan(composite_suvr(image, LABELS, plan(["Pons"], ["cerebellum"])))
    assert math.isnan(composite_suvr(image, LABELS, plan(["frontal"], ["Pons"])))


def test_lines_compare_suvr_and_centiloid() -> None:
    pets, references = {"ganbert": pet(2, 4, 9, 2, 2, 0)}, {"real": pet(2, 4, 9, 1, 3, 0)}
    references["truth"] = pet(3, 3, 9, 3, 3, 0)
    chosen = plan_burden("AV45", PHANTOM)
    assert chosen is not None
    # Frontal twice, insula (no part of the composite), both parts of the cerebellum.
    labels = np.array([14, 14, 16, 3, 4, 0]).reshape(1, 1, 6)
    lines = list(
        burden_lines({"subject": "01", "tracer": "AV45"}, pets, references, labels, chosen)
    )
    assert [(line["reference"], line["measure"]) for line in lines] == [
        ("real", "suvr"), ("real", "centiloid"), ("truth", "suvr"), ("truth", "centiloid"),
    ]  # fmt: skip
    suvr, centiloid, of_truth, _ = lines
    assert (suvr["burden_real"], suvr["burden_fake"], suvr["bias"]) == (1.5, 1.5, 0)
    assert (of_truth["burden_real"], of_truth["bias"]) == (1.0, 0.5)
    # Navitsky et al. 2018: 183.07 * 1.5 - 177.26.
    assert centiloid["burden_real"] == pytest.approx(97.345)
    assert (suvr["frame"], suvr["num_target_voxels"], suvr["num_reference_voxels"]) == (2, 2, 2)
    assert set(BURDEN_KEYS) <= suvr.keys()
    about = describe_burden(chosen, lines)
    assert about["centiloid_source"].startswith("Navitsky")
    assert about["centiloid_note"].endswith("an approximation.")
    assert (about["num_subjects"], about["frame"]) == (1, 2)


def test_regions_of_ones_own_have_no_centiloid_and_it_is_said_why() -> None:
    images = {"ganbert": pet(2, 4, 9, 2, 2, 0)}
    for regions in (
        (["frontal"], None),
        (None, ["pons"]),
        (["frontal", "insula"], ["cerebellar_grey_matter"]),
    ):
        chosen = plan_burden("AV45", PHANTOM, *regions)
        assert chosen is not None
        lines = list(burden_lines({"subject": "01"}, images, images, LABELS, chosen))
        assert [line["measure"] for line in lines] == ["suvr"]
        about = describe_burden(chosen, lines)
        assert about["centiloid_source"] is None
        assert about["centiloid_note"].startswith("No Centiloid: it is defined for the standard")


def test_to_ask_for_the_standard_regions_is_to_ask_for_nothing() -> None:
    by_default = plan_burden("AV45", PHANTOM)
    assert by_default is not None
    assert plan_burden("AV45", PHANTOM, by_default.target, ["whole cerebellum"]) == by_default
    assert by_default.is_standard


def test_a_tracer_without_a_scale_has_suvr_alone() -> None:
    chosen = plan(["frontal"], ["cerebellum"], "AV1451")
    images = {"ganbert": pet(2, 4, 9, 2, 2, 0)}
    lines = list(burden_lines({"subject": "01"}, images, images, LABELS, chosen))
    assert [line["measure"] for line in lines] == ["suvr"]
    about = describe_burden(chosen, lines)
    assert (about["centiloid_source"], about["centiloid_note"]) == (None, "")
