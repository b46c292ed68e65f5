"""What the ranks of a run must do together: stop, fail, agree on what they train, average.

Needs a process group (see `engines.init_world`); knows nothing of networks.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from ganbert.errors import EXIT_USER_ERROR, GanbertError, PlatformError


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

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Run a block that may fail on one rank; where it did, all ranks leave.

    Without this the others would wait in their next collective for the one that is gone. The
    block must not hold collectives of its own.

    Raises
    ------
    GanbertError
        On the ranks that failed, their own error.
    SystemExit
        On the others, with the exit code of a user's mistake and without a word.
    """
    error: GanbertError | None = None
    try:
        yield
    except GanbertError as raised:
        error = raised
    failed = torch.tensor([float(error is not None)], device=_device())
    dist.all_reduce(failed)
    if error is not None:
        raise error
    if failed.item() > 0:
        raise SystemExit(EXIT_USER_ERROR)


def require(holds: Tensor, error: Callable[[], GanbertError]) -> None:
    """Go on only if a condition holds on every rank: one small collective, one wait.

    Parameters
    ----------
    holds : Tensor (), bool, on the ranks' device
    error : what to raise where it does not hold

    Raises
    ------
    GanbertError
        On the ranks where it does not hold.
    SystemExit
        On the others, with the exit code of a user's mistake and without a word.
    """
    broken = (~holds).float()
    worst = broken.clone()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    if worst.item() > 0:
        if broken.item() > 0:
            raise error()
        raise SystemExit(EXIT_USER_ERROR)


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
    with together():
        for name, value in facts.items():
            if value != of_all[0][name]:
                raise PlatformError(
                    f"rank {dist.get_rank()}",
                    expected=f"the {name} of rank 0 ({of_all[0][name]})",
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
