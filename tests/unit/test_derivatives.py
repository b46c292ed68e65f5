"""Names and sidecars of derivatives: BIDS order, honest keys, no reader misled."""

from pathlib import Path, PurePosixPath

import pytest
from bids.layout import parse_file_entities

from ganbert import derivatives
from ganbert.config import ModelCard
from ganbert.errors import OutputError
from ganbert.model_card import read_card
from ganbert.tracers import TRACERS

T1W = PurePosixPath("sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz")


@pytest.fixture
def card(tiny_export: Path) -> ModelCard:
    return read_card(tiny_export)


def test_the_name_has_its_entities_in_bids_order() -> None:
    assert str(derivatives.pet_path("01", "b", "AV45")) == (
        "sub-01/ses-b/pet/sub-01_ses-b_trc-18FAV45_space-T1w_desc-synth_pet.nii.gz"
    )


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_bids_reader_finds_every_entity_in_the_name(tracer: str) -> None:
    entities = parse_file_entities(f"/data/{derivatives.pet_path('07', None, tracer)}")
    assert entities["subject"] == "07"
    assert entities["tracer"] == TRACERS[tracer].bids_label
    assert (entities["space"], entities["desc"]) == ("T1w", "synth")
    assert (entities["suffix"], entities["datatype"]) == ("pet", "pet")


def test_the_sidecar_lies_beside_the_image() -> None:
    image = derivatives.pet_path("01", None, "FDG")
    assert derivatives.sidecar_path(image).name == image.name.replace(".nii.gz", ".json")


def test_the_sidecar_says_that_nothing_was_acquired(card: ModelCard) -> None:
    sidecar = derivatives.pet_sidecar(card, T1W)
    assert "SYNTHETIC" in sidecar["Description"]
    assert sidecar["InjectedRadioactivity"] == 0
    assert sidecar["Manufacturer"] == sidecar["InjectedMass"] == "n/a"


def test_the_sidecar_carries_the_cards_unit_frames_and_source(card: ModelCard) -> None:
    sidecar = derivatives.pet_sidecar(card, T1W)
    assert sidecar["Units"] == card.unit
    assert sidecar["FrameTimesStart"] == [3000.0, 3300.0]
    assert sidecar["FrameDuration"] == [300.0, 300.0]
    assert sidecar["Sources"] == [f"bids:raw:{T1W}"]
    assert sidecar["SpatialReference"] == f"bids:raw:{T1W}"


def test_the_description_links_to_the_input_without_an_absolute_path(card: ModelCard) -> None:
    description = derivatives.dataset_description(card, Path("/a/my bids"), Path("/a/out/x"))
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "ganbert"
    assert description["DatasetLinks"] == {"raw": "../../my%20bids"}


def test_only_the_same_model_and_input_continue_an_output(card: ModelCard) -> None:
    wanted = derivatives.dataset_description(card, Path("/a/bids"), Path("/a/out"))
    assert derivatives.is_continuation(dict(wanted), wanted)
    other_input = derivatives.dataset_description(card, Path("/b/bids"), Path("/a/out"))
    assert not derivatives.is_continuation(other_input, wanted)
    other_card = card.model_copy(update={"weights_sha256": "1" * 64})
    other_model = derivatives.dataset_description(other_card, Path("/a/bids"), Path("/a/out"))
    assert not derivatives.is_continuation(other_model, wanted)
    assert not derivatives.is_continuation(wanted | {"GeneratedBy": [{"Name": "x"}]}, wanted)
    assert not derivatives.is_continuation({}, wanted)


def test_the_readme_warns(card: ModelCard) -> None:
    text = derivatives.readme(card)
    assert "SYNTHETIC" in text
    assert "Not for diagnosis" in text


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        derivatives.write_json(tmp_path / "absent" / "x.json", {})
    derivatives.write_json(tmp_path / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
