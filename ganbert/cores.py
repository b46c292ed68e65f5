"""How many cores of a node are for one of its ranks.

DALI's threads and torch's each take all of them unless told, and the ranks would wait for each
other.
"""

import os


def ranks_here() -> int:
    """Return how many ranks the launcher has started on this node."""
    return int(os.environ.get("LOCAL_SIZE", "1"))


def share_of_cores() -> int:
    """Return this rank's share of the cores that it may use, at least one."""
    return max(len(os.sched_getaffinity(0)) // ranks_here(), 1)
