"""The errors that a user can cause, and the exit codes that every command keeps to.

A `GanbertError` says in one line where it happened, what was expected, what was found and what
to do. `one_line_errors` turns it into that line on stderr and its exit code, 2 for all but
`NotMetError`; any other exception is a bug and keeps its traceback.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

EXIT_USER_ERROR = 2
# EX_DATAERR of sysexits.h: the work is done, but some of the input was refused and is listed.
EXIT_SOME_REFUSED = 65
# EX_UNAVAILABLE of sysexits.h: ranks of other nodes did not come; run it again when they can.
EXIT_NOT_MET = 69
# EX_TEMPFAIL of sysexits.h: training was interrupted, its state is saved, run it again.
EXIT_INTERRUPTED = 75


class GanbertError(Exception):
    """A mistake that the user can mend.

    Parameters
    ----------
    where : path, option or object at which the problem was seen
    expected : what should have been there
    found : what was there instead
    remedy : what to do about it, as an imperative
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, where: object, *, expected: str, found: str, remedy: str) -> None:
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(where, expected, found, remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with positional arguments, and a worker process that
        # cannot send its error back takes the whole pool down.
        return (_rebuild, (type(self), self.where, self.expected, self.found, self.remedy))

    def __str__(self) -> str:
        text = f"{self.where}: expected {self.expected}, found {self.found}; {self.remedy}"
        return " ".join(text.split())


def _rebuild(
    kind: type[GanbertError], where: object, expected: str, found: str, remedy: str
) -> GanbertError:
    return kind(where, expected=expected, found=found, remedy=remedy)


class ConfigError(GanbertError):
    """A recipe, option or configuration value is wrong."""


class ImageError(GanbertError):
    """An image file cannot be read, or is not what its place demands."""


class DatasetError(GanbertError):
    """A dataset, cache or index lacks something, or contradicts itself."""


class OutputError(GanbertError):
    """A result cannot be written where it was asked for."""


class CheckpointError(GanbertError):
    """A checkpoint or an exported model is missing, torn or does not fit."""


class PlatformError(GanbertError):
    """The machine or its software lacks something that the command needs."""


class NotMetError(PlatformError):
    """Ranks of other nodes are not there yet, or no more; nothing is wrong with this one."""

    exit_code = EXIT_NOT_MET


def say_error(text: object) -> None:
    """Print one line on stderr; under a launcher the prefix says whose line it is.

    If nobody reads it any more, what is to come after it comes all the same.
    """
    rank = os.environ.get("RANK")
    prefix = f"ganbert: rank {rank}" if rank is not None else "ganbert"
    with contextlib.suppress(OSError):
        print(f"{prefix}: error: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_line_errors(*, quiet: bool = False) -> Iterator[None]:
    """Print a `GanbertError` as one line on stderr and leave with its exit code.

    Under a launcher every rank runs this. A `quiet` rank only leaves: for mistakes that another
    rank of the node is sure to report.
    """
    try:
        yield
    except GanbertError as error:
        if not quiet:
            say_error(error)
        raise SystemExit(error.exit_code) from None
