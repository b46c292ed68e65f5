"""Ranks that end together: processes with a process group, one of which fails in some way."""

import contextlib
import gc
import json
import multiprocessing
import signal
import socket
import time
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ganbert.alarm import Alarm
from ganbert.errors import one_line_errors
from ganbert.exchange import LOOPBACK, Cause, Exchange, keep_alive
from tests.failing_ranks import (
    SIZE,
    Deed,
    abort,
    die,
    err,
    err_of_what_another_broke,
    mean_another_run,
    mean_one_run,
    run_rank,
    stumble,
)

# Torch takes seconds to import: one server does it once, and the ranks are forked from there.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.failing_ranks"])
MISTAKE = "here: expected numbers, found none; mend them"
BUG = "KeyError: 'no such key' (the traceback is in the log of rank {culprit})"
DEATH = "expected a process that trains, found none on its node: it was killed or crashed; "


def run(
    folder: Path, deeds: dict[int, Deed], address: str = LOOPBACK
) -> tuple[list[int | None], list[str]]:
    """Exit codes and words of the ranks, none of which hangs."""
    ranks = [
        PROCESSES.Process(target=run_rank, args=(rank, folder, deeds, address))
        for rank in range(SIZE)
    ]
    for rank in ranks:
        rank.start()
    join(ranks)
    said = [(folder / f"log-{rank}").read_text() for rank in range(SIZE)]
    return [rank.exitcode for rank in ranks], said


def join(ranks: list[BaseProcess]) -> None:
    deadline = time.monotonic() + 150  # of 180, after which a rank is given up
    try:
        for rank in ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
            assert rank.exitcode is not None, "a rank hangs"
    finally:
        for rank in ranks:
            rank.kill()


def others(culprit: int) -> list[int]:
    return [rank for rank in range(SIZE) if rank != culprit]


@pytest.mark.parametrize("address", [LOOPBACK, "localhost"])  # one node, or several
def test_ranks_that_do_not_fail_go_on(address: str, tmp_path: Path) -> None:
    codes, said = run(tmp_path, {}, address)
    assert codes == [0, 0, 0]
    assert said == ["went on\n"] * SIZE
    assert not list(tmp_path.glob("acted-*"))


@pytest.mark.parametrize("culprit", [0, 1])
def test_mistake_of_one_rank_is_one_line_of_each(culprit: int, tmp_path: Path) -> None:
    codes, said = run(tmp_path, {culprit: err})
    assert codes == [2, 2, 2]
    assert said[culprit] == f"ganbert: rank {culprit}: error: {MISTAKE}\n"
    for rank in others(culprit):
        assert said[rank] == f"ganbert: rank {rank}: error: rank {culprit}: {MISTAKE}\n"
    assert len(list(tmp_path.glob("acted-*"))) == SIZE


@pytest.mark.parametrize("culprit", [0, 2])
def test_bug_of_one_rank_is_a_traceback_there_and_a_line_elsewhere(
    culprit: int, tmp_path: Path
) -> None:
    codes, said = run(tmp_path, {culprit: stumble})
    assert codes == [1, 1, 1]
    assert said[culprit].startswith("Traceback (most recent call last):")
    assert said[culprit].endswith("KeyError: 'no such key'\n")
    for rank in others(culprit):
        line = f"rank {culprit}: {BUG.format(culprit=culprit)}"
        assert said[rank] == f"ganbert: rank {rank}: error: {line}\n"


@pytest.mark.parametrize("culprit", [0, 1])
def test_rank_that_is_killed_is_named(culprit: int, tmp_path: Path) -> None:
    codes, said = run(tmp_path, {culprit: die})
    assert codes.pop(culprit) == -signal.SIGKILL
    assert codes == [1, 1]
    assert said[culprit] == ""
    for rank in others(culprit):
        assert said[rank].startswith(f"ganbert: rank {rank}: error: rank {culprit}: {DEATH}")
        assert said[rank].count("\n") == 1


def test_what_follows_from_a_death_is_not_taken_for_the_cause(tmp_path: Path) -> None:
    deeds = {1: die, 0: err_of_what_another_broke, 2: err_of_what_another_broke}
    codes, said = run(tmp_path, deeds)
    assert codes == [1, -signal.SIGKILL, 1]
    for rank in others(1):
        assert said[rank].startswith(f"ganbert: rank {rank}: error: rank 1: {DEATH}")
        assert said[rank].count("\n") == 1


def test_a_mistake_of_all_is_said_once_by_each(tmp_path: Path) -> None:
    codes, said = run(tmp_path, dict.fromkeys(range(SIZE), err))
    assert codes == [2, 2, 2]
    for rank, words in enumerate(said):
        assert words.startswith(f"ganbert: rank {rank}: error: ")
        assert words.endswith(MISTAKE + "\n")
        assert words.count("\n") == 1


def test_second_interrupt_is_a_line_too(tmp_path: Path) -> None:
    codes, said = run(tmp_path, {2: abort})
    assert codes == [130] * SIZE
    assert said[0] == "ganbert: rank 0: error: rank 2: aborted by a second Ctrl-C\n"
    assert said[2] == "ganbert: rank 2: error: aborted by a second Ctrl-C\n"


