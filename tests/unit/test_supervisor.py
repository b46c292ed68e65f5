"""Who waits for a process hears of its end, and not before."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from ganbert.supervisor import supervised, when_ended, when_gone


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_the_end_is_told_and_not_before(
    has_descriptors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_number: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if not has_descriptors:
        monkeypatch.setattr(os, "pidfd_open", lacks)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    told, told_too, not_told = (threading.Event() for _ in range(3))
    when_ended(process.pid, told.set)
    monkeypatch.setattr(os, "environ", {})
    when_gone(not_told.set)  # of no parent
    monkeypatch.setattr(os, "environ", {name: str(process.pid) for name in supervised({})})
    when_gone(told_too.set)
    assert not told.wait(0.5)
    assert not told_too.is_set()
    process.kill()
    process.wait()
    assert told.wait(20)
    assert told_too.wait(20)
    assert not not_told.is_set()


CHILD = "from ganbert.supervisor import when_gone; import os; print('child', flush=True); "
CHILD += "when_gone(lambda: os._exit(0)); print('watches', flush=True); input()"
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"


@pytest.mark.parametrize(("name", "is_watched"), [("deepspeed", True), ("python-of-a-user", False)])
def test_a_rank_hears_of_the_end_of_both_processes_of_a_bare_launcher(
    name: str, is_watched: bool, tmp_path: Path
) -> None:
    """And of no other that started it, a shell that is left for one."""
    (tmp_path / name).write_text(LAUNCHER)
    words = [sys.executable, str(tmp_path / name)]
    above = [*words, str(tmp_path / name), "-c", CHILD]
    for depth in range(2):
        process = subprocess.Popen(
            above, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stdin is not None
        assert [process.stdout.readline() for _ in range(2)] == ["child\n", "watches\n"]
        both = [process.pid, psutil.Process(process.pid).children()[0].pid]
        (rank,) = psutil.Process(both[1]).children()
        os.kill(both[depth], signal.SIGKILL)
        gone, _ = psutil.wait_procs([rank], timeout=30 if is_watched else 1)
        assert bool(gone) == is_watched
        process.stdin.close()
        if not is_watched:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_one_that_has_ended_is_told_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    told = threading.Event()
    when_ended(process.pid, told.set)
    assert told.wait(20)
