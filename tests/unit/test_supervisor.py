"""Who waits for a process hears of its end, and not before."""

import errno
import os
import subprocess
import sys
import threading

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


def test_one_that_has_ended_is_told_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    told = threading.Event()
    when_ended(process.pid, told.set)
    assert told.wait(20)