def test_rank_that_means_another_run_is_named_everywhere(tmp_path: Path) -> None:
    codes, said = run(tmp_path, {0: mean_one_run, 1: mean_another_run, 2: mean_one_run})
    assert codes == [2, 2, 2]
    expected = "seed: expected that of rank 0 (1), found 2; "
    assert said[0].startswith(f"ganbert: rank 0: error: rank 1: {expected}")
    assert said[1].startswith(f"ganbert: rank 1: error: {expected}")
    assert said[2].startswith(f"ganbert: rank 2: error: rank 1: {expected}")


def test_rank_without_others_fails_as_any_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = Alarm(0, 1)
    alarm.on_failure((tmp_path / "acted").touch)
    with pytest.raises(SystemExit) as leaving, one_line_errors(), alarm:
        err()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {MISTAKE}\n")
    assert (tmp_path / "acted").exists()


@pytest.mark.parametrize("seconds", [7, 8, 9, 10, 17, 26, 180, 600])
def test_the_kernel_gives_a_node_up_after_the_very_time_that_was_asked_for(seconds: int) -> None:
    with socket.socket() as connection:
        keep_alive(connection, seconds)
        before, between, questions, unacknowledged = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        )
    assert before + between * questions == seconds == unacknowledged / 1000
    assert before >= between
    # Lost questions are not a lost node.
    assert questions >= 6


def join_exchange(exchange: Exchange, first_line: bytes | None) -> socket.socket:
    """Connect as a rank or a stranger does, and say the first line, if any."""
    port, _ = exchange.invitation
    connection = socket.create_connection((LOOPBACK, port), timeout=60)
    if first_line is not None:
        connection.sendall(first_line + b"\n")
    return connection


def as_rank(exchange: Exchange, rank: int) -> socket.socket:
    _, token = exchange.invitation
    return join_exchange(exchange, json.dumps(["here", [token, rank]]).encode())


STRANGE_LINES = {
    "a request of a browser": b"GET / HTTP/1.1",
    "a wrong word": b'["here", ["let me in", 0]]',
    "a word that is no ASCII": '["here", ["\u00e9", 0]]'.encode(),
    "hostile JSON": b"[" * 60_000,
    "a line without end": b"x" * 200_000,
}


@pytest.mark.parametrize("line", STRANGE_LINES.values(), ids=STRANGE_LINES.keys())
def test_a_stranger_is_sent_away_without_a_word(
    line: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(["host"] * 2, LOOPBACK, 180)
    stranger = join_exchange(exchange, line)
    with contextlib.suppress(ConnectionResetError):  # what it went on to say was not read
        assert stranger.recv(1) == b""
    ranks = [as_rank(exchange, rank) for rank in range(2)]
    for rank in ranks:
        rank.sendall(b'["bye", null]\n')
    exchange.wait_for_all_to_leave(10)
    assert not exchange.is_at_work
    gc.collect()  # asyncio says of a task that failed when it is gone
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_a_silent_stranger_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ganbert.exchange._STRANGER_SECONDS", 600.0)
    exchange = Exchange(["host"] * 2, LOOPBACK, 180)
    silent, slow = join_exchange(exchange, None), join_exchange(exchange, None)
    slow.sendall(b'["he')
    ranks = [as_rank(exchange, rank) for rank in range(2)]
    cause = asdict(Cause(1, "a full disk", 2))
    ranks[1].sendall(json.dumps(["failed", cause]).encode() + b"\n")
    for rank in ranks:
        assert json.loads(rank.makefile().readline()) == ["failed", cause]
    for stranger in (silent, slow):  # all the while they were there
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)
        stranger.close()
    for rank in ranks:
        rank.sendall(b'["heard", null]\n')
        rank.close()
    exchange.wait_for_all_to_leave(10)
    assert not exchange.is_at_work
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("said", [b"", b'["he'], ids=["silent", "slow"])
def test_a_stranger_that_does_not_say_who_it_is_is_sent_away(
    said: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ganbert.exchange._STRANGER_SECONDS", 0.2)
    exchange = Exchange(["host"] * 2, LOOPBACK, 180)
    stranger = join_exchange(exchange, None)
    stranger.sendall(said)
    assert stranger.recv(1) == b""  # before this gives up, after 60 s
    monkeypatch.setattr("ganbert.exchange._STRANGER_SECONDS", 600.0)
    for rank in [as_rank(exchange, rank) for rank in range(2)]:
        rank.sendall(b'["bye", null]\n')
    exchange.wait_for_all_to_leave(10)
    assert not exchange.is_at_work
    assert capfd.readouterr().err == ""


def test_a_rank_may_be_silent_for_as_long_as_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganbert.exchange._STRANGER_SECONDS", 1.0)
    exchange = Exchange(["host"] * 2, LOOPBACK, 180)
    ranks = [as_rank(exchange, rank) for rank in range(2)]
    time.sleep(1.5)
    for rank in ranks:
        rank.setblocking(False)
        with pytest.raises(BlockingIOError):  # nothing has come, and it is open
            rank.recv(1)
        rank.sendall(b'["bye", null]\n')
    exchange.wait_for_all_to_leave(10)
    assert not exchange.is_at_work
