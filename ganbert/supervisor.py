"""How a rank learns that `ganbert train`, above its launcher, is gone.

The parent passes signals on and ends what a dead launcher leaves. If it is killed itself (SIGKILL,
out of memory), launcher and ranks would train on without it, in a session of their own, and hold
the run. So each rank watches it, and stops as on SIGTERM: it saves and leaves.
"""

import os
import select
import threading
from collections.abc import Callable

# Inherited from the parent; a launcher that reaches other nodes by ssh does not pass it on.
_VARIABLE = "GANBERT_SUPERVISOR"


def supervised(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment whose processes know this one as the parent of their launcher."""
    return {**environment, _VARIABLE: str(os.getpid())}


def when_gone(act: Callable[[], None]) -> None:
    """Call `act` once, from a thread of its own, when the parent ends; never if there is none."""
    number = os.environ.get(_VARIABLE)
    if number is not None:
        threading.Thread(target=_wait, args=(int(number), act), daemon=True).start()


def _wait(number: int, act: Callable[[], None]) -> None:
    try:
        descriptor = os.pidfd_open(number)
    except ProcessLookupError:
        act()
        return
    except OSError:  # a kernel before 5.3
        return
    # Readable when the process has ended.
    select.select([descriptor], [], [])
    os.close(descriptor)
    act()
