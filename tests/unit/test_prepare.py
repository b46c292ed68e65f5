"""What `prepare` refuses before any work. (The rest: tests/integration.)"""

import json
from pathlib import Path

import pytest

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.errors import DatasetError
from ganbert.prepare import prepare
from tests.bids_tree import write_tree


def test_a_tracer_in_two_units_is_refused_before_any_work(tmp_path: Path) -> None:
    dataset = write_tree(tmp_path / "bids", 3)
    sidecar = sorted(dataset.glob("sub-*/pet/*_pet.json"))[1]
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Units": "kBq/mL"}))
    with pytest.raises(DatasetError, match=r"one unit for all .* found kBq/mL in sub-02"):
        prepare(dataset, tmp_path / "out", mri_grid=TINY_MRI_GRID, pet_grid=TINY_PET_GRID, jobs=1)
    assert not (tmp_path / "out").exists()
