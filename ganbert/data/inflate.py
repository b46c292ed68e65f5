"""The bytes of a file, decompressed and hashed while they pass: each file is read once.

Decompression is ISA-L's (the package `isal`), which reads the same streams as zlib, checks the same
checksums at their ends and is two to three times as fast (`benchmarks/inflate.py`). A truncated
stream raises `EOFError`, a damaged one an exception of `DAMAGED`.
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from isal import igzip, isal_zlib

# A byte of a deflate stream stands for at most 1032 bytes (zlib, technical details).
MAX_DEFLATE_RATIO = 1032
GZIP_MAGIC = b"\x1f\x8b"
DAMAGED = (
    gzip.BadGzipFile,
    zlib.error,
    cast(type[Exception], isal_zlib.error),  # its stub takes the class for an instance
)
_CHUNK = 1 << 20


class Digest(Protocol):
    """What `hashlib` returns."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the hexadecimal digits."""


class _Hashed(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, raw: io.RawIOBase | io.BufferedIOBase, digest: Digest) -> None:
        self._raw, self._digest = raw, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = self._raw.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:size])
        return size


def is_gzip(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() == ".gz"


def has_gzip_magic(path: Path) -> bool:
    """Whether the first bytes say that the file is compressed; also if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    except OSError:
        return True


@contextlib.contextmanager
def open_stream(path: Path, digest: Digest | None = None) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, decompressed if its name ends in `.gz`.

    Parameters
    ----------
    digest : takes in the bytes of the file (not the decompressed ones) as they are read
    """
    with path.open("rb") as raw:
        file = io.BufferedReader(_Hashed(raw, digest), _CHUNK) if digest else raw
        if not is_gzip(path):
            yield file
            return
        with igzip.IGzipFile(fileobj=file, mode="rb") as stream:
            yield stream


def read_between(stream: io.BufferedIOBase, start: int, stop: int) -> bytearray:
    """Return the bytes from `start` to `stop`, fewer where the stream ends.

    Memory grows with what the stream holds, never with what `stop` claims.

    Parameters
    ----------
    start, stop : counted from where the stream stands
    """
    discard(stream, start)
    content = bytearray()
    while len(content) < stop - start and (
        chunk := stream.read(min(_CHUNK, stop - start - len(content)))
    ):
        content += chunk
    return content


def discard(stream: io.BufferedIOBase, limit: int | None = None) -> int:
    """Read on and keep nothing; return how many bytes there were.

    Parameters
    ----------
    limit : bytes to stop after; None: to the end
    """
    count = 0
    while limit is None or count < limit:
        chunk = stream.read(_CHUNK if limit is None else min(_CHUNK, limit - count))
        if not chunk:
            break
        count += len(chunk)
    return count
