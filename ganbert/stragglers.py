"""Which rank the others wait for: ranks that exchange gradients all take as long as the slowest.

Wall time of a step is the same on all ranks, so it says nothing. What differs is the time that a
rank spends on its own, before it exchanges anything: waiting for its images, and the generator's
forward pass, which is the same work everywhere. A slow disk, a throttled GPU and a busy neighbour
all show there.
"""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

_PATIENCE_STEPS = 20
# Below it, a difference is noise of the clock and costs nothing.
_LEAST_SECONDS = 0.01


class OwnTime:
    """Adds up the time of a step that a rank spends without the others.

    On a GPU between two events in its stream, which wait for nothing: read it after something else
    has waited for the GPU.

    Parameters
    ----------
    device : where the rank computes
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host_seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        if self._cuda:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._events.append((before, after))
        else:
            started = time.perf_counter()
            yield
            self._host_seconds += time.perf_counter() - started

    def take(self) -> float:
        """Return the sum in seconds, and begin anew."""
        seconds = self._host_seconds
        for before, after in self._events:
            after.synchronize()
            seconds += before.elapsed_time(after) / 1000
        self._host_seconds, self._events = 0.0, []
        return seconds


def host_names() -> list[str]:
    """Name of each rank's host, by rank; all ranks call it together."""
    names = [""] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return names


def slowest(own_seconds: Sequence[float]) -> tuple[int, float]:
    """Return the rank with most time of its own, and how many times the others' median that is.

    Parameters
    ----------
    own_seconds : by rank, of one step; s

    >>> slowest([0.4, 0.4, 0.8])
    (2, 2.0)
    """
    rank = max(range(len(own_seconds)), key=own_seconds.__getitem__)
    others = [seconds for other, seconds in enumerate(own_seconds) if other != rank]
    if not others or own_seconds[rank] < _LEAST_SECONDS:
        return rank, 1.0
    return rank, own_seconds[rank] / max(statistics.median(others), _LEAST_SECONDS)


class StragglerWatch:
    """Says when one rank keeps the others waiting, and when it no longer does.

    Parameters
    ----------
    hosts : name of each rank's host, by rank
    ratio : of a straggler's own time to the median of the others', above 1
    """

    def __init__(self, hosts: Sequence[str], ratio: float) -> None:
        self._hosts, self._ratio = hosts, ratio
        self._named: int | None = None
        # The rank that was slow, or that no rank was, and for how many steps on end.
        self._seen: tuple[int | None, int] = (None, 0)

    def see(self, own_seconds: Sequence[float]) -> str | None:
        """Take over one step; return a line if there is something new to say."""
        rank, ratio = slowest(own_seconds)
        slow = rank if ratio >= self._ratio else None
        before, times = self._seen
        self._seen = (slow, times + 1 if slow == before else 1)
        if self._seen[1] < _PATIENCE_STEPS or slow == self._named:
            return None
        gone, self._named = self._named, slow
        if slow is None:
            return f"rank {gone} on {self._hosts[gone or 0]} keeps up again"
        return (
            f"straggler: rank {slow} on {self._hosts[slow]} needs {own_seconds[slow]:.2f} s of its "
            f"own a step, {ratio:.1f} times the others' median, for {_PATIENCE_STEPS} steps: look "
            "at its disk, its clocks and its neighbours"
        )
