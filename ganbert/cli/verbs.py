"""How a verb ends that was stopped, or called wrongly: one line, and its exit code.

`train` (`ranks`, `launch`) and `serve` (`serve.server`) have handlers of their own while they work.
"""

import contextlib
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

EXIT_BY_SIGNAL = 128
_GO_ON = {
    "infer": "finished subjects are kept, and the same command goes on",
    "prepare": "finished pairs are kept, and the same command goes on",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM; as with Ctrl-C, what is half done is removed, and workers end."""


def stop_on_sigterm() -> None:
    """Let SIGTERM raise `Terminated`."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


class Verbs(TyperGroup):
    """The verbs of `ganbert`, which tell in our words of a signal and of a wrong option."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a signal becomes one line on stderr and 128 + its number.

        Raises
        ------
        typer.BadParameter
            If one of its options is wrong; typer prints what it says and leaves with code 2.
        """
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # Of pydantic, by which typer reads the options.
            error.message = error.message.removeprefix("Value error, ")
            raise
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            more = _GO_ON.get(ctx.invoked_subcommand or "", "")
            with contextlib.suppress(OSError):  # nobody reads it any more
                line = f"ganbert: stopped by {number.name}" + (f": {more}" if more else "")
                print(line, file=sys.stderr, flush=True)
            raise SystemExit(EXIT_BY_SIGNAL + number) from None
