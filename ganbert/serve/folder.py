"""The private folder: images of people under random names, readable by this user alone.

A service that is killed cannot tidy up. So the folder is locked while its service lives, and the
next service on this machine deletes the folders of dead ones.
"""

import contextlib
import fcntl
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ganbert.atomic import output_error

PREFIX = "ganbert-serve-"
_LOCK_NAME = ".lock"


@contextlib.contextmanager
def private_folder(work_dir: Path | None) -> Iterator[Path]:
    """Make the folder, and delete it with all that is in it.

    Parameters
    ----------
    work_dir : where it is made; None: the system's folder for temporary files

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    parent = work_dir or Path(tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _delete_left_over(parent)
        folder, lock = _make_locked(parent)
    except OSError as error:
        raise output_error(parent, error) from error
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_locked(parent: Path) -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Another service that starts may take it for a dead one's until it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = (folder / _LOCK_NAME).open("w")
            with contextlib.suppress(OSError):  # of a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / _LOCK_NAME).exists():
                return folder, lock
            lock.close()


def _delete_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        # Another user's cannot be opened, and stays.
        with contextlib.suppress(OSError), (folder / _LOCK_NAME).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def new_place(folder: Path) -> Path:
    """Make a folder for the files of one upload, under a random name."""
    place = folder / secrets.token_hex(16)
    place.mkdir(mode=0o700)
    return place
