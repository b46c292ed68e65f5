"""Flags of a single output: each fires for what it is about, and not for a head like the others."""

from pathlib import Path

import numpy as np
import pytest

from ganbert.config import DEMO_MRI_GRID, DEMO_PET_GRID, ModelCard, SeenImages
from ganbert.data.conform import concentric_affine, conform_mri
from ganbert.data.volume import Volume
from ganbert.model_card import read_card
from ganbert.quality import Quality, assess, compare_with_seen, coverage, tracer_flags
from ganbert.seen import measure_mri, summarise_seen

TISSUES = {"T1w": (60, 140, 200, 90), "T2w": (230, 120, 80, 90)}  # CSF, grey, white, scalp


def head(kind: str = "T1w", *, scalp: bool = True, size: float = 1.0, seed: int = 0) -> Volume:
    """A head of shells in 3 mm voxels: ventricle, white and grey matter, CSF, skull, scalp."""
    csf, grey, white, skin = TISSUES[kind]
    axes = np.mgrid[-40:41, -40:41, -40:41] * 3.0 / size
    distance = np.sqrt((axes[0] / 1.1) ** 2 + axes[1] ** 2 + axes[2] ** 2)
    array = np.zeros(distance.shape)
    shells = ((96, skin if scalp else 0), (90, 10 if scalp else 0), (84, csf), (78, grey),
              (62, white), (14, csf))  # fmt: skip
    for radius, value in shells:
        array[distance < radius] = value
    array += np.random.default_rng(seed).normal(0, 3, array.shape) * (array > 0 if not scalp else 1)
    affine = np.array([[0, 0, 3, -120], [3, 0, 0, -120], [0, 3, 0, -120], [0, 0, 0, 1.0]])
    return Volume(array[None].clip(0).astype(np.float32), affine, "arbitrary")


def measured(volume: Volume) -> dict[str, float]:
    conformed = conform_mri(volume, DEMO_MRI_GRID)
    return measure_mri(conformed.volume.array, DEMO_MRI_GRID.spacing_mm)


@pytest.fixture(scope="module")
def seen() -> SeenImages:
    heads = [head(size=size, seed=seed) for seed, size in enumerate((0.95, 1.0, 1.04))]
    seen = summarise_seen([measured(volume) for volume in heads])
    assert seen is not None
    return seen


@pytest.fixture
def card(tiny_export: Path, seen: SeenImages) -> ModelCard:
    return read_card(tiny_export).model_copy(
        update={"mri_grid": DEMO_MRI_GRID, "pet_grid": DEMO_PET_GRID, "seen": seen}
    )


def judge(card: ModelCard, mri: Volume, value: float = 1.0, **options: object) -> Quality:
    """Judge a PET of one value."""
    conformed = conform_mri(mri, card.mri_grid)
    affine = concentric_affine(conformed.volume.affine, card.mri_grid, card.pet_grid)
    pet = Volume(np.full((2, *card.pet_grid.shape), value, np.float32), affine, card.unit)
    return assess(mri, conformed, pet, card, **options)  # type: ignore[arg-type]


def names(quality: Quality) -> set[str]:
    return {flag.name for flag in quality.flags}


def test_a_head_like_those_of_the_training_has_no_flag(card: ModelCard) -> None:
    assert judge(card, head(size=0.98, seed=7)).flags == ()


def test_another_contrast_is_flagged(card: ModelCard) -> None:
    quality = judge(card, head("T2w"))
    assert "contrast" in names(quality)
    assert quality.num_warnings == len(quality.flags)
    assert all("\n" not in flag.text for flag in quality.flags)


def test_a_brain_without_its_skull_is_flagged(card: ModelCard) -> None:
    assert {"intensity", "contrast"} & names(judge(card, head(scalp=False)))


def test_a_part_of_the_head_outside_of_the_image_is_flagged(card: ModelCard) -> None:
    whole = head()
    cut = Volume(whole.array[:, :, :, :46], whole.affine, whole.unit)
    quality = judge(card, cut)
    assert "field-of-view" in names(quality)
    assert 0.4 < quality.measures["coverage"] < 0.95


def test_coverage_is_the_share_of_the_grid_inside_the_image() -> None:
    image = Volume(np.zeros((1, 10, 10, 10), np.float32), np.eye(4), "arbitrary")
    assert coverage(image, np.eye(4), (10, 10, 10)) == 1.0
    half = np.eye(4)
    half[0, 3] = 5
    assert coverage(image, half, (10, 10, 10)) == 0.5
    turned = np.eye(4)[[1, 0, 2, 3]]
    assert coverage(image, turned, (10, 10, 10)) == 1.0
    assert coverage(image, half @ np.diag([4, 1, 1, 1]), (10, 10, 10)) == 0.2


def test_thick_slices_are_a_note(card: ModelCard) -> None:
    thin = head()
    thick = Volume(
        np.ascontiguousarray(thin.array[:, ::2]), thin.affine @ np.diag([2, 1, 1, 1]), thin.unit
    )
    quality = judge(card, thick)
    assert [flag.severity for flag in quality.flags if flag.name == "resolution"] == ["note"]


@pytest.mark.parametrize(
    ("tracers", "flagged"),
    [((), 0), (("AV45",), 0), (("18FAV45", "18FFDG"), 0), (("18FFDG",), 1), (("11CUCBJ",), 1)],
)
def test_another_tracer_is_flagged(tracers: tuple[str, ...], flagged: int, card: ModelCard) -> None:
    assert len(tracer_flags(card, tracers)) == flagged
    assert ("tracer" in names(judge(card, head(), tracers=tracers))) == bool(flagged)


@pytest.mark.parametrize(("value", "measure"), [(3.5, "above_range"), (-1.0, "below_range")])
def test_values_at_the_edge_of_the_range_are_flagged(
    value: float, measure: str, card: ModelCard
) -> None:
    quality = judge(card, head(), value)
    assert "range" in names(quality)
    assert quality.measures[measure] == 1.0


def test_tokens_beyond_the_vocabulary_are_flagged(card: ModelCard) -> None:
    assert "tokens" in names(judge(card, head(), 100.0))
    assert judge(card, head()).measures["pet_token_overflow"] == 0.0


def test_a_card_without_measures_says_that_nothing_is_known(card: ModelCard) -> None:
    quality = judge(card.model_copy(update={"seen": None}), head("T2w"))
    assert [(flag.name, flag.severity) for flag in quality.flags] == [("unknown", "note")]


def test_warnings_come_before_notes(card: ModelCard) -> None:
    quality = judge(card.model_copy(update={"seen": None}), head(), 100.0)
    severities = [flag.severity for flag in quality.flags]
    assert severities == sorted(severities, key="note".__eq__)


def test_what_goes_into_a_sidecar_is_json(card: ModelCard) -> None:
    import json

    content = json.loads(json.dumps(judge(card, head(), 100.0).as_json(), allow_nan=False))
    assert {"Name", "Severity", "Text"} == set(content["Flags"][0])
    assert content["Measures"]["coverage"] == 1.0


def test_a_measure_that_is_missing_is_outside(seen: SeenImages) -> None:
    assert len(compare_with_seen({}, seen)) == len(seen.mri)


def test_an_image_of_one_value_can_be_measured() -> None:
    flat = measure_mri(np.zeros((1, 16, 16, 16), np.float32), (8.0, 8.0, 8.0))
    assert all(np.isfinite(value) for value in flat.values())
    assert summarise_seen([]) is None
