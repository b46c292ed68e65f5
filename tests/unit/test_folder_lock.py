"""One process at a time: what is held, what is not, and what a lock that was removed is worth."""

import errno
import fcntl
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ganbert.errors import OutputError
from ganbert.folder_lock import LOCK_NAME, check_free, held

WORDS = {"expected": "a free folder", "remedy": "wait"}


def test_a_second_one_is_told_and_the_next_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with held(folder, **WORDS):
        who = f"process {os.getpid()} on {socket.gethostname()}"
        found = f"another process that holds it ({who}, as it says)"
        message = re.escape(f"new: expected a free folder, found {found}; wait")
        with pytest.raises(OutputError, match=message), held(folder, **WORDS):
            pass
    with held(folder, **WORDS):
        with pytest.raises(OutputError, match=re.escape(who)):
            check_free(folder, **WORDS)
    assert not (folder / LOCK_NAME).read_text()


def test_one_that_only_asks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path, **WORDS), pytest.raises(OutputError, match="found another process"):
        check_free(tmp_path, **WORDS)
    lock, pauses = (tmp_path / LOCK_NAME).open("w"), []

    def go_on(seconds: float) -> None:
        pauses.append(seconds)
        lock.close()

    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as one who asks
    check_free(tmp_path, **WORDS)
    monkeypatch.setattr(time, "sleep", go_on)
    with held(tmp_path, **WORDS):
        assert len(pauses) == 1


def test_a_file_that_was_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    with held(tmp_path, **WORDS):
        pass


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(
    whole_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held the folder cleans up between the second one's opening and locking of the file."""
    folder, lock, calls = tmp_path / "folder", fcntl.flock, []

    def late(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            (folder / LOCK_NAME).unlink()
            if whole_folder:
                folder.rmdir()
        lock(*given)

    monkeypatch.setattr(fcntl, "flock", late)
    with held(folder, **WORDS):
        assert (folder / LOCK_NAME).exists()
        with pytest.raises(OutputError), held(folder, **WORDS):
            pass
    assert len(calls) == 5  # two of the first, and the tries of the second


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EIO, False)]
)
def test_a_file_system_without_locks_keeps_nobody_out(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if passes:
        with held(tmp_path, **WORDS):
            pass
        return
    with pytest.raises(OutputError, match="expected a place that can be written, found no"):
        with held(tmp_path, **WORDS):
            pass
