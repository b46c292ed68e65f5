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

import asyncio
import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from ganbert.errors import EXIT_USER_ERROR, GanbertError, PlatformError, say_error

EXIT_BUG = 1
EXIT_ABORTED = 130
LOOPBACK = "127.0.0.1"
# A dead rank breaks the collectives of the others: their errors wait for the cause to arrive.
_NEWS_SECONDS = 2.0
# For the others to hear the cause, and for what is left to do.
_PATIENCE_SECONDS = 5.0
# For whoever has connected to say who it is, which a rank does at once.
_STRANGER_SECONDS = 20.0
# Of a line that is torn, no JSON, or JSON that is meant to do harm.
_NONSENSE = (ValueError, TypeError, RecursionError)
# So that a launcher, which looks once a second, meets the dead rank before those that it ends.
_LAUNCHER_SECONDS = 2.5
# A node without power closes nothing: the kernel asks, so many times, and gives up.
_QUESTIONS = 6
_NODE_TIMEOUT_SECONDS = 180
_GONE_WITH_ITS_NODE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNABORTED)
_MAX_TEXT = 2000


@dataclass(frozen=True)
class Cause:
    """Why the ranks end.

    Attributes
    ----------
    rank : where it happened
    text : one line
    code : exit code of every rank
    was_silent : whether the rank was gone without a word
    """

    rank: int
    text: str
    code: int
    was_silent: bool = False

    @classmethod
    def of(cls, rank: int, error: BaseException) -> "Cause":
        """What the other ranks are told of an error on this one."""
        if isinstance(error, GanbertError):
            return cls(rank, str(error)[:_MAX_TEXT], EXIT_USER_ERROR)
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "aborted by a second Ctrl-C", EXIT_ABORTED)
        words = f"{type(error).__name__}: {error}".partition("\n")[0].split()
        text = f"{' '.join(words)[:_MAX_TEXT]} (the traceback is in the log of rank {rank})"
        return cls(rank, text, EXIT_BUG)

    @classmethod
    def of_silence(cls, rank: int, host: str, error: OSError | None = None) -> "Cause":
        """What is known of a rank that is gone; `error` is how its connection ended, if by one."""
        if error is not None and error.errno in _GONE_WITH_ITS_NODE:
            found = f"no answer from its node {host}: it is down or cut off; look at the node"
        else:
            found = (
                f"none on {host}: it was killed or crashed; look at its log, and on its node for "
                "the out-of-memory killer (dmesg)"
            )
        return cls(rank, f"expected a process that trains, found {found}", EXIT_BUG, True)


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
        self._exchange: _Exchange | None = None
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
            _send(self._connection, "bye")
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
            self._exchange = _Exchange(self._hosts, self._address, self._timeout)
        invitation: list[Any] = [self._exchange and self._exchange.invitation]
        dist.broadcast_object_list(invitation, src=0)
        port, token = invitation[0]
        connection, problem = socket.socket(), None
        try:
            where = (self._address, port)
            connection = socket.create_connection(where, timeout=4 * _PATIENCE_SECONDS)
            connection.settimeout(None)
            _keep_alive(connection, self._timeout)
            _send(connection, "here", [token, self._rank])
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
            with contextlib.suppress(*_NONSENSE), connection.makefile("rb") as lines:
                for line in lines:
                    word, content = json.loads(line)
                    if word == "leave":
                        break
                    cause = Cause(**content)
                    self._speak_for(cause)
                    _send(connection, "heard")
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
        _send(connection, "failed", asdict(cause))
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


def _packed(word: str, content: object = None) -> bytes:
    return json.dumps([word, content]).encode() + b"\n"


def _send(connection: socket.socket, word: str, content: object = None) -> None:
    # The other end may be gone: `Alarm._listen` finds out.
    with contextlib.suppress(OSError):
        connection.sendall(_packed(word, content))


def _listening_socket(address: str) -> socket.socket:
    if address == LOOPBACK:
        return socket.create_server((LOOPBACK, 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket, seconds: int) -> None:
    """Have the kernel end a connection whose other end has not answered for so long: 7 or more."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pause = max(1, seconds * 2 // (3 * _QUESTIONS))
    for option, value in (
        (socket.TCP_KEEPIDLE, seconds - _QUESTIONS * pause),
        (socket.TCP_KEEPINTVL, pause),
        (socket.TCP_KEEPCNT, _QUESTIONS),
        # Of what was sent and not acknowledged, for which no question is asked.
        (socket.TCP_USER_TIMEOUT, 1000 * seconds),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class _Exchange:
    """Rank 0's part: hears the first cause and tells everybody. Lives in a thread of its own."""

    def __init__(self, hosts: Sequence[str], address: str, timeout: int) -> None:
        self._hosts, self._size, self._timeout = hosts, len(hosts), timeout
        self._token = secrets.token_hex(16)
        self._socket = _listening_socket(address)
        self._present: dict[int, asyncio.StreamWriter] = {}
        self._num_joined = 0
        self._heard: set[int] = set()
        self._cause: Cause | None = None
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
        self._thread.start()

    @property
    def invitation(self) -> tuple[int, str]:
        """Port, and the word without which a stranger is not listened to."""
        return self._socket.getsockname()[1], self._token

    @property
    def is_at_work(self) -> bool:
        """Whether not all have left yet."""
        return self._thread.is_alive()

    def wait_for_all_to_leave(self, seconds: float) -> None:
        """Stay until the others have said goodbye: they would take a closed line for a death."""
        self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._is_over = asyncio.Event()
        self._server = await asyncio.start_server(self._attend, sock=self._socket)
        await self._is_over.wait()

    async def _attend(self, lines: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Listen to one rank until it leaves."""
        rank = lost = None
        # Nonsense comes from a rank that died of it, or from no rank. The end of the loop cancels
        # strangers, which asyncio would print.
        with contextlib.suppress(*_NONSENSE, asyncio.CancelledError):
            try:
                async with asyncio.timeout(_STRANGER_SECONDS):
                    first = await lines.readline()
                rank = self._admit(first, writer)
                while rank in self._present and (line := await lines.readline()):
                    self._take(rank, *json.loads(line))
            except OSError as error:
                lost = error
        if rank is not None and rank in self._present:
            del self._present[rank]
            self._tell(Cause.of_silence(rank, self._hosts[rank], lost))
        self._dismiss()
        writer.close()

    def _admit(self, line: bytes, writer: asyncio.StreamWriter) -> int | None:
        word, (token, rank) = json.loads(line)
        if word != "here" or not secrets.compare_digest(token, self._token):
            return None
        _keep_alive(writer.get_extra_info("socket"), self._timeout)
        self._present[rank] = writer
        if self._cause is not None:
            writer.write(_packed("failed", asdict(self._cause)))
        self._num_joined += 1
        if self._num_joined == self._size:
            self._server.close()
        return int(rank)

    def _take(self, rank: int, word: str, content: Any) -> None:
        if word == "failed":
            self._tell(Cause(**content))
        elif word == "heard":
            self._heard.add(rank)
        elif word == "bye":
            del self._present[rank]
        self._dismiss()

    def _tell(self, cause: Cause) -> None:
        """Pass the first cause on; what comes later follows from it."""
        if self._cause is None:
            self._cause = cause
            for writer in self._present.values():
                writer.write(_packed("failed", asdict(cause)))

    def _dismiss(self) -> None:
        """Let all go when all have heard, and stop when all have gone."""
        if self._num_joined < self._size:
            return
        if self._cause is not None and self._present.keys() <= self._heard:
            for writer in self._present.values():
                writer.write(_packed("leave"))
        if not self._present:
            self._is_over.set()
