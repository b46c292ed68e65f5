"""`ganbert train`: the `deepspeed` launcher on this node, with signals that arrive.

The launcher alone ends badly: SIGTERM kills it, and its code says nothing of its ranks; Ctrl-C
gives them 30 s; and if the part of it that starts them is killed, it reports success. So a small
parent starts it in a session of its own, hands a wish to stop to all ranks at once, waits as long
as their checkpoint takes, and returns what became of them. The processes of a session are found by
its number, also when their parents are dead, so none is left behind.
"""

import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from ganbert.errors import PlatformError
from ganbert.supervisor import supervised

EXIT_LAUNCHER_DIED = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_SECONDS = 0.2
# A second Ctrl-C that comes sooner is the first one, passed on by a wrapper such as timeout(1).
_ECHO_SECONDS = 0.5
_KILL_WINDOW_SECONDS = 10.0
# Ranks that lost their launcher still save if they can; one that hangs must not hold the GPUs.
_GRACE_SECONDS = 120.0


def launch(
    options: Sequence[object], *, num_gpus: int | None = None, master_port: int | None = None
) -> int:
    """Run `deepspeed ganbert/train.py` with `options` to its end.

    Parameters
    ----------
    options : of train.py
    num_gpus : processes on this node; default: one per GPU
    master_port : where the ranks meet; default: a free port, so that two runs share a node

    Returns
    -------
    Exit code: the ranks' own (0, 2, 75, ...), 128 + n if signal n killed launcher or rank, 1 if the
    launcher ended without its ranks.

    Raises
    ------
    PlatformError
        If there is no `deepspeed` beside this Python or on the PATH.
    """
    # The launcher finds ninja and itself through PATH, also when the environment is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    launcher = shutil.which("deepspeed", path=path)
    if launcher is None:
        raise PlatformError(
            "deepspeed",
            expected="the launcher beside this Python or on the PATH",
            found="none",
            remedy="install GANBERT with its dependencies (make venv)",
        )
    command = [launcher, f"--master_port={master_port or _free_port()}"]
    if num_gpus is not None:
        command.append(f"--num_gpus={num_gpus}")
    script = Path(__file__).with_name("train.py")
    environment = supervised({**os.environ, "PATH": path})
    return supervise([*command, str(script), *map(str, options)], environment)


def supervise(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    grace_seconds: float = _GRACE_SECONDS,
) -> int:
    """Run a launcher of ranks; see `launch`. A rank is what it starts with `--local_rank=`."""
    wishes = _Wishes()
    with wishes.received():
        launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        session = _Session(launcher.pid)
        had_ranks = _follow(launcher, session, wishes)
        had_orphans = _clear(session, wishes, grace_seconds)
    return _exit_code(launcher.returncode, died=had_orphans or not had_ranks)


@dataclass
class _Wishes:
    """What signals have asked for."""

    stop: bool = False
    kill: bool = False
    last_interrupt: float = -math.inf

    @contextlib.contextmanager
    def received(self) -> Iterator[None]:
        """Listen to the signals; one that was ignored (nohup) stays ignored, but for Ctrl-C."""
        former = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        for number, handler in former.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop:
            _say("stopping: the ranks finish their step and save; Ctrl-C twice kills them")
        self.stop = True
        if number == signal.SIGINT:
            since, self.last_interrupt = time.monotonic() - self.last_interrupt, time.monotonic()
            self.kill = self.kill or _ECHO_SECONDS < since <= _KILL_WINDOW_SECONDS


class _Session:
    """The living processes of the launcher's session."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._told: set[psutil.Process] = set()

    def look(self) -> tuple[set[psutil.Process], set[psutil.Process]]:
        """Return ranks and others; what a rank has forked looks like one, and is an other."""
        parents, looks_like_rank = {}, set()
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(pid) != self._number:
                    continue
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    parents[process] = process.ppid()
                    if any(word.startswith("--local_rank=") for word in process.cmdline()):
                        looks_like_rank.add(process)
        pids = {process.pid for process in looks_like_rank}
        ranks = {process for process in looks_like_rank if parents[process] not in pids}
        return ranks, parents.keys() - ranks

    def tell(self, processes: set[psutil.Process]) -> None:
        """SIGTERM, once."""
        _send(signal.SIGTERM, processes - self._told)
        self._told |= processes


def _follow(launcher: subprocess.Popen[bytes], session: _Session, wishes: _Wishes) -> bool:
    """Wait for the launcher, passing wishes on; return whether it ever had ranks."""
    had_ranks = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(_POLL_SECONDS)
            return had_ranks
        if had_ranks and not wishes.stop:
            continue
        ranks, others = session.look()
        had_ranks = had_ranks or bool(ranks)
        if wishes.kill:
            _send(signal.SIGKILL, ranks | others)
        elif wishes.stop:
            # Before there are ranks there is nothing to save. After them the launcher is on its
            # way out with their exit code, and a signal would only cost that.
            session.tell(ranks if had_ranks else others)


def _clear(session: _Session, wishes: _Wishes, grace_seconds: float) -> bool:
    """End what the launcher left behind; return whether ranks were among it."""
    kill_at = time.monotonic() + grace_seconds
    had_orphans = False
    while any(found := session.look()):
        ranks, others = found
        if ranks and not had_orphans:
            had_orphans = True
            _say("the launcher ended before its ranks; stopping them")
        if wishes.kill or time.monotonic() > kill_at:
            _send(signal.SIGKILL, ranks | others)
        else:
            session.tell(ranks or others)
        time.sleep(_POLL_SECONDS)
    return had_orphans


def _exit_code(code: int, *, died: bool) -> int:
    if code < 0:
        return 128 - code
    # The launcher's way of saying that signal n killed a rank: exit(-n).
    if code > 256 - signal.NSIG:
        return 128 + 256 - code
    # It says 0 also when the part of it that starts and watches the ranks was killed.
    return EXIT_LAUNCHER_DIED if code == 0 and died else code


def _send(number: signal.Signals, processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _say(text: str) -> None:
    # Straight to the descriptor: a closed terminal must not keep a signal from being passed on.
    with contextlib.suppress(OSError):
        os.write(2, f"ganbert: {text}\n".encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
