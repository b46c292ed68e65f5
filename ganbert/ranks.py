"""What the ranks of a run must do together: stop, agree on what they train, average.

Needs a process group (see `engines.init_world`); knows nothing of networks. How they fail together
stands in `alarm`.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType

import torch.distributed as dist
from torch import Tensor

from ganbert.errors import PlatformError


@dataclass
class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the ranks agree on at the end of a step.

    A second Ctrl-C aborts at once. A second SIGTERM does not: the launcher sends one too.
    """

    received: bool = field(default=False)

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def ask(self) -> None:
        """Stop as if a signal had come."""
        self.received = True

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def require_same(facts: Mapping[str, str]) -> None:
    """Refuse to start where the ranks do not mean the same run.

    Parameters
    ----------
    facts : what must be equal everywhere, by name

    Raises
    ------
    PlatformError
        On every rank that differs from rank 0, naming the first fact in which it does.
    """
    of_all: list[Mapping[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_all, dict(facts))
    for name, value in facts.items():
        if value != of_all[0][name]:
            raise PlatformError(
                name,
                expected=f"that of rank 0 ({of_all[0][name]})",
                found=value,
                remedy="give every node the same code, recipe, data and output folder",
            )


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a small tensor over all ranks, on every rank."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()
