"""The subject-level split: exact sizes, no leak, stable. (The rest: tests/integration.)"""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.errors import DatasetError
from ganbert.prepare import prepare, split_subjects
from tests.bids_tree import write_tree

labels = st.lists(st.text("abc0123", min_size=1, max_size=4), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("num_subjects", "train", "val", "test"),
    [(1, 1, 0, 0), (2, 2, 0, 0), (3, 1, 1, 1), (4, 2, 1, 1), (10, 7, 1, 2), (32, 23, 3, 6)],
)
def test_sizes(num_subjects: int, train: int, val: int, test: int) -> None:
    subjects = [f"{number:03d}" for number in range(num_subjects)]
    sizes = Counter(split_subjects(subjects, seed=0).values())
    assert (sizes["train"], sizes["val"], sizes["test"]) == (train, val, test)


@given(labels, st.integers(0, 100))
def test_every_subject_has_one_split_whatever_the_order(subjects: list[str], seed: int) -> None:
    splits = split_subjects(subjects, seed)
    assert set(splits) == set(subjects)
    assert "train" in splits.values()
    assert splits == split_subjects([*reversed(subjects), *subjects], seed)


def test_the_seed_changes_the_split() -> None:
    subjects = [f"{number:03d}" for number in range(40)]
    assert split_subjects(subjects, 0) != split_subjects(subjects, 1)


def test_adding_a_subject_moves_few_others() -> None:
    subjects = [f"{number:03d}" for number in range(101)]
    before = split_subjects(subjects[:100], 0)
    after = split_subjects(subjects, 0)
    assert sum(before[subject] != after[subject] for subject in before) <= 2


def test_a_tracer_in_two_units_is_refused_before_any_work(tmp_path: Path) -> None:
    dataset = write_tree(tmp_path / "bids", 3)
    sidecar = sorted(dataset.glob("sub-*/pet/*_pet.json"))[1]
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Units": "kBq/mL"}))
    with pytest.raises(DatasetError, match=r"one unit for all .* found kBq/mL in sub-02"):
        prepare(dataset, tmp_path / "out", mri_grid=TINY_MRI_GRID, pet_grid=TINY_PET_GRID, jobs=1)
    assert not (tmp_path / "out").exists()
