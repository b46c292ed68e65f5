"""What SIGTERM and Ctrl-C mean to the commands that run in one process: a line, and 128 + n.

`train` (`ranks`, `launch`) and `serve` (`serve.server`) have handlers of their own while they work.
"""

import contextlib
import signal
import sys
from types import FrameType
from typing import Any

from typer.core import TyperGroup

EXIT_BY_SIGNAL = 128
_GO_ON = {
    "infer": "finished subjects are kept, and the same command goes on",
    "prepare": "finished pairs are kept, and the same command goes on",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM; as with Ctrl-C, what is half done is removed, and workers end."""


def install() -> None:
    """Let SIGTERM raise `Terminated`."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


class StoppableGroup(TyperGroup):
    """Commands that say how they were stopped, where typer would leave without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a signal becomes one line on stderr and its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            more = _GO_ON.get(ctx.invoked_subcommand or "", "")
            with contextlib.suppress(OSError):  # nobody reads it any more
                line = f"ganbert: stopped by {number.name}" + (f": {more}" if more else "")
                print(line, file=sys.stderr, flush=True)
            raise SystemExit(EXIT_BY_SIGNAL + number) from None
