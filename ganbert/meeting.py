"""The first that ranks say to each other: that they can start, or why not.

What goes wrong on one rank alone before there is a process group (its data, its GPU, a bug) would
leave the ranks of the other nodes waiting for it. So each comes to a store in rank 0, whether it
can start or not, and all start or none: where one cannot, each node says in one line why.

Who never comes is waited for: a node may be minutes late, while its image is fetched. When time is
up those that came leave with a code of its own (69), for the same command helps when the others can
come. `alarm` takes over when all have met.
"""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from ganbert.errors import GanbertError, NotMetError, PlatformError, say_error

# DeepSpeed's variable for it, in minutes, and its default.
_TIMEOUT_VARIABLE = "DEEPSPEED_TIMEOUT"
_TIMEOUT_MINUTES = 10
# Rank 0 holds the store: where nobody can start, it waits so long for the last to hear why.
_PATIENCE = timedelta(seconds=60)
_EXIT_BUG = 1
# For the life of the process: the process group meets at the same store.
_OPEN: list[Store] = []
_VERDICT, _HEARD, _LEAVE = "verdict", "heard", "leave"


def meeting_timeout() -> timedelta:
    """How long ranks wait for each other at the start.

    Raises
    ------
    PlatformError
        If DEEPSPEED_TIMEOUT is no number of minutes.
    """
    minutes = os.environ.get(_TIMEOUT_VARIABLE) or str(_TIMEOUT_MINUTES)
    if not minutes.isdecimal() or int(minutes) == 0:
        raise PlatformError(
            _TIMEOUT_VARIABLE,
            expected="a whole number of minutes, at least 1",
            found=minutes,
            remedy="mend or unset it",
        )
    return timedelta(minutes=int(minutes))


@dataclass(frozen=True)
class _Verdict:
    """What came of it: code 0 if all can start, else who said first that they cannot, and why.

    `num_ranks` are to hear it; None: all of them.
    """

    rank: int = 0
    text: str = ""
    code: int = 0
    num_ranks: int | None = None

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "_Verdict":
        if isinstance(error, GanbertError):
            return cls(rank, str(error), error.exit_code)
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else _EXIT_BUG
            return cls(rank, f"left with code {code}: its log says why", code)
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(rank, f"{words} (the traceback is in the log of rank {rank})", _EXIT_BUG)


class Meeting:
    """All ranks that the launcher has started begin, or none does; a context manager.

    What is done inside is what may fail on one rank alone. At its end each rank waits until all
    have come or one has failed. Then all leave, with the exit code of the first that failed; the
    first rank of each node says one line: its own mistake, else that of the first. Without a
    launcher there is nobody to meet, and an error passes.

    Raises
    ------
    PlatformError
        At the end of the block, if the port is taken.
    NotMetError
        If rank 0 does not answer, or others do not come.
    SystemExit
        If one of them cannot start.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        self._has_launcher = os.environ.keys() >= set(names)
        self._timeout = timeout
        if self._has_launcher:
            self._rank, self._size, local_rank = (int(os.environ[name]) for name in names[:3])
            self._speaks = local_rank == 0
            self._place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_wish = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and not error.code  # --help
        )
        if not self._has_launcher or is_wish:
            return
        mine = _Verdict()
        if error is not None:
            mine = _Verdict.of(self._rank, error)
            self._say(error)
        try:
            verdict = self._hear(mine)
        except PlatformError:
            if error is None:
                raise
            raise SystemExit(mine.code) from None
        if verdict.code != 0:
            if error is None and self._speaks:
                of = "" if verdict.rank == self._rank else f"rank {verdict.rank}: "
                say_error(f"{of}{verdict.text}")
            self._leave_together(verdict.num_ranks or self._size)
            raise SystemExit(verdict.code) from None

    def _say(self, error: BaseException) -> None:
        """At once, before others are waited for."""
        if isinstance(error, GanbertError):
            if self._speaks:
                say_error(error)
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
            sys.stderr.flush()

    def _hear(self, mine: _Verdict) -> _Verdict:
        """Say what is known here, and wait for what came of it."""
        self._come()
        try:
            self._store.set(_chair(self._rank), "")
            # Not by counting: who dies waiting, and is started again, comes twice.
            if mine.code != 0 or not self._missing():
                self._decide(mine)
            try:
                self._store.wait([_VERDICT], self._timeout or meeting_timeout())
            except RuntimeError:
                self._decide(self._without_those_missing())
            return _Verdict(**json.loads(self._store.get(_VERDICT)))
        except RuntimeError as error:  # all that torch's stores raise
            raise cannot_meet(self._place, is_taken=False) from error

    def _decide(self, verdict: _Verdict) -> None:
        """The first one holds."""
        self._store.compare_set(_VERDICT, "", json.dumps(asdict(verdict)))

    def _come(self) -> None:
        host, _, port = self._place.rpartition(":")
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host,
                int(port),
                # torchrun keeps a store of its own there.
                is_master=self._rank == 0
                and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True),
                timeout=self._timeout or meeting_timeout(),
                wait_for_workers=False,
                # The process group asks for one at the same port.
                multi_tenant=True,
            )
        except RuntimeError as error:
            raise cannot_meet(self._place, is_taken="EADDRINUSE" in str(error)) from error
        _OPEN.append(store)
        self._store = PrefixStore("meeting", store)

    def _missing(self) -> list[int]:
        ranks = range(self._size)
        if self._store.check([_chair(rank) for rank in ranks]):
            return []
        return [rank for rank in ranks if not self._store.check([_chair(rank)])]

    def _without_those_missing(self) -> _Verdict:
        missing = self._missing()
        error = NotMetError(
            f"meeting of the ranks at {self._place}",
            expected=f"{self._size} ranks within {self._timeout or meeting_timeout()}",
            found=f"no word of rank {_ranges(missing)}",
            remedy="look at the logs of their nodes; give the same command again on all nodes",
        )
        verdict = _Verdict.of(self._rank, error)
        return dataclasses.replace(verdict, num_ranks=self._size - len(missing))

    def _leave_together(self, num_ranks: int) -> None:
        """Wait for the others: the store goes with rank 0, and a launcher ends its other ranks."""
        with contextlib.suppress(RuntimeError):
            if self._store.add(_HEARD, 1) == num_ranks:
                self._store.set(_LEAVE, "")
            self._store.wait([_LEAVE], _PATIENCE)


def cannot_meet(place: str, *, is_taken: bool) -> PlatformError:
    """Say that ranks did not find each other at `place` (HOST:PORT)."""
    kind = PlatformError if is_taken else NotMetError
    return kind(
        f"meeting of the ranks at {place}",
        expected="a free port there, that every node reaches",
        found="a port that is taken" if is_taken else "no answer in time",
        remedy="give the launcher another --master_port (`ganbert train` --master-port); did a "
        "rank of another node end with a line of its own? Mend that first",
    )


def _chair(rank: int) -> str:
    return f"rank {rank}"


def _ranges(ranks: Sequence[int]) -> str:
    """Write ascending numbers in short.

    >>> _ranges([0, 2, 3, 4])
    '0, 2-4'
    """
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
