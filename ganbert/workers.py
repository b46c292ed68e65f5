"""Worker processes of joblib, which end with the process that they work for.

A process that is killed (SIGKILL, the out-of-memory killer) cannot stop its workers. Left alone
they go through what is queued, write into a folder whose lock is gone, and keep the terminal or the
pipe of a log open for the five minutes after which an idle one ends.
"""

import contextlib
import os
from functools import partial

import joblib

from ganbert.supervisor import when_ended


def own_workers() -> contextlib.AbstractContextManager[object]:
    """Make joblib start processes, of one thread each, that end soon after this one has.

    Returns
    -------
    Context in which `joblib.Parallel` does so.
    """
    return joblib.parallel_config(
        backend="loky", inner_max_num_threads=1, initializer=end_with, initargs=(os.getpid(),)
    )


def end_with(parent: int) -> None:
    """End this process, a child of `parent`, once that one is gone; never the parent itself."""
    # A single job needs no other process, and joblib may do it here.
    if os.getpid() == parent:
        return
    when_ended(parent, partial(os._exit, 1))
