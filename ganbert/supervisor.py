"""How a process learns that another is gone: a rank, that `ganbert train` or its launcher is.

`ganbert train` passes signals on and ends what a dead launcher leaves. If it is killed itself
(SIGKILL, out of memory), launcher and ranks would train on without it, in a session of their own,
and hold the run. So each rank watches it, and stops as on SIGTERM: it saves and leaves. Under the
bare `deepspeed` launcher, which tells its ranks of no SIGTERM, it watches that.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import psutil

# Inherited from the parent; a launcher that reaches other nodes by ssh does not pass it on.
_VARIABLE = "GANBERT_SUPERVISOR"
_LOOK_SECONDS = 0.2
# The command, its short name, and the module that starts the ranks of a node.
_LAUNCHERS = {"deepspeed", "ds", "deepspeed.launcher.runner", "deepspeed.launcher.launch"}


def supervised(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment whose processes know this one as the parent of their launcher."""
    return {**environment, _VARIABLE: str(os.getpid())}


def when_gone(act: Callable[[], None]) -> None:
    """Call `act`, from a thread of its own, when `ganbert train` above this process ends.

    If there is none, when a `deepspeed` launcher above it ends: once for each of its processes. If
    there is none either (`mpirun`, a debugger), never.
    """
    number = os.environ.get(_VARIABLE)
    for watched in _launchers() if number is None else [int(number)]:
        when_ended(watched, act)


def _launchers() -> list[int]:
    """The processes of a `deepspeed` launcher right above this one, on this node."""
    try:
        above = psutil.Process().parents()
        return [process.pid for process in takewhile(_is_launcher, above)]
    except psutil.Error:  # it ends while it is looked at
        return []


def _is_launcher(process: psutil.Process) -> bool:
    return any(Path(word).name in _LAUNCHERS for word in process.cmdline()[:4])


def when_ended(number: int, act: Callable[[], None]) -> None:
    """Call `act` once, from a thread of its own, when the process `number` ends, or if it has."""
    threading.Thread(target=_wait, args=(number, act), daemon=True).start()


def _wait(number: int, act: Callable[[], None]) -> None:
    try:
        descriptor = os.pidfd_open(number)
    except ProcessLookupError:
        pass
    except OSError:  # a kernel before 5.3, as that of Red Hat 8
        while psutil.pid_exists(number):
            time.sleep(_LOOK_SECONDS)
    else:
        # Readable when the process has ended. (`psutil.Process.wait` misses the end of a parent.)
        select.select([descriptor], [], [])
        os.close(descriptor)
    act()
