"""The figures of `chaos.py` are counted: what is lost, skipped or repeated shows in them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ganbert.checkpoint_files import checkpoint_folder
from tests.saved_checkpoints import save

from .ledger import CheckpointLedger, epochs_of

# Two ranks, a sample each, three epochs of four rows: rank and row by position.
WHOLE = {k: (k % 2, k % 4) for k in range(12)}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def ledger_of(run: Path, keep: int = 2) -> CheckpointLedger:
    ledger = CheckpointLedger(run, keep)
    ledger.look()
    return ledger


def test_what_newer_checkpoints_replace_is_not_lost(tmp_path: Path) -> None:
    save(tmp_path, 3, keep=2)
    ledger = ledger_of(tmp_path)
    for step in (6, 9, 12):
        save(tmp_path, step, keep=2)
    ledger.look()
    assert ledger.lost == []


@pytest.mark.parametrize("step", [6, 9])
def test_one_of_the_newest_that_is_gone_is_lost_also_if_another_came(
    tmp_path: Path, step: int
) -> None:
    for each in (3, 6, 9):
        save(tmp_path, each, keep=2)
    ledger = ledger_of(tmp_path)
    shutil.rmtree(checkpoint_folder(tmp_path, step))
    ledger.look()
    save(tmp_path, 12, keep=2)
    ledger.look()
    assert ledger.lost == [f"step-{step:08d}"]


def test_the_best_is_lost_if_it_goes_and_not_if_a_better_one_came(tmp_path: Path) -> None:
    for step, score in ((3, 0.1), (6, 0.3), (9, 0.2), (12, 0.3)):
        save(tmp_path, step, keep=2, validation_l1=score)
    ledger = ledger_of(tmp_path)
    save(tmp_path, 15, keep=2, validation_l1=0.05)
    ledger.look()
    assert ledger.lost == []
    save(tmp_path, 18, keep=2, validation_l1=0.3)
    save(tmp_path, 21, keep=2, validation_l1=0.3)
    ledger.look()
    shutil.rmtree(checkpoint_folder(tmp_path, 15))
    ledger.look()
    assert ledger.lost == ["step-00000015"]


def test_a_damaged_checkpoint_is_lost(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    ledger = ledger_of(tmp_path)
    (folder / "state.json").write_text("{}")
    ledger.look(is_running=True)
    assert ledger.lost == []
    ledger.look()
    assert ledger.lost == [folder.name]


def test_whole_epochs_lack_and_repeat_nothing() -> None:
    assert epochs_of(WHOLE, num_rows=4) == (0, 0)
    assert epochs_of({}, num_rows=4) == (0, 0)
    not_finished = {k: seen for k, seen in WHOLE.items() if k < 10}
    assert epochs_of(not_finished, num_rows=4) == (0, 0)


def test_a_sample_seen_twice_is_repeated_and_another_skipped() -> None:
    assert epochs_of(WHOLE | {6: (0, 0), 7: (1, 1)}, num_rows=4) == (2, 2)
    assert epochs_of(WHOLE | {8: (0, 1)}, num_rows=4) == (1, 1)


def test_a_sample_that_is_missing_is_skipped() -> None:
    assert epochs_of({k: seen for k, seen in WHOLE.items() if k not in (4, 5)}, 4) == (2, 0)
    assert epochs_of({k: seen for k, seen in WHOLE.items() if k >= 4}, 4) == (4, 0)
