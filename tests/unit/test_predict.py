"""An export loads, predicts in the original unit and place, and refuses what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.conform import concentric_affine, conform_mri
from ganbert.data.index import file_sha256
from ganbert.data.volume import Volume
from ganbert.errors import CheckpointError, PlatformError
from ganbert.predict import find_export, load_predictor
from ganbert.run_folder import CARD_NAME, WEIGHTS_NAME


@pytest.fixture
def export(tmp_path: Path, tiny_export: Path) -> Path:
    return shutil.copytree(tiny_export, tmp_path / "run" / "export")


@pytest.fixture
def head() -> Volume:
    """A bright ball off the centre of its grid, 4 mm voxels."""
    d, h, w = np.mgrid[:50, :48, :52]
    array = 100.0 * ((d - 20) ** 2 + (h - 25) ** 2 + (w - 30) ** 2 < 16**2)
    affine = np.array([[0, 0, 4, -90], [4, 0, 0, -80], [0, 4, 0, -70], [0, 0, 0, 1.0]])
    return Volume(array[None].astype(np.float32), affine, "arbitrary")


def test_every_way_to_name_an_export_leads_to_it(export: Path) -> None:
    for path in (export.parent, export, export / CARD_NAME, export / WEIGHTS_NAME):
        assert find_export(path) == export


def test_the_pet_lies_on_the_grid_that_belongs_to_the_mri(export: Path, head: Volume) -> None:
    pet = load_predictor(export, "cpu").predict(head)
    conformed = conform_mri(head, TINY_MRI_GRID)
    expected = concentric_affine(conformed.volume.affine, TINY_MRI_GRID, TINY_PET_GRID)
    assert pet.array.shape == (2, *TINY_PET_GRID.shape)
    assert pet.array.dtype == np.float32
    assert pet.unit == "SUVR"
    np.testing.assert_allclose(pet.affine, expected)


def test_the_mri_statistics_restore_the_unit(export: Path) -> None:
    predictor = load_predictor(export, "cpu")
    mri = np.random.default_rng(0).uniform(0, 255, (1, *TINY_MRI_GRID.shape)).astype(np.float32)
    mean, std = float(mri.mean()), float(mri.std())
    pet = predictor.predict_conformed(mri, mean, std)
    with torch.no_grad():
        normalised = predictor.generator(torch.from_numpy((mri[None] - mean) / std))[0].numpy()
    np.testing.assert_allclose(pet, normalised * 0.01 * std + 0.01 * mean, rtol=1e-4, atol=1e-4)


def test_the_scale_of_the_mri_does_not_matter(export: Path, head: Volume) -> None:
    predictor = load_predictor(export, "cpu")
    louder = Volume(head.array * 7, head.affine, head.unit)
    first, second = predictor.predict(head), predictor.predict(louder)
    np.testing.assert_allclose(first.array, second.array, atol=1e-4)


def test_a_prediction_is_repeatable(export: Path, head: Volume) -> None:
    first, second = (load_predictor(export, "cpu").predict(head) for _ in range(2))
    assert np.array_equal(first.array, second.array)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing"):
        load_predictor(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="found neither"):
        load_predictor(tmp_path)
    other = tmp_path / "weights.pt"
    other.touch()
    with pytest.raises(CheckpointError, match="another kind of file"):
        load_predictor(other)


def test_a_run_without_export_says_to_train_further(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="train it further"):
        load_predictor(tmp_path)


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / CARD_NAME).read_text())
        change(card)
        (folder / CARD_NAME).write_text(json.dumps(card))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / CARD_NAME).write_text("{torn"), "no JSON"),
        (lambda f: (f / CARD_NAME).write_bytes(b"\xff\xfe"), "no text"),
        (lambda f: (f / CARD_NAME).write_text("[]"), "a JSON list"),
        (edit(lambda card: card.update(format_version=99)), "found 99"),
        (edit(lambda card: card.pop("format_version")), "found None"),
        (edit(lambda card: card.pop("unit")), "unit"),
        (edit(lambda card: card.update(surprise=1)), "surprise"),
        (edit(lambda card: card.update(generator={"channels": [4, 16]})), "size mismatch"),
        (lambda f: (f / WEIGHTS_NAME).unlink(), "found nothing"),
        (lambda f: (f / WEIGHTS_NAME).write_bytes(b"torn"), "SHA-256"),
    ],
)
def test_a_damaged_export_is_one_clear_line(
    export: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(export)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_predictor(export)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_are_refused(export: Path) -> None:
    (export / WEIGHTS_NAME).write_bytes(b"\x80\x04pickle")
    edit(lambda card: card.update(weights_sha256=file_sha256(export / WEIGHTS_NAME)))(export)
    with pytest.raises(CheckpointError, match="the weights of the generator"):
        load_predictor(export)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(export: Path, device: str) -> None:
    with pytest.raises(PlatformError, match=device):
        load_predictor(export, device)
