"""Training images straight from the dataset, without a cache."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.direct import DirectReader, read_image, source_file
from ganbert.data.index import Index, load_index
from ganbert.data.loader import Loader, build_loader
from ganbert.data.phantom import make_cohort
from ganbert.errors import DatasetError, GanbertError
from ganbert.inspection import verify_files
from ganbert.prepare import prepare

# As the file is looked for, or a moment later as it is read.
GONE = r"{}: expected (an image of the dataset|a NIfTI file)"
GRIDS = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    make_cohort(tmp_path / "bids", num_subjects=4, tracer="AV45", seed=1, size="tiny", jobs=1)
    return tmp_path / "bids"


@pytest.fixture
def folders(dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """The same dataset prepared with and without a cache."""
    for name in ("cached", "direct"):
        prepare(dataset, tmp_path / name, cached=name == "cached", jobs=1, **GRIDS)
    return {name: tmp_path / name for name in ("cached", "direct")}


def load(folder: Path, num_micro_steps: int) -> Loader:
    return build_loader(
        folder,
        load_index(folder),
        "train",
        intensity_ratio=0.01,
        micro_batch=1,
        rank=0,
        world_size=1,
        seed=0,
        start_micro_step=1,
        num_micro_steps=num_micro_steps,
        device_id=None,
    )


def images(index: Index) -> Iterator[tuple[str, object]]:
    for row in index.rows:
        for name in ("mri", "pet", "truth", "dseg"):
            yield name, getattr(row, name)


def test_without_a_cache_every_image_is_what_the_cache_would_hold(
    folders: dict[str, Path],
) -> None:
    assert not list(folders["direct"].rglob("*.nii"))
    cached, direct = load_index(folders["cached"]), load_index(folders["direct"])
    assert cached.cached
    assert not direct.cached
    for before, now in zip(cached.rows, direct.rows, strict=True):
        for name in ("mri", "pet", "truth", "dseg"):
            first, second = getattr(before, name), getattr(now, name)
            assert first.model_dump(exclude={"sha256"}) == second.model_dump(exclude={"sha256"})
            expected = read_image(folders["cached"], first, before.unit)
            found = read_image(folders["direct"], second, now.unit)
            np.testing.assert_array_equal(found.array, expected.array)
            np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert verify_files(folders["direct"], direct) == 16


@pytest.mark.parametrize(
    ("name", "file"), [("mri", "anat/*_T1w.nii.gz"), ("pet", "pet/*_pet.nii.gz")]
)
def test_verification_names_the_image_of_the_dataset(
    name: str, file: str, folders: dict[str, Path], dataset: Path
) -> None:
    index = load_index(folders["direct"])
    row = index.rows[1]
    image = getattr(row, name).model_copy(update={"sha256": "0" * 64})
    other = row.model_copy(update={name: image})
    changed = index.model_copy(update={"rows": (index.rows[0], other)})
    (source,) = (dataset / f"sub-{row.subject}").glob(file)
    with pytest.raises(DatasetError, match="again with --verify-inputs") as caught:
        verify_files(folders["direct"], changed)
    assert Path(str(caught.value.where)) == source


def test_a_note_of_a_source_says_nothing_of_the_subject_but_the_label(
    folders: dict[str, Path],
) -> None:
    index = load_index(folders["direct"])
    note = json.loads(source_file(folders["direct"] / index.rows[0].mri.path).read_text())
    assert note["pair"]["facts"] == {}
    assert note["pair"]["diagnosis"] is None
    assert set(note) == {"pair", "mri_grid", "pet_grid", "files"}


@pytest.mark.slow
def test_the_loader_gives_the_same_batches_and_names_a_file_that_is_gone(
    folders: dict[str, Path], dataset: Path
) -> None:
    with load(folders["cached"], 3) as loader:
        expected = list(loader)
    loader = load(folders["direct"], 200)
    found = [next(loader) for _ in range(3)]
    for before, now in zip(expected, found, strict=True):
        assert before.rows == now.rows
        assert torch.equal(before.mri, now.mri)
        assert torch.equal(before.pet_real, now.pet_real)
    (lost,) = (dataset / f"sub-{found[0].subjects[0]}" / "pet").glob("*.nii.gz")
    lost.unlink()
    with pytest.raises(GanbertError, match=GONE.format(lost.name)) as caught:
        list(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_words_of_a_reading_process_are_kept_where_a_second_look_sees_nothing(
    folders: dict[str, Path], dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(folders["direct"], 200)
    (lost,) = (dataset / f"sub-{next(loader).subjects[0]}" / "pet").glob("*.nii.gz")
    lost.unlink()
    # As if the file were back: this process reads nothing, those of DALI are others.
    monkeypatch.setattr(DirectReader, "read", lambda *_: None)
    with pytest.raises(GanbertError, match=GONE.format(lost.name)) as caught:
        list(loader)
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
from tests.integration.test_direct import load

if __name__ == "__main__":
    loader = load(Path(sys.argv[1]), 200)
    next(loader)
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_reading_processes_end_with_a_rank_that_is_killed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with (tmp_path / "pids").open("w") as stream:
        process = subprocess.run(
            [sys.executable, script, folders["direct"]],
            stdout=stream,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert process.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) >= 2
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process reads on for nobody"
        time.sleep(0.1)


@pytest.mark.slow
def test_reading_processes_leave_ctrl_c_to_their_rank(folders: dict[str, Path]) -> None:
    loader = load(folders["direct"], 40)
    readers = psutil.Process().children()
    next(loader)
    assert len(readers) >= 2
    for reader in readers:
        reader.send_signal(signal.SIGINT)
    assert len(list(loader)) == 39


def test_a_hole_in_the_dataset_shows_before_the_first_batch(
    folders: dict[str, Path], dataset: Path
) -> None:
    (mri,) = (dataset / f"sub-{load_index(folders['direct']).select('train')[0].subject}").glob(
        "anat/*_T1w.nii.gz"
    )
    mri.rename(mri.with_suffix(".away"))
    with pytest.raises(DatasetError, match=f"{mri.name}: expected an image of the dataset"):
        load(folders["direct"], 1)


def test_another_image_than_the_one_that_was_measured_is_refused(
    folders: dict[str, Path], dataset: Path
) -> None:
    index = load_index(folders["direct"])
    (pet,) = (dataset / f"sub-{index.select('train')[0].subject}").glob("pet/*.nii.gz")
    os.utime(pet, ns=(0, 0))
    with pytest.raises(DatasetError, match=f"{pet.name}: expected the image that was prepared"):
        load(folders["direct"], 1)
    prepare(dataset, folders["direct"], cached=False, jobs=1, **GRIDS)
    load(folders["direct"], 0)


def test_a_damaged_note_is_one_line_whose_remedy_helps(
    folders: dict[str, Path], dataset: Path
) -> None:
    index = load_index(folders["direct"])
    image = index.rows[0].pet
    source_file(folders["direct"] / image.path).write_text("{")
    with pytest.raises(DatasetError, match="expected a note of where a row comes from"):
        read_image(folders["direct"], image)
    prepare(dataset, folders["direct"], cached=False, jobs=1, **GRIDS)
    assert read_image(folders["direct"], image).array.shape == (2, *TINY_PET_GRID.shape)


def test_a_folder_does_not_change_from_one_to_the_other(
    folders: dict[str, Path], dataset: Path
) -> None:
    with pytest.raises(GanbertError, match="--cache, found one made with --no-cache"):
        prepare(dataset, folders["direct"], jobs=1, **GRIDS)
