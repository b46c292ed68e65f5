"""Who waits for a process hears of its end, and not before."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ganbert.supervisor import supervised, when_ended, when_gone


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_the_end_is_told_and_not_before(
    has_descriptors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_number: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if not has_descriptors:
        monkeypatch.setattr(os, "pidfd_open", lacks)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    told, told_too, not_told = (threading.Event() for _ in range(3))
    when_ended(process.pid, told.set)
    monkeypatch.setattr(os, "environ", {})
    when_gone(not_told.set)  # of no parent
    monkeypatch.setattr(os, "environ", {name: str(process.pid) for name in supervised({})})
    when_gone(told_too.set)
    assert not told.wait(0.5)
    assert not told_too.is_set()
    process.kill()
    process.wait()
    assert told.wait(20)
    assert told_too.wait(20)
    assert not not_told.is_set()


STARTS_REST = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
RANK = """
import os
from ganbert.supervisor import find_launchers, when_gone
launchers = find_launchers()
print(os.getpid(), len(launchers), flush=True)
input()
when_gone(lambda: os._exit(0), launchers)
print("watches", flush=True)
input()
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in a session of their own; each starts the next one, the last one a rank."""
    package, scripts = tmp_path / "deepspeed", tmp_path / "bin"
    for folder in (scripts, package, package / "launcher"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (package / "launcher" / "launch.py").write_text(STARTS_REST)
    started = []

    def start(*programs: str) -> subprocess.Popen[str]:
        words: list[str] = []
        for program in programs:
            if program != "-m deepspeed.launcher.launch":
                (scripts / program).write_text(STARTS_REST)
                program = str(scripts / program)
            words += [sys.executable, "-u", *program.split()]
        process = subprocess.Popen(
            [*words, sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("killed", ["deepspeed", "launch"])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_rank_hears_of_the_end_of_each_part_of_a_bare_launcher(
    killed: str, is_late: bool, chain: Callable[..., subprocess.Popen[str]]
) -> None:
    """Also when it ended while the rank was still importing."""
    process = chain("deepspeed", "-m deepspeed.launcher.launch")
    assert process.stdin is not None
    assert process.stdout is not None
    pid, num_launchers = map(int, process.stdout.readline().split())
    assert num_launchers == 2
    rank, runner = psutil.Process(pid), psutil.Process(process.pid)
    victim = runner if killed == "deepspeed" else runner.children()[0]
    if not is_late:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "watches\n"
    victim.kill()
    victim.wait(20)
    if is_late:
        process.stdin.write("\n")
        process.stdin.flush()
    assert not psutil.wait_procs([rank], timeout=30)[1]


@pytest.mark.parametrize(
    ("programs", "num_launchers"),
    [
        (["deepspeed"], 0),  # a script of that name, which starts ranks in its own way
        (["ds", "ds"], 0),
        (["nightly.py", "-m deepspeed.launcher.launch"], 1),  # over ssh or --no_ssh
        (["ds", "-m deepspeed.launcher.launch"], 2),
        (["deepspeed", "wrapper.py", "-m deepspeed.launcher.launch"], 1),
    ],
)
def test_nobody_else_is_taken_for_a_launcher(
    programs: list[str], num_launchers: int, chain: Callable[..., subprocess.Popen[str]]
) -> None:
    process = chain(*programs)
    assert process.stdout is not None
    assert int(process.stdout.readline().split()[1]) == num_launchers


def test_one_that_has_ended_is_told_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    told = threading.Event()
    when_ended(process.pid, told.set)
    assert told.wait(20)
