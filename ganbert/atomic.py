"""Results that are whole or not there: written under another name, then renamed.

Every file and folder that the software leaves behind goes through here, so that an interrupted
command leaves either the old result or the new one. What the system refuses (a folder without
write permission, a full disk) is one line to the user.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ganbert.errors import OutputError

SUFFIX = ".tmp"


def output_error(path: Path, error: OSError) -> OutputError:
    """Return what to tell the user when the system refuses to write `path`."""
    return OutputError(
        path,
        expected="a place that can be written",
        found=error.strerror or type(error).__name__,
        remedy="check the folder, its permissions and the free space, or choose another one",
    )


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, unless it is there already.

    Raises
    ------
    OutputError
        If it cannot be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of the file `path`, or vanishes on any error.

    Parameters
    ----------
    path : its folder must exist; a file of that name is replaced

    Raises
    ------
    OutputError
        If the system refuses, inside the `with` or at its end.
    """
    temporary = path.with_name(path.name + SUFFIX)
    try:
        yield temporary
        to_disk(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


def to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of the folder `path`, or vanishes on any error.

    The old folder steps aside under a third name and is removed last. A crash between the two
    renames leaves both; the next call then brings the old one back before it begins.

    Raises
    ------
    OutputError
        If the system refuses, inside the `with` or at its end.
    """
    partial, previous = (path.with_name(f"{path.name}.{word}") for word in ("partial", "previous"))
    try:
        if previous.exists() and not path.exists():
            previous.rename(path)
        for left_over in (partial, previous):
            if left_over.exists():
                shutil.rmtree(left_over)
        partial.mkdir()
        yield partial
        _swap(partial, path, previous)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _swap(new: Path, path: Path, previous: Path) -> None:
    if path.exists():
        path.rename(previous)
    try:
        new.rename(path)
    except BaseException:
        if previous.exists():
            previous.rename(path)
        raise
