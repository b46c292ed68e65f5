"""One rank's failure ends all of them, and each says in one line why.

Ranks wait for each other in collectives, and those know nothing of failures: if one rank is gone,
NCCL waits for minutes, and gloo raises an error that names nobody. So each rank holds a connection
to an exchange in rank 0. A rank that fails says why; one that is killed says nothing, but its
kernel closes the connection. The exchange tells the first cause to all, each rank prints it and
ends its process, whatever its main thread is waiting for, when all have heard.

Nothing is sent while all is well: no step gets a collective more, and a rank that is slow is never
taken for dead, as it would be by a heartbeat. (The store of the process group could carry a cause
too, but it does not see who has left.)
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from ganbert.errors import GanbertError, PlatformError, say_error
from ganbert.exchange import LOOPBACK, NONSENSE, Cause, Exchange, keep_alive, send

# A dead rank breaks the collectives of the others: their errors wait for the cause to arrive.
_NEWS_SECONDS = 2.0
# For the others to hear the cause, and for what is left to do.
_PATIENCE_SECONDS = 5.0
# So that a launcher, which looks once a second, meets the dead rank before those that it ends.
_LAUNCHER_SECONDS = 2.5
_NODE_TIMEOUT_SECONDS = 180


class Alarm:
    """While it is open, a failure of one rank ends all of them; a context manager.

    Where there are others, an error inside does not leave the block: the rank says it (a
    `GanbertError` in its line, a bug with its traceback), tells the others and ends its process. A
    rank without others runs what `on_failure` was given and lets the error pass.

    Parameters
    ----------
    rank, size : of the process group, which must be there
    address : of rank 0, by which the others reach it; `LOOPBACK` keeps strangers out
    hosts : name of each rank's host, by rank
    node_timeout_seconds : how long a node may not answer before its ranks count as lost
    """

    def __init__(
        self,
        rank: int,
        size: int,
        address: str = LOOPBACK,
        *,
        hosts: Sequence[str] | None = None,
        node_timeout_seconds: int = _NODE_TIMEOUT_SECONDS,
    ) -> None:
        self._rank, self._size, self._address = rank, size, address
        self._hosts = hosts or ["its node"] * size
        self._timeout = node_timeout_seconds
        self._exchange: Exchange | None = None
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self._has_spoken = False
        self._is_leaving = False
        self._heard = threading.Event()
        self._actions: list[Callable[[], None]] = []

    def on_failure(self, action: Callable[[], None]) -> None:
        """Do this before a failed process ends, where the main thread may never get to it.

        It runs beside the main thread, after all ranks have heard; an error in it is lost.
        """
        self._actions.append(action)

    def __enter__(self) -> Self:
        if self._size > 1:
            self._connection = self._connect()
            arguments = (self._connection,)
            threading.Thread(target=self._listen, args=arguments, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._connection is not None:
            self._fail(error, self._connection)
        elif error is not None:
            self._act()
        elif self._connection is not None:
            self._is_leaving = True
            send(self._connection, "bye")
            if self._exchange is not None:
                self._exchange.wait_for_all_to_leave(_PATIENCE_SECONDS)

    def _connect(self) -> socket.socket:
        """Join the exchange of rank 0, all ranks at once.

        Raises
        ------
        PlatformError
            On every rank, if one of them cannot reach it.
        """
        if self._rank == 0:
            self._exchange = Exchange(self._hosts, self._address, self._timeout)
        invitation: list[Any] = [self._exchange and self._exchange.invitation]
        dist.broadcast_object_list(invitation, src=0)
        port, token = invitation[0]
        connection, problem = socket.socket(), None
        try:
            where = (self._address, port)
            connection = socket.create_connection(where, timeout=4 * _PATIENCE_SECONDS)
            connection.settimeout(None)
            keep_alive(connection, self._timeout)
            send(connection, "here", [token, self._rank])
        except OSError as error:
            problem = error.strerror or str(error)
        problems: list[str | None] = [None] * self._size
        dist.all_gather_object(problems, problem)
        for rank, found in enumerate(problems):
            if found is not None:
                raise PlatformError(
                    f"rank {rank}",
                    expected=f"a way to port {port} of rank 0 ({self._address})",
                    found=found,
                    remedy="open the ports between the nodes, which the ranks need anyway",
                )
        return connection

    def _listen(self, connection: socket.socket) -> None:
        """Wait for a cause, in a thread of its own, and end the process."""
        cause = lost = None
        try:
            with contextlib.suppress(*NONSENSE), connection.makefile("rb") as lines:
                for line in lines:
                    word, content = json.loads(line)
                    if word == "leave":
                        break
                    cause = Cause(**content)
                    self._speak_for(cause)
                    send(connection, "heard")
                    connection.settimeout(_PATIENCE_SECONDS)
        except OSError as error:
            lost = error
        if self._is_leaving and cause is None:
            return
        if cause is None:
            cause = Cause.of_silence(0, self._hosts[0], lost)
            self._speak_for(cause)
        if cause.was_silent and self._hosts[cause.rank] == self._hosts[self._rank]:
            time.sleep(_LAUNCHER_SECONDS)
        self._act()
        _end(cause.code)

    def _speak_for(self, cause: Cause) -> None:
        _end_anyway(cause.code)
        self._heard.set()
        self._speak_once(lambda: say_error(f"rank {cause.rank}: {cause.text}"))

    def _fail(self, error: BaseException, connection: socket.socket) -> None:
        """Say what happened here, tell the others, and wait for `_listen` to end the process."""
        cause = Cause.of(self._rank, error)
        follows = _may_follow(error) and self._heard.wait(_NEWS_SECONDS)
        if not follows:
            _end_anyway(cause.code)
            if isinstance(error, GanbertError | KeyboardInterrupt):
                self._speak_once(lambda: say_error(cause.text))
            else:
                self._speak_once(lambda: traceback.print_exception(error))
        send(connection, "failed", asdict(cause))
        threading.Event().wait()

    def _speak_once(self, say: Callable[[], None]) -> None:
        """Say a cause, unless this process has; return when it is said, by whichever thread."""
        with self._lock:
            if not self._has_spoken:
                self._has_spoken = True
                say()

    def _act(self) -> None:
        for action in reversed(self._actions):
            with contextlib.suppress(Exception):
                action()


def _may_follow(error: BaseException | None) -> bool:
    """Whether a rank that is gone may be behind an error: torch's own are all RuntimeErrors."""
    while error is not None:
        if isinstance(error, RuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end(code: int) -> None:
    """End the process from any thread; the main one may never come back from a collective."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end_anyway(code: int) -> None:
    """End the process in a while, should a blocked terminal or a stopped rank be in the way."""
    timer = threading.Timer(4 * _PATIENCE_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()
