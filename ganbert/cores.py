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


def passive_waiting() -> dict[str, str]:
    """Return what of the environment makes torch's threads sleep while they wait for each other.

    A thread of OpenMP spins until the last one is done. Where a core is shared (another job, a
    container's quota), the last one may have none, and the others burn what it waits for. Whoever
    has said otherwise is obeyed. Takes effect if it is set before torch is imported.

    Source
    ------
    docs/decisions/0011-eager-on-the-cpu.md; OpenMP 5.2, section 21.1.5 (OMP_WAIT_POLICY).
    """
    name = "OMP_WAIT_POLICY"
    return {name: os.environ.get(name, "PASSIVE")}
