"""Frames and unit together: the plan from the sidecar, and what it does to voxels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ganbert.data.recast import (
    RecastOptions,
    describe_assumption,
    divide_by_reference,
    plan_recast,
    recast_frames,
)
from ganbert.data.volume import Pair, Recast, Volume
from ganbert.errors import ConfigError, DatasetError

NAMES = {3: "cerebellar_white_matter", 4: "cerebellar_grey_matter", 5: "pons"}
DYNAMIC = Pair(
    subject="01",
    session="A",
    tracer="AV45",
    mri="t1w.nii",
    pet="pet.nii",
    unit="kBq/mL",
    frame_start_s=(0.0, 60.0, 180.0),
    frame_duration_s=(60.0, 120.0, 180.0),
    dseg="dseg.nii",
    facts={
        "InjectedRadioactivity": 350,
        "InjectedRadioactivityUnits": "MBq",
        "InjectionStart": 0,
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "weight": 70,
    },
)


def plan(options: RecastOptions, pair: Pair = DYNAMIC, dataset: Path = Path()) -> Recast:
    recast = plan_recast(pair, options, NAMES, dataset).recast
    assert recast is not None
    return recast


def test_halves_in_suv() -> None:
    recast = plan(RecastOptions(frames="halves", unit="SUV"))
    # 1 kBq/mL is 1/5 SUV; the first half is a third of the first frame and two of the second.
    np.testing.assert_allclose(recast.matrix, [[1 / 15, 2 / 15, 0], [0, 0, 1 / 5]])
    assert recast.unit == "SUV"
    assert (recast.frame_start_s, recast.frame_duration_s) == ((0, 180), (180, 180))
    assert recast.reference_labels == ()


def test_without_a_wish_for_a_unit_the_sidecar_keeps_the_word() -> None:
    recast = plan(RecastOptions(frames="last"), replace(DYNAMIC, unit="counts", facts={}))
    assert recast.unit == "counts"
    assert recast.matrix == ((0, 1, 0), (0, 0, 1))


def test_the_reference_region_is_the_tracers_unless_another_is_named() -> None:
    assert plan(RecastOptions(frames="first", unit="SUVR")).reference_labels == (3, 4)
    named = RecastOptions(frames="first", unit="SUVR", reference_regions=("Pons",))
    assert plan(named).reference_labels == (5,)


def test_suvr_stays_suvr() -> None:
    pair = replace(DYNAMIC, unit="SUVR", dseg=None, facts={})
    assert plan(RecastOptions(frames="first", unit="SUVR"), pair).reference_labels == ()


def test_a_mask_for_each_subject(tmp_path: Path) -> None:
    options = RecastOptions(
        frames="first", unit="SUVR", reference_mask="masks/{subject}_{session}_{tracer}.nii"
    )
    with pytest.raises(DatasetError, match=r"01_A_AV45\.nii: expected a reference mask"):
        plan_recast(DYNAMIC, options, {}, tmp_path)
    (tmp_path / "masks").mkdir()
    mask = tmp_path / "masks" / "01_A_AV45.nii"
    mask.touch()
    pair = plan_recast(replace(DYNAMIC, dseg=None), options, {}, tmp_path)
    assert pair.reference_mask == str(mask)


def test_suvr_without_a_segmentation_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"pet\.nii: expected a segmentation.*--reference-mask"):
        plan(RecastOptions(frames="first", unit="SUVR"), replace(DYNAMIC, dseg=None))


@pytest.mark.parametrize(
    "options",
    [
        {"frames": "middle"},
        {"unit": "counts"},
        {"reference_mask": "m.nii"},
        {"reference_regions": ("pons",), "unit": "SUV"},
        {"reference_regions": ("pons",), "reference_mask": "m.nii", "unit": "SUVR"},
        {"reference_mask": "{name}.nii", "unit": "SUVR"},
        {"reference_mask": "{.nii", "unit": "SUVR"},
    ],
)
def test_options_without_sense(options: dict) -> None:
    with pytest.raises(ConfigError):
        RecastOptions(**options)


def test_voxels_become_weighted_sums() -> None:
    array = np.random.default_rng(0).uniform(0, 9, (3, 4, 5, 6)).astype(np.float32)
    pet = Volume(array, np.eye(4), "kBq/mL")
    recast = plan(RecastOptions(frames="halves", unit="SUV"))
    result = recast_frames(pet, recast)
    expected = np.stack([(array[0] + 2 * array[1]) / 15, array[2] / 5])
    np.testing.assert_allclose(result.array, expected, rtol=1e-6)
    assert (result.unit, result.array.dtype) == ("SUV", np.float32)


def test_two_frames_that_stay_are_not_touched() -> None:
    pet = Volume(np.ones((2, 4, 5, 6), np.float32), np.eye(4), "SUVR")
    recast = Recast(((1.0, 0.0), (0.0, 1.0)), "SUVR", (0.0, 1.0), (1.0, 1.0))
    assert recast_frames(pet, recast).array is pet.array


def test_each_frame_is_divided_by_its_mean_in_the_region_of_another_grid() -> None:
    # PET of 2 mm; labels of 1 mm, whose voxel (2d, 2h, 2w) lies on the PET's (d, h, w).
    array = np.ones((2, 4, 4, 4), np.float32)
    array[:, :2] = 6
    array[1] *= 10
    pet = Volume(array, np.diag([2.0, 2, 2, 1]), "Bq/mL")
    labels = np.zeros((1, 8, 8, 8), np.float32)
    labels[:, :2] = 3  # one slice of the PET with 6
    labels[:, 4:6] = 4  # one slice with 1
    dseg = Volume(labels, np.eye(4), "arbitrary")
    both = divide_by_reference(pet, dseg, (3, 4)).array
    np.testing.assert_allclose(both[:, 0], 6 / 3.5, rtol=1e-6)
    one = divide_by_reference(pet, dseg, (3,)).array
    np.testing.assert_allclose(one[:, 3], 1 / 6, rtol=1e-6)
    mask = Volume((labels == 4).astype(np.float32), np.eye(4), "arbitrary")
    np.testing.assert_allclose(divide_by_reference(pet, mask, ()).array[:, 0], 6, rtol=1e-6)
    with pytest.raises(DatasetError, match="reference region: expected at least one voxel"):
        divide_by_reference(pet, dseg, (99,))


@pytest.mark.parametrize(
    ("starts", "durations", "found"),
    [
        ((-300, -200, 0), (100, 200, 300), "one from -300 s to -200 s"),
        ((3e6, 3.3e6, 3.6e6), (3e5, 3e5, 3e5), r"one from 3e\+06 s to 3\.3e\+06 s"),
        ((3000, 303_000, 603_000), (3e5, 3e5, 3e5), "one from 3000 s to 303000 s"),
    ],
)
def test_frames_in_which_there_is_no_tracer_are_refused(
    starts: tuple, durations: tuple, found: str
) -> None:
    facts = DYNAMIC.facts | {"ImageDecayCorrected": False}
    pair = replace(DYNAMIC, frame_start_s=starts, frame_duration_s=durations, facts=facts)
    for unit in (None, "SUV"):
        with pytest.raises(
            DatasetError, match=rf"20 half-lives\) after injection, found {found}; "
        ):
            plan(RecastOptions(frames="halves", unit=unit), pair)


def test_a_frame_may_begin_just_before_the_injection() -> None:
    pair = replace(DYNAMIC, frame_start_s=(-10.0, 60.0, 180.0))
    assert plan(RecastOptions(frames="first"), pair).frame_start_s == (-10, 60)


def test_a_scan_may_begin_before_the_injection_if_that_frame_is_not_used() -> None:
    times = {"frame_start_s": (-60.0, 0.0, 120.0), "frame_duration_s": (60.0, 120.0, 180.0)}
    pair = replace(DYNAMIC, facts=DYNAMIC.facts | {"ImageDecayCorrected": False}, **times)
    for unit in (None, "SUV"):
        recast = plan(RecastOptions(frames="last", unit=unit), pair)
        assert recast.frame_start_s == (0, 120)
        assert [row[0] for row in recast.matrix] == [0, 0]
        for rule in ("first", "halves"):
            with pytest.raises(DatasetError, match="found one from -60 s to 0 s"):
                plan(RecastOptions(frames=rule, unit=unit), pair)


def test_a_late_frame_that_is_not_used_tells_milliseconds_all_the_same() -> None:
    times = {"frame_start_s": (0.0, 6e4, 12e4), "frame_duration_s": (6e4, 6e4, 6e4)}
    with pytest.raises(DatasetError, match="found one from 120000 s to 180000 s"):
        plan(RecastOptions(frames="first"), replace(DYNAMIC, **times))


@pytest.mark.parametrize(
    ("unit", "rule", "to", "said", "is_assumed"),
    [
        ("kBq/mL", "halves", "SUVR", None, True),
        ("kBq/mL", "halves", "SUVR", "n/a", True),
        ("arbitrary", "halves", "SUVR", None, True),
        ("kBq/mL", "halves", "SUVR", True, False),
        ("kBq/mL", "halves", "SUVR", False, False),  # corrected first
        ("kBq/mL", "last", "SUVR", None, False),  # cancels in one frame
        ("kBq/mL", "halves", None, None, False),  # stays what the sidecar says
        ("SUV", "halves", "SUVR", None, False),  # by definition
        ("SUVR", "halves", "SUVR", None, False),
    ],
)
def test_an_average_tells_that_its_frames_are_taken_for_corrected(
    unit: str, rule: str, to: str | None, said: object, is_assumed: bool
) -> None:
    facts = DYNAMIC.facts | {"ImageDecayCorrected": said}
    pair = replace(DYNAMIC, unit=unit, facts=facts)
    note = describe_assumption(
        plan_recast(pair, RecastOptions(frames=rule, unit=to), NAMES, Path())
    )
    assert (note is not None) == is_assumed
    assert note is None or "'ImageDecayCorrected'" in note


def test_arbitrary_units_lose_their_decay_before_an_average_as_others_do() -> None:
    facts = DYNAMIC.facts | {"ImageDecayCorrected": False}
    recasts = [
        plan(RecastOptions(frames="halves", unit="SUVR"), replace(DYNAMIC, unit=unit, facts=facts))
        for unit in ("Bq/mL", "arbitrary")
    ]
    assert recasts[0].matrix == recasts[1].matrix
    first, second, _ = recasts[1].matrix[0]
    assert second > 2 * first  # by their durations alone it would be 2
