"""What `prepare` refuses before any work. (The rest: tests/integration.)"""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.errors import DatasetError, OutputError
from ganbert.inspection import inspect_prepared
from ganbert.prepare import prepare
from tests.bids_tree import head, write_image, write_tree


def test_a_tracer_in_two_units_is_refused_before_any_work(tmp_path: Path) -> None:
    dataset = write_tree(tmp_path / "bids", 3)
    sidecar = sorted(dataset.glob("sub-*/pet/*_pet.json"))[1]
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Units": "kBq/mL"}))
    with pytest.raises(DatasetError, match=r"one unit for all .* found kBq/mL in sub-02"):
        prepare(dataset, tmp_path / "out", mri_grid=TINY_MRI_GRID, pet_grid=TINY_PET_GRID, jobs=1)
    assert not (tmp_path / "out").exists()


def test_frames_that_training_refuses_are_named_at_once(tmp_path: Path) -> None:
    dataset, said = write_tree(tmp_path / "bids", 4), StringIO()
    for subject, change in (("01", 20), ("03", 900)):  # a late start, and another part of the scan
        sidecar = next(dataset.glob(f"sub-{subject}/pet/*_pet.json"))
        content = json.loads(sidecar.read_text())
        content["FrameTimesStart"] = [start + change for start in content["FrameTimesStart"]]
        sidecar.write_text(json.dumps(content))
    console = Console(file=said, width=500)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(dataset, tmp_path / "out", jobs=1, console=console, **grids)
    (line,) = [line for line in said.getvalue().splitlines() if "other frames" in line]
    expected = "FDG has other frames than 1800 to 2400 s, 2400 to 3000 s (the median) in sub-03: "
    assert line.startswith(f"warning: {expected}training refuses them")


def test_the_cache_may_not_lie_where_the_next_search_of_an_archive_finds_it(
    tmp_path: Path,
) -> None:
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    for out in (tmp_path, tmp_path / "prepared", tmp_path / "derivatives" / "prepared"):
        with pytest.raises(OutputError, match=r"expected a folder outside of the dataset, found"):
            prepare(tmp_path, out, layout="adni", **grids)
    assert list(tmp_path.iterdir()) == []


def test_no_ratio_is_suggested_that_nothing_can_be_divided_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_tree(tmp_path / "bids", 3)
    for seed, pet in enumerate(sorted(dataset.glob("sub-*/pet/*_pet.nii.gz"))):
        write_image(pet, np.stack([-head(seed)] * 2, axis=-1))
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    index = prepare(dataset, tmp_path / "out", jobs=1, **grids).index
    assert max(row.pet.p999 for row in index.rows) <= 0
    assert index.intensity_ratio == {}
    inspect_prepared(tmp_path / "out", tokens=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "no intensity_ratio would fit" in said, said
