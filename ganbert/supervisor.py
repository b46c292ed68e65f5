"""How a process learns that another is gone: a rank, that `ganbert train` above its launcher is.

The parent passes signals on and ends what a dead launcher leaves. If it is killed itself (SIGKILL,
out of memory), launcher and ranks would train on without it, in a session of their own, and hold
the run. So each rank watches it, and stops as on SIGTERM: it saves and leaves.
"""

import os
import select
import threading
import time
from collections.abc import Callable

import psutil

# Inherited from the parent; a launcher that reaches other nodes by ssh does not pass it on.
_VARIABLE = "GANBERT_SUPERVISOR"
_LOOK_SECONDS = 0.2


def supervised(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment whose processes know this one as the parent of their launcher."""
    return {**environment, _VARIABLE: str(os.getpid())}


def when_gone(act: Callable[[], None]) -> None:
    """Call `act` once, from a thread of its own, when the parent ends; never if there is none."""
    number = os.environ.get(_VARIABLE)
    if number is not None:
        when_ended(int(number), act)


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
