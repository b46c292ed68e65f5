"""The loader: what each rank gets, resuming, and holes in the cache."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ganbert.data.index import Index
from ganbert.data.loader import Batch, Loader, build_loader
from ganbert.errors import DatasetError
from tests.tiny_cache import write_tiny_cache

NUM_ROWS = 7


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    folder = tmp_path_factory.mktemp("cache")
    return folder, write_tiny_cache(folder, NUM_ROWS)


def load(cache: tuple[Path, Index], split: str = "train", **changes: Any) -> Loader:
    options: dict[str, Any] = {
        "intensity_ratio": 0.01,
        "micro_batch": 2,
        "rank": 0,
        "world_size": 1,
        "seed": 5,
        "start_micro_step": 0,
        "num_micro_steps": 6,
        "device_id": None,
    } | changes
    folder, index = cache
    return build_loader(folder, index, split, **options)  # type: ignore[arg-type]


def collect(loader: Iterator[Batch]) -> list[Batch]:
    return list(loader)


def test_a_batch_has_shapes_and_types_and_is_normalised(shared_cache: tuple[Path, Index]) -> None:
    loader = load(shared_cache)
    assert len(loader) == 6
    for batch in loader:
        assert batch.mri.shape == (2, 1, 5, 6, 7)
        assert batch.pet_real.shape == (2, 2, 3, 4, 2)
        assert batch.mri.dtype == batch.pet_real.dtype == torch.float32
        # Normalised by its own statistics: mean 0, deviation 1, sample by sample.
        np.testing.assert_allclose(batch.mri.mean(dim=(1, 2, 3, 4)), 0.0, atol=1e-5)
        np.testing.assert_allclose(batch.mri.std(dim=(1, 2, 3, 4), correction=0), 1.0, rtol=1e-4)


def test_the_ranks_together_see_each_row_once_per_epoch(shared_cache: tuple[Path, Index]) -> None:
    per_rank = [
        [
            position
            for batch in load(shared_cache, rank=rank, world_size=2, num_micro_steps=7)
            for position in batch.rows
        ]
        for rank in range(2)
    ]
    # 7 steps x 2 ranks x 2 samples = 4 epochs of 7 rows.
    seen = np.bincount(per_rank[0] + per_rank[1], minlength=NUM_ROWS)
    np.testing.assert_array_equal(seen, 4)
    assert len(per_rank[0]) == len(per_rank[1]) == 14


def test_resuming_gives_the_batches_that_would_have_come(shared_cache: tuple[Path, Index]) -> None:
    whole = collect(load(shared_cache))
    resumed = collect(load(shared_cache, start_micro_step=4, num_micro_steps=2))
    for before, after in zip(whole[4:], resumed, strict=True):
        assert before.rows == after.rows
        assert torch.equal(before.mri, after.mri)
        assert torch.equal(before.pet_real, after.pet_real)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_batches_are_kept_when_the_loader_is_closed(
    micro_batch: int, shared_cache: tuple[Path, Index]
) -> None:
    loader = load(shared_cache, num_micro_steps=30, micro_batch=micro_batch)
    kept = [
        (batch.mri, batch.pet_real, batch.mri.clone(), batch.pet_real.clone()) for batch in loader
    ]
    loader.close()
    del loader
    gc.collect()
    # What DALI had given back, this would overwrite.
    collect(load(shared_cache, num_micro_steps=30, micro_batch=micro_batch))
    for mri, pet, mri_then, pet_then in kept:
        assert torch.equal(mri, mri_then)
        assert torch.equal(pet, pet_then)


def test_the_end_and_closing(shared_cache: tuple[Path, Index]) -> None:
    assert collect(load(shared_cache, num_micro_steps=0)) == []
    loader = load(shared_cache)
    next(loader)
    loader.close()
    loader.close()
    assert collect(loader) == []


def test_an_empty_split(shared_cache: tuple[Path, Index]) -> None:
    with pytest.raises(DatasetError, match="rows in split 'test'"):
        load(shared_cache, split="test")


@pytest.mark.parametrize("name", ["3_T1w.nii", "3_pet.nii"])
def test_holes_in_the_cache_show_before_the_first_batch(name: str, tmp_path: Path) -> None:
    index = write_tiny_cache(tmp_path, NUM_ROWS)
    size = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, size - 1)
    with pytest.raises(DatasetError, match=f"{name}: expected {size} bytes, found {size - 1}"):
        load((tmp_path, index))
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=f"{name}: expected a cached image, found No such file"):
        load((tmp_path, index))


def damage(path: Path, size: int | None) -> None:
    """Cut a file short, or (None) remove it."""
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)


@pytest.mark.parametrize("size", [None, 0, 400])
def test_a_file_that_breaks_while_streaming_is_named(size: int | None, tmp_path: Path) -> None:
    index = write_tiny_cache(tmp_path, NUM_ROWS)
    loader = load((tmp_path, index), num_micro_steps=40)
    next(loader)
    damage(tmp_path / "3_T1w.nii", size)
    with pytest.raises(DatasetError, match=r"3_T1w\.nii: expected") as caught:
        collect(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (None, r"3_T1w\.nii: expected images that DALI can read, found Could not open file"),
        # DALI then speaks of shapes alone; the third row is among those that it has read ahead.
        (400, r"one of (sub-\d\d, )*sub-03(, sub-\d\d)*: expected images that DALI can read"),
    ],
)
def test_what_dali_says_is_used_where_a_second_look_sees_nothing(
    size: int | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_tiny_cache(tmp_path, NUM_ROWS)
    loader = load((tmp_path, index), num_micro_steps=40)
    next(loader)
    damage(tmp_path / "3_T1w.nii", size)
    # As if the file were whole again, or the disk answered again.
    monkeypatch.setattr("ganbert.data.image_streams._check_file", lambda path, size: None)
    with pytest.raises(DatasetError, match=message) as caught:
        collect(loader)
    assert "\n" not in str(caught.value)


def test_of_several_tracers_one_is_streamed(shared_cache: tuple[Path, Index]) -> None:
    """Positions, epochs and shards are those of its rows alone."""
    folder, index = shared_cache
    marked = [
        row.model_copy(update={"tracer": "AV45" if number % 2 else "FDG"})
        for number, row in enumerate(index.rows)
    ]
    mixed = index.model_copy(update={"rows": tuple(marked)})
    options: dict[str, Any] = {"tracer": "AV45", "micro_batch": 1, "num_micro_steps": 3}
    assert len(mixed.select("train", "AV45")) == 3
    per_rank = [
        collect(load((folder, mixed), rank=rank, world_size=2, **options)) for rank in range(2)
    ]
    # Two epochs of three samples, over two ranks.
    rows = [batch.rows[0] for pair in zip(*per_rank, strict=True) for batch in pair]
    assert sorted(rows[:3]) == sorted(rows[3:]) == [0, 1, 2]
    for batch in (*per_rank[0], *per_rank[1]):
        assert batch.subjects == [("01", "03", "05")[batch.rows[0]]]
    resumed = collect(
        load((folder, mixed), **(options | {"start_micro_step": 2, "num_micro_steps": 1}))
    )
    assert resumed[0].rows == collect(load((folder, mixed), **options))[2].rows
