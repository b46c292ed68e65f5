"""Ctrl-C ends a benchmark with one line and exit code 130, and no traceback."""

import contextlib
import sys
from collections.abc import Iterator

EXIT_INTERRUPTED = 130  # 128 + SIGINT


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into one line: nothing of a measurement is kept, so it begins anew."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again\n")
        raise SystemExit(EXIT_INTERRUPTED) from None
