"""What ranks say when they cannot meet, or when one of them cannot start."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ganbert.errors import EXIT_NOT_MET
from tests.failing_ranks import HANGS_SECONDS, wait_in_store

from .conftest import RECIPE, free_port, place_of

MEET = """
from ganbert.engines import init_world
from ganbert.errors import one_line_errors
with one_line_errors():
    init_world()
"""
# Argument 1 is what is done before the ranks meet, 2 the seconds that they wait for each other.
START = """
import sys
from datetime import timedelta
from ganbert.errors import GanbertError, one_line_errors
from ganbert.meeting import Meeting
from tests.failing_ranks import hold, wait_in_store

def err():
    raise GanbertError("here", expected="a file", found="none", remedy="mend it")

def leave():
    sys.exit(3)

with one_line_errors(), Meeting(timedelta(seconds=float(sys.argv[2]))):
    exec(sys.argv[1])
from ganbert.engines import init_world
from ganbert.ranks import barrier
init_world()
barrier()
print("went on")
"""
MISTAKE = "here: expected a file, found none; mend it"
LONG = 4 * HANGS_SECONDS


def start_rank(
    deed: str, rank: int, size: int, port: int, *, seconds: float = LONG, ranks_here: int = 1
) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", START, deed, str(seconds)],
        env=place_of(rank, size, port, ranks_here=ranks_here) | {"PYTHONPATH": root},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def release(*ranks: subprocess.Popen[str]) -> None:
    """Let ranks that `hold()` go on when all are here."""
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "here\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()


def results_of(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and words; no rank may hang, nor wait for LONG for one that does not come."""
    outputs = [rank.communicate(timeout=HANGS_SECONDS)[0] for rank in ranks]
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


def start_ranks(*deeds: str, ranks_here: int = 1) -> list[tuple[int, str]]:
    """Start a rank for each deed; return exit codes and words."""
    size, port = len(deeds), free_port()
    return results_of(
        [
            start_rank(deed, rank, size, port, ranks_here=ranks_here)
            for rank, deed in enumerate(deeds)
        ]
    )


def lines_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("ganbert: ")]


def test_a_master_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for program in (MEET, START):
            done = subprocess.run(
                [sys.executable, "-c", program, "pass", "60"],
                env=place_of(0, 1, port), capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 2, done.stderr
            (line,) = lines_of(done.stderr)
            assert f"127.0.0.1:{port}: expected a free port there" in line
            assert "found a port that is taken; give the launcher another --master_port" in line
            assert "Traceback" not in done.stderr


def test_ranks_that_can_start_go_on_together() -> None:
    for code, output in start_ranks("pass", "wait_in_store('rank 0', 'rank 2')", "pass"):
        assert (code, output.splitlines()[-1:]) == (0, ["went on"]), output


@pytest.mark.parametrize("culprit", [0, 2])
def test_the_mistake_of_one_node_alone_is_one_line_of_each_and_soon(culprit: int) -> None:
    deeds = ["pass", "pass", "pass"]
    deeds[culprit] = "err()"
    results = start_ranks(*deeds)
    for rank, (code, output) in enumerate(results):
        of = "" if rank == culprit else f"rank {culprit}: "
        assert lines_of(output) == [f"ganbert: rank {rank}: error: {of}{MISTAKE}"]
        assert (code, "Traceback" in output) == (2, False), output


def test_one_that_comes_when_the_others_have_failed_hears_why() -> None:
    results = start_ranks("err()", "wait_in_store('verdict')")
    assert [code for code, _ in results] == [2, 2]
    assert lines_of(results[1][1]) == [f"ganbert: rank 1: error: rank 0: {MISTAKE}"]


def test_a_mistake_of_all_is_one_line_a_node() -> None:
    results = start_ranks("err()", "err()", "err()", "err()", ranks_here=2)
    assert [code for code, _ in results] == [2, 2, 2, 2]
    assert [len(lines_of(output)) for _, output in results] == [1, 0, 1, 0]


def test_the_first_rank_of_a_node_says_what_another_of_it_cannot() -> None:
    results = start_ranks("pass", "err()", ranks_here=2)
    assert [lines_of(output) for _, output in results] == [
        [f"ganbert: rank 0: error: rank 1: {MISTAKE}"],
        [],
    ]


@pytest.mark.parametrize(
    ("deed", "code", "words"),
    [
        ("{}['x']", 1, "KeyError: 'x' (the traceback is in the log of rank 1)"),
        ("leave()", 3, "left with code 3: its log says why"),
    ],
)
def test_a_bug_or_a_wrong_option_of_one_rank_ends_all_too(deed: str, code: int, words: str) -> None:
    (code_0, output_0), (code_1, output_1) = start_ranks("pass", deed)
    assert (code_0, code_1) == (code, code)
    assert lines_of(output_0) == [f"ganbert: rank 0: error: rank 1: {words}"]
    assert ("Traceback" in output_1) == (code == 1)


def test_a_rank_that_never_comes_is_named_in_time() -> None:
    port = free_port()
    ranks = [start_rank("hold()", rank, 4, port, seconds=10) for rank in (0, 2)]
    release(*ranks)  # together: those that come wait 10 s for each other too
    for code, output in results_of(ranks):
        assert code == EXIT_NOT_MET
        (line,) = lines_of(output)
        assert "expected 4 ranks within 0:00:10, found no word of rank 1, 3; look at" in line
        assert "Traceback" not in output


def test_one_that_is_killed_waiting_and_started_again_does_not_count_for_another() -> None:
    port = free_port()
    first, second, again = (start_rank("hold()", k, 3, port, seconds=15) for k in (0, 1, 1))
    release(first, second)
    wait_in_store("rank 0", "rank 1", port=port)
    second.kill()
    release(again)
    for code, output in results_of([first, again]):
        assert code == EXIT_NOT_MET, output
        assert "found no word of rank 2; look at" in output
    second.communicate()


def test_a_rank_that_waits_for_others_prints_its_stacks_when_asked(
    prepared: Path, repository: Path, tmp_path: Path
) -> None:
    script, log, port = repository / "ganbert" / "train.py", tmp_path / "log", free_port()
    options = ["--config", RECIPE, "--data", prepared, "--output", tmp_path / "run"]
    with log.open("w") as stream:
        rank = subprocess.Popen(
            [sys.executable, script, *options],
            env=place_of(0, 2, port), stdout=stream, stderr=stream,
        )  # fmt: skip

    def ask(times: int) -> None:
        rank.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + HANGS_SECONDS
        while log.read_text().count("meeting.py") < times:
            assert time.monotonic() < deadline
            assert rank.poll() is None, log.read_text()
            time.sleep(0.05)

    try:
        wait_in_store("rank 0", port=port)
        ask(1)
        assert "most recent call first" in log.read_text()
        ask(log.read_text().count("meeting.py") + 1)  # it waits on
    finally:
        rank.kill()
        rank.wait()


def test_data_that_one_node_does_not_see_ends_a_training_on_all(
    prepared: Path, repository: Path, tmp_path: Path
) -> None:
    port, processes = free_port(), []
    for rank, data in enumerate((prepared, tmp_path / "not-mounted")):
        options = ("--config", RECIPE, "--data", data, "--output", tmp_path / "run")
        processes.append(
            subprocess.Popen(
                [sys.executable, repository / "ganbert" / "train.py", *map(str, options)],
                env=place_of(rank, 2, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    (line,), (other,) = map(lines_of, outputs)
    assert line == other.replace("rank 1: error: ", "rank 0: error: rank 1: ")
    assert str(tmp_path / "not-mounted") in line
    assert not (tmp_path / "run").exists()
