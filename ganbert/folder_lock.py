"""One process writes into a folder: `train` into RUN, `prepare` into OUT; `infer` a subject.

A lock of the kernel (flock) on a file in the folder, by default FOLDER/.lock. It ends with its
process, however that ends; the file says nothing by being there.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ganbert.atomic import make_folder, output_error
from ganbert.errors import OutputError

LOCK_NAME = ".lock"
_TRIES, _PAUSE_SECONDS = 3, 0.1
# Of file systems that have no locks, such as Lustre mounted with noflock.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class HeldError(OutputError):
    """Another process holds it."""


@contextlib.contextmanager
def held(
    folder: Path, *, expected: str, remedy: str, name: str = LOCK_NAME, wait: bool = False
) -> Iterator[None]:
    """Make a folder, and hold it: no other process may hold it at the same time.

    Where the file system has no locks, nobody is kept out. Who holds it may remove the file.

    Parameters
    ----------
    expected, remedy : what the error says
    name : of the file that is locked; what has another name is another lock
    wait : for whoever holds it, instead of the error

    Raises
    ------
    HeldError
        If another process holds it.
    OutputError
        If it cannot be written.
    """
    make_folder(folder)
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        try:
            lock = (folder / name).open("a")
        except OSError as error:
            raise output_error(folder, error) from error
        with lock:
            try:
                _lock(lock, how)
            except BlockingIOError as error:
                raise _held_by_another(folder / name, expected, remedy) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise output_error(folder, error) from error
            if _is_still(folder / name, lock):
                _write(lock, f"process {os.getpid()} on {socket.gethostname()}\n")
                try:
                    yield
                finally:
                    _write(lock, "")
                return
        # Who held it has removed the file meanwhile: the lock is on one that nobody else finds.
        make_folder(folder)


def check_free(folder: Path, *, expected: str, remedy: str) -> None:
    """Refuse a folder that a process holds; leave no trace of the question.

    Parameters
    ----------
    expected, remedy : what the error says

    Raises
    ------
    HeldError
        If another process holds it.
    """
    with contextlib.suppress(OSError), (folder / LOCK_NAME).open() as lock:
        try:
            # Shared, so that two who ask do not take each other for one who holds.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held_by_another(folder / LOCK_NAME, expected, remedy) from error


def _lock(lock: TextIO, how: int) -> None:
    """Try more than once: who only asks (`check_free`) holds it for a moment."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, how)
        time.sleep(_PAUSE_SECONDS)
    return fcntl.flock(lock, how)


def _write(lock: TextIO, who: str) -> None:
    """Say who holds it, for the message to others; a full disk is no reason not to hold it."""
    with contextlib.suppress(OSError):
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), who.encode())


def _held_by_another(file: Path, expected: str, remedy: str) -> HeldError:
    found = "another process that holds it"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if who := file.read_text().strip():
            found += f" ({who}, as it says)"
    return HeldError(file.parent, expected=expected, found=found, remedy=remedy)


def _is_still(file: Path, lock: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
