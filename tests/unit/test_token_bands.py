"""`ganbert inspect --tokens` counts what training would see: its rows, normalised its way."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ganbert.cli import app
from ganbert.data.index import Index, save_index
from ganbert.data.reference import reference_batch
from ganbert.errors import ConfigError, DatasetError, ImageError
from ganbert.inspection import inspect_prepared
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.token_bands import occupancy, training_occupancy
from tests.tiny_cache import write_tiny_cache

NUM_ROWS = 3


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = write_tiny_cache(tmp_path, NUM_ROWS)
    save_index(index, tmp_path)
    return index


def test_counts_ids_and_what_they_stand_for() -> None:
    # t = -1, 1, 10001, 501, 2000, 2000, 5, 600: -1 meets 1, and 10001 meets 501.
    values = torch.tensor([[-0.001, 0.001, 10.001, 0.501], [2.0, 2.0, 0.005, 0.6]])
    counted = occupancy(values, tracer="FDG", ratio=0.1)
    assert tuple(counted.shares) == (1 / 8, 4 / 8, 2 / 8, 1 / 8)
    assert counted.distinct_ids == 5
    assert counted.unambiguous == 4 / 8
    assert (counted.image, counted.num_images) == ("PET", 2)
    assert occupancy(values, tracer="FDG", ratio=None).image == "MRI"


def test_normalises_the_training_rows_as_the_loader_does(tmp_path: Path, index: Index) -> None:
    rows = index.select("train")
    grids = {"mri_grid": index.mri_grid, "pet_grid": index.pet_grid}
    found = training_occupancy(tmp_path, index)
    assert [(each.image, each.intensity_ratio) for each in found] == [
        ("MRI", None),
        ("PET", 0.1),
        ("PET", 0.01),
    ]
    for each in found:
        ratio = each.intensity_ratio
        mri, pet = map(torch.from_numpy, reference_batch(tmp_path, rows, ratio or 0.1, **grids))
        values = summarise_mri(mri) if ratio is None else summarise_pet(pet)
        assert each == occupancy(values, tracer="FDG", ratio=ratio)
        assert each.num_images == NUM_ROWS


def test_reads_no_other_split(tmp_path: Path, index: Index) -> None:
    for row in index.select("val"):
        (tmp_path / row.mri.path).unlink()
        (tmp_path / row.pet.path).unlink()
    assert len(training_occupancy(tmp_path, index, 0.02)) == 2


def test_missing_file_is_named(tmp_path: Path, index: Index) -> None:
    (tmp_path / "1_pet.nii").unlink()
    with pytest.raises(ImageError, match=r"1_pet\.nii: expected a NIfTI file, found nothing"):
        inspect_prepared(tmp_path, tokens=True)


def test_file_of_another_grid_is_named(tmp_path: Path, index: Index) -> None:
    shutil.copy(tmp_path / "1_T1w.nii", tmp_path / "1_pet.nii")
    with pytest.raises(DatasetError, match=r"1_pet\.nii: expected .*\(2, 3, 4, 2\)"):
        training_occupancy(tmp_path, index)


def test_no_training_rows(tmp_path: Path, index: Index) -> None:
    empty = index.model_copy(update={"rows": tuple(index.select("val"))})
    with pytest.raises(DatasetError, match="training rows"):
        training_occupancy(tmp_path, empty)


@pytest.mark.parametrize("ratio", [0.0, -0.1, np.nan, np.inf, 1e-300])
def test_wrong_ratio(tmp_path: Path, index: Index, ratio: float) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        inspect_prepared(tmp_path, tokens=True, intensity_ratio=ratio)


def test_ratio_alone_asks_for_tokens(tmp_path: Path, index: Index) -> None:
    with pytest.raises(ConfigError, match="add --tokens"):
        inspect_prepared(tmp_path, intensity_ratio=0.1)


def test_command_shows_a_line_for_each_image_and_ratio(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--tokens"])
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert "Summarising" not in shown
    for word in (" negative ", " low ", "in range", "overflow", "unique", "MRI", "any"):
        assert word in shown
    # One meaning: the opposite of "unique".
    assert shown.count("aliased") == 1
    assert "all others are aliased" in " ".join(shown.split())
    assert "FDG: intensity_ratio 0.01 would fit" in shown
    only = CliRunner().invoke(
        app, ["inspect", str(tmp_path), "--tokens", "--intensity-ratio", "0.025"]
    )
    assert "0.025" in only.stdout
