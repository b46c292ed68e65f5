"""How a process learns that another is gone: a rank, that `ganbert train` or its launcher is.

`ganbert train` passes signals on and ends what a dead launcher leaves. If it is killed itself
(SIGKILL, out of memory), launcher and ranks would train on without it, in a session of their own,
and hold the run. So each rank watches it, and stops as on SIGTERM: it saves and leaves. Under the
bare `deepspeed` launcher, which tells its ranks of no SIGTERM, it watches that.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import psutil

# Inherited from the parent; a launcher that reaches other nodes by ssh does not pass it on.
_VARIABLE = "GANBERT_SUPERVISOR"
_LOOK_SECONDS = 0.2
# What DeepSpeed starts the ranks of a node with, and what starts that: the names of its command.
_NODE_LAUNCHER = "deepspeed.launcher.launch"
_RUNNERS = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")


def supervised(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment whose processes know this one as the parent of their launcher."""
    return {**environment, _VARIABLE: str(os.getpid())}


def find_launchers() -> list[psutil.Process]:
    """Return the processes of a `deepspeed` launcher above this one, on this node; none of others.

    Of a shell or `mpirun` above it is not asked: one may leave for good and mean its child to stay.
    To be called first thing: a launcher that has ended before is not found.
    """
    found = []
    with contextlib.suppress(psutil.Error):
        if (launcher := psutil.Process().parent()) and _program(launcher) == _NODE_LAUNCHER:
            found.append(launcher)
            if (runner := launcher.parent()) and _program(runner) in _RUNNERS:
                found.append(runner)
    return found


def _program(process: psutil.Process) -> str:
    """What a Python runs: its module, or the name of its script; nothing of another process."""
    words = process.cmdline()
    if not words or not Path(words[0]).name.startswith("python"):
        return ""
    for word, following in pairwise([*words[1:], ""]):
        if word == "-m":
            return following
        if not word.startswith("-"):
            return Path(word).name
    return ""


def when_gone(act: Callable[[], None], launchers: Sequence[psutil.Process] = ()) -> None:
    """Call `act`, from a thread of its own, when `ganbert train` above this process ends.

    If there is none, when one of `launchers` ends, once for each; never if there are none either.
    """
    number = os.environ.get(_VARIABLE)
    if number is not None:
        when_ended(int(number), act)
        return
    for launcher in launchers:
        if launcher.is_running():  # it, and not another one that has its number now
            when_ended(launcher.pid, act)
        else:
            act()


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
