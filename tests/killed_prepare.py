"""Kill `prepare` at each of its writes: one process a kill, in a group of its own. By fork.

    python -m tests.killed_prepare TABLE OUTS

Each file that `prepare` leaves is written under another name, synchronised and renamed. The n-th
process is killed (SIGKILL, with its group) at the n-th half of an image, before the n-th
synchronisation, or behind the n-th renaming; what it leaves stays in OUTS/half-n, OUTS/fsync-n or
OUTS/replace-n. Prints the names of these folders, one a line.
"""

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.prepare import prepare


def die() -> NoReturn:
    """End this process and all of its group, as the system does when it runs out of memory."""
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("alive")


def at_call(number: int, call: Callable[..., Any], last: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, which `last` takes the place of at its `number`-th call."""
    calls = count(1)
    return lambda *given: last(*given) if next(calls) == number else call(*given)


def set_trap(kind: str, number: int) -> None:
    """Kill this process at the `number`-th write of a `kind`."""
    fsync, replace, write_bytes = os.fsync, os.replace, Path.write_bytes

    def write_half(path: Path, content: bytes) -> None:
        write_bytes(path, content[: len(content) // 2])
        die()

    def replace_and_die(*names: Any) -> None:
        replace(*names)
        die()

    if kind == "half":
        trap = at_call(number, write_bytes, write_half)
        Path.write_bytes = lambda path, content: trap(path, content)  # type: ignore[method-assign]
    elif kind == "fsync":
        os.fsync = at_call(number, fsync, lambda _: die())
    else:
        os.replace = at_call(number, replace, replace_and_die)


def run(table: Path, out: Path) -> None:
    """Prepare in this process."""
    prepare(
        table, out, mri_grid=TINY_MRI_GRID, pet_grid=TINY_PET_GRID, layout="table", jobs=1,
        console=Console(quiet=True),
    )  # fmt: skip


def run_until_killed(table: Path, out: Path, kind: str, number: int) -> bool:
    """Return whether the process was killed; False when there was no such write any more."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        set_trap(kind, number)
        run(table, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise AssertionError(f"{out.name} ended with {status}")
    return False


def main() -> None:
    """Kill until there is nothing left to interrupt."""
    table, outs = (Path(word) for word in sys.argv[1:])
    # What is imported late is imported once.
    run(table, outs / "whole")
    for kind in ("half", "fsync", "replace"):
        for number in count(1):
            out = outs / f"{kind}-{number}"
            if not run_until_killed(table, out, kind, number):
                break
            print(out.name)


if __name__ == "__main__":
    main()
