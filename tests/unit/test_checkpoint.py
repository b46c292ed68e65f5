"""Checkpoints are whole or absent; the export loads back equal; what does not fit is refused."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ganbert.checkpoint import (
    CARD_NAME,
    WEIGHTS_NAME,
    check_state,
    export_generator,
    load_checkpoint,
)
from ganbert.checkpoint_files import (
    discard_unfinished,
    read_state,
)
from ganbert.config import GRIDS, GeneratorConfig, ModelCard
from ganbert.errors import CheckpointError, OutputError
from ganbert.models.generator import build_generator
from tests.saved_checkpoints import INDEX, FakeEngine, names, room_for, save, save_engines, state_at


class TornEngine(FakeEngine):
    """Dies while it is saved."""

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> None:
        super().save_checkpoint(save_dir, tag, save_latest=save_latest)
        raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def _world_of_one() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, 20, weight=42)
    engines = {"generator": FakeEngine(0), "discriminator": FakeEngine(0)}
    load_checkpoint(folder, engines)
    assert read_state(folder) == state_at(20)
    assert [engine.weight for engine in engines.values()] == [42, -42]


def test_interrupted_save_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 10, keep=1)
    engines = {"generator": FakeEngine(0), "discriminator": TornEngine(0)}
    with pytest.raises(KeyboardInterrupt):
        save_engines(tmp_path, engines, 20, keep=1)
    assert names(tmp_path) == ["step-00000010"]
    # And the next attempt is not stopped by what the torn one left.
    save(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step-00000020"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


class LargeEngine(FakeEngine):
    """Saves a megabyte as DeepSpeed does."""

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> None:
        super().save_checkpoint(save_dir, tag, save_latest=save_latest)
        torch.save(torch.zeros(2**20, dtype=torch.uint8), f"{save_dir}/{tag}/large.pt")


def test_disk_without_room_is_named(tmp_path: Path) -> None:
    save(tmp_path, 10)
    with room_for(2**19), pytest.raises(OutputError, match=r"20\.partial: expected room") as caught:
        save_engines(tmp_path, {"generator": LargeEngine(0)}, 20)
    assert len(str(caught.value).splitlines()) == 1
    assert names(tmp_path) == ["step-00000010"]
    discard_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10, weight=1)
    folder = save(tmp_path, 10, weight=2)
    engines = {"generator": FakeEngine(0)}
    load_checkpoint(folder, engines)
    assert engines["generator"].weight == 2


def test_a_file_of_another_rank_that_is_not_here_is_no_checkpoint(tmp_path: Path) -> None:
    class ElsewhereEngine(FakeEngine):
        """Its file lies on the disk of another node, so to say."""

        def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> None:
            super().save_checkpoint(save_dir, tag, save_latest=save_latest)
            for file in self.checkpoint_engine.written:
                file.unlink()

    with pytest.raises(OutputError, match="found no such file; give an --output that all nodes"):
        save_engines(tmp_path, {"generator": ElsewhereEngine(0)}, 10)
    assert names(tmp_path) == []


SAME = {"index_sha256": INDEX, "seed": 3, "max_steps": 10, "samples_per_micro_step": 2}


def test_checkpoint_of_this_training_is_taken(tmp_path: Path) -> None:
    check_state(tmp_path, state_at(10), **SAME)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index_sha256": "b" * 64}, "a checkpoint of this index"),
        ({"seed": 4}, r"this seed \(4\), found 3"),
        ({"max_steps": 9}, "at most max_steps = 9 steps done, found 10"),
        ({"samples_per_micro_step": 7}, "micro-batch x ranks that divides .* found 7"),
    ],
)
def test_checkpoint_of_another_training_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_state(tmp_path, state_at(10), **(SAME | changed))


def test_missing_engine_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    (folder / "discriminator" / "engine" / "weight").unlink()
    engines = {"generator": FakeEngine(0), "discriminator": FakeEngine(0)}
    with pytest.raises(CheckpointError, match="discriminator: expected the state of an engine"):
        load_checkpoint(folder, engines)


def test_stale_partial_folders_are_cleared_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000007.partial").mkdir(parents=True)
    save(tmp_path, 8)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000008"]


def test_export_loads_back_equal(tiny_export: Path) -> None:
    card = ModelCard.model_validate_json((tiny_export / CARD_NAME).read_text())
    digest = hashlib.sha256((tiny_export / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert card.weights_sha256 == digest

    generator = build_generator(card.generator, card.mri_grid, card.pet_grid)
    weights = load_file(tiny_export / WEIGHTS_NAME)
    generator.load_state_dict(weights, strict=True)
    torch.manual_seed(0)
    expected = build_generator(card.generator, card.mri_grid, card.pet_grid)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert sorted(path.name for path in tiny_export.iterdir()) == [CARD_NAME, WEIGHTS_NAME]


def card_fields() -> dict[str, Any]:
    mri_grid, pet_grid = GRIDS["tiny"]
    return {
        "ganbert_version": "0",
        "generator": GeneratorConfig(channels=(4, 8)),
        "mri_grid": mri_grid,
        "pet_grid": pet_grid,
        "intensity_ratio": 0.1,
        "tracer": "FDG",
        "unit": "SUVR",
        "data_range": (0.0, 3.0),
        "frame_start_s": (0.0, 300.0),
        "frame_duration_s": (300.0, 300.0),
        "num_steps": 5,
        "num_training_rows": 2,
        "index_sha256": INDEX,
    }


def test_export_is_float32_whatever_was_trained(tmp_path: Path) -> None:
    weights = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    folder = export_generator(tmp_path, weights, card_fields())
    assert folder == tmp_path / "export"
    loaded = load_file(folder / WEIGHTS_NAME)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert loaded["half"].tolist() == [1.5, -2.0]
    assert loaded["transposed"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_export_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        folder = export_generator(tmp_path, {"w": torch.zeros(1)}, card_fields())
    finally:
        os.umask(former)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_export_without_room_leaves_the_one_before_it(tmp_path: Path) -> None:
    folder = export_generator(tmp_path, {"w": torch.zeros(1)}, card_fields())
    before = (folder / WEIGHTS_NAME).read_bytes(), (folder / CARD_NAME).read_bytes()
    with room_for(2**19), pytest.raises(OutputError, match="found File too large"):
        export_generator(tmp_path, {"w": torch.zeros(2**20)}, card_fields())
    assert ((folder / WEIGHTS_NAME).read_bytes(), (folder / CARD_NAME).read_bytes()) == before
    assert len(list(folder.iterdir())) == 2


def test_second_export_replaces_the_first(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        folder = export_generator(tmp_path, {"w": torch.tensor([value])}, card_fields())
    card = json.loads((folder / CARD_NAME).read_text())
    assert load_file(folder / WEIGHTS_NAME)["w"].item() == 2.0
    digest = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert card["weights_sha256"] == digest
    assert card["index_sha256"] == INDEX


def test_wrong_card_leaves_the_export_before_it_whole(tmp_path: Path) -> None:
    folder = export_generator(tmp_path, {"w": torch.tensor([1.0])}, card_fields())
    before = (folder / WEIGHTS_NAME).read_bytes(), (folder / CARD_NAME).read_bytes()
    with pytest.raises(ValueError, match="tracer"):
        export_generator(tmp_path, {"w": torch.tensor([2.0])}, card_fields() | {"tracer": 3})
    assert ((folder / WEIGHTS_NAME).read_bytes(), (folder / CARD_NAME).read_bytes()) == before
