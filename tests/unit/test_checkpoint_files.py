"""What lies in RUN/checkpoints: damage is found, the newest whole one is taken, the best kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ganbert.checkpoint_files import (
    best_checkpoint,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    read_state,
    set_aside_newer,
)
from ganbert.errors import CheckpointError, OutputError
from tests.saved_checkpoints import names, save


@pytest.fixture(scope="module", autouse=True)
def _world_of_one() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    for step in (100, 20, 3000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000020", "step-00000100", "step-00003000"]


def test_no_folder_means_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_what_is_not_whole_is_not_listed(tmp_path: Path) -> None:
    save(tmp_path, 20)
    for name in ("step-00000040.partial", "step-40", "latest", "step-00000040.tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert names(tmp_path) == ["step-00000020"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000030", "step-00000040"]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"step": 1}', "[]"])
def test_broken_state_is_named(tmp_path: Path, content: str | None) -> None:
    folder = save(tmp_path, 10)
    (folder / "state.json").unlink()
    if content is not None:
        (folder / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json: expected the state") as caught:
        read_state(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_finished_run_without_its_checkpoints_is_not_started_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "export").mkdir()
    with pytest.raises(CheckpointError, match="found none, though the run has an export"):
        find_checkpoint(tmp_path, "auto")


def test_checkpoint_holds_what_it_lists_and_no_code(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == listed.keys() | {"manifest.json"}
    assert {Path(name).suffix for name in found} == {"", ".json"}
    assert json.loads((folder / "run.json").read_text()) == {"seed": 3}
    assert find_damage(folder) is None


WEIGHT = "discriminator/engine/weight"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = [
    (WEIGHT, truncate, "bytes, not"),
    (WEIGHT, flip, "another SHA-256"),
    (WEIGHT, Path.unlink, "No such file"),
    ("state.json", flip, "another SHA-256"),
    ("run.json", Path.unlink, "No such file"),
    ("manifest.json", truncate, "manifest.json"),
    ("manifest.json", Path.unlink, "manifest.json: No such file"),
]


@pytest.mark.parametrize(("name", "harm", "words"), DAMAGES)
def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, name: str, harm: Callable[[Path], None], words: str
) -> None:
    (tmp_path / "run.json").write_text("{}")
    whole, torn = save(tmp_path, 10, weight=7), save(tmp_path, 20, weight=8)
    harm(torn / name)
    found, (warning,) = find_checkpoint(tmp_path, "auto")
    assert found == whole
    assert warning.startswith(f"warning: checkpoint {torn.name} is damaged ({name}: ")
    assert words in warning
    assert warning.endswith(f"; going on from {whole.name}")
    assert len(warning.splitlines()) == 1


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_any_flipped_bit_of_the_manifest_is_found(tmp_path: Path, position: int) -> None:
    file = save(tmp_path, 10) / "manifest.json"
    content = bytearray(file.read_bytes())
    # Of its numbers and names alone: a blank more or less between them means the same.
    meaning = [k for k, byte in enumerate(content) if byte > ord(" ")]
    content[meaning[position * len(meaning) // 100]] ^= 4
    file.write_bytes(content)
    assert find_damage(file.parent) is not None


def test_run_without_a_whole_checkpoint_is_never_started_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for step in (10, 20):
        truncate(save(tmp_path, step) / WEIGHT)
    with pytest.raises(CheckpointError, match="expected a whole checkpoint to go on from") as error:
        find_checkpoint(tmp_path, "auto")
    assert "step-00000020 damaged (" in str(error.value)
    assert "step-00000010 damaged (" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_damaged_checkpoints_step_aside_for_the_new_ones(tmp_path: Path) -> None:
    whole, torn = save(tmp_path, 10), save(tmp_path, 20)
    for _ in range(2):
        truncate(torn / WEIGHT)
        set_aside_newer(tmp_path, whole)
        assert names(tmp_path) == [whole.name]
        assert (torn.with_name(f"{torn.name}.damaged") / WEIGHT).is_file()
        save(tmp_path, 20)
        assert names(tmp_path) == [whole.name, torn.name]


def test_a_whole_checkpoint_that_was_saved_meanwhile_is_never_set_aside(tmp_path: Path) -> None:
    taken, newer = save(tmp_path, 10), save(tmp_path, 20)
    with pytest.raises(CheckpointError, match=r"step-00000020: .*give the same command again"):
        set_aside_newer(tmp_path, taken)
    assert names(tmp_path) == [taken.name, newer.name]


def test_what_a_kill_left_of_the_very_first_file_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "run.json.tmp").write_text("{")
    assert find_checkpoint(tmp_path, "auto") == (None, ())


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    for step, score in enumerate((None, 0.5, 0.2, 0.3, 0.2, 0.4, None), start=1):
        save(tmp_path, step, keep=2, validation_l1=score)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000007"]
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000003"
    save(tmp_path, 8, keep=2, validation_l1=0.1)
    assert names(tmp_path) == ["step-00000007", "step-00000008"]


def test_the_best_is_sought_among_those_that_were_measured_on_the_same_subjects(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1, validation_l1=0.1, validation_subjects=2)
    for step, score in ((2, 0.5), (3, 0.4), (4, 0.6)):
        save(tmp_path, step, validation_l1=score, validation_subjects=8)
    save(tmp_path, 5)  # interrupted, and not validated
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000003"


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_new_or_empty_folder_starts_from_the_beginning(tmp_path: Path, resume: str) -> None:
    assert find_checkpoint(tmp_path / "new", resume) == (None, ())
    assert find_checkpoint(tmp_path, resume) == (None, ())


def test_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert find_checkpoint(tmp_path, "auto") == (None, ())
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000015.partial").mkdir()
    assert find_checkpoint(tmp_path, "auto") == (tmp_path / "checkpoints" / "step-00000010", ())


def test_run_is_not_overwritten_when_resuming_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"expected a new or empty folder, .*--resume auto"):
        find_checkpoint(tmp_path, "none")


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_folder_of_something_else_is_left_alone(tmp_path: Path, resume: str) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(OutputError, match="a folder with something in it"):
        find_checkpoint(tmp_path, resume)
    with pytest.raises(OutputError, match="found a file"):
        find_checkpoint(tmp_path / "thesis.tex", resume)
    assert (tmp_path / "thesis.tex").read_text() == "important"
