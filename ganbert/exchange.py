"""Rank 0's part of the alarm, and what goes over its connections.

Every rank holds a connection to the exchange in rank 0 (`alarm` is their end of it). One line of
JSON is a message: a word and what belongs to it. `here` with the word that strangers do not know,
`failed` with a cause, `heard`, `bye`; from the exchange `failed`, and `leave` when all have heard.
The exchange hears the first cause, or the silence of a rank that is gone, and tells all.
"""

import asyncio
import contextlib
import errno
import json
import secrets
import socket
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ganbert.errors import GanbertError

EXIT_BUG = 1
EXIT_ABORTED = 130
LOOPBACK = "127.0.0.1"
# Of a line that is torn, no JSON, or JSON that is meant to do harm.
NONSENSE = (ValueError, TypeError, RecursionError)
# For whoever has connected to say who it is, which a rank does at once.
_STRANGER_SECONDS = 20.0
# A node without power closes nothing: the kernel asks, so many times, and gives up.
_QUESTIONS = 6
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
            return cls(rank, str(error)[:_MAX_TEXT], error.exit_code)
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


def packed(word: str, content: object = None) -> bytes:
    """Make a message of a word and what belongs to it."""
    return json.dumps([word, content]).encode() + b"\n"


def send(connection: socket.socket, word: str, content: object = None) -> None:
    """Send a message."""
    # The other end may be gone: `Alarm._listen` finds out.
    with contextlib.suppress(OSError):
        connection.sendall(packed(word, content))


def _listening_socket(address: str) -> socket.socket:
    if address == LOOPBACK:
        return socket.create_server((LOOPBACK, 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def keep_alive(connection: socket.socket, seconds: int) -> None:
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


class Exchange:
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
        with contextlib.suppress(*NONSENSE, asyncio.CancelledError):
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
        keep_alive(writer.get_extra_info("socket"), self._timeout)
        self._present[rank] = writer
        if self._cause is not None:
            writer.write(packed("failed", asdict(self._cause)))
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
                writer.write(packed("failed", asdict(cause)))

    def _dismiss(self) -> None:
        """Let all go when all have heard, and stop when all have gone."""
        if self._num_joined < self._size:
            return
        if self._cause is not None and self._present.keys() <= self._heard:
            for writer in self._present.values():
                writer.write(packed("leave"))
        if not self._present:
            self._is_over.set()
