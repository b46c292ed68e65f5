"""The launcher's parent, with a launcher and ranks of a few lines: signals, codes, no orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ganbert.errors import PlatformError
from ganbert.launch import EXIT_LAUNCHER_DIED, launch

# Says that it heard SIGTERM, then saves, which is done when the other rank has heard it too: who
# tells the second only when the first has left waits for ever.
RANK = """
import os, signal, sys, time
folder, kind = sys.argv[2:4]
def stop(*_):
    open(f"{folder}/heard-{sys.argv[1][-1]}", "w").close()
    while kind == "slow" or not all(os.path.exists(f"{folder}/heard-{rank}") for rank in "01"):
        time.sleep(0.01)
    os._exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else stop)
open(f"{folder}/ready-{sys.argv[1][-1]}", "w").close()
time.sleep(600)
"""
# Like DeepSpeed's: starts two ranks and leaves with their exit code.
LAUNCHER = """
import os, subprocess, sys, time
time.sleep(DELAY)
ranks = [
    subprocess.Popen([sys.executable, sys.argv[1], f"--local_rank={i}", *sys.argv[2:]])
    for i in range(2)
]
sys.exit(max(rank.wait() for rank in ranks))
"""
# Says when it has seen a rank, and of each signal whether it is to kill; its clock is a file.
PARENT = """
import signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from ganbert import launch
folder, look, receive = Path(sys.argv[2]), launch._Session.look, launch._Wishes._receive
def look_and_say(session):
    ranks, others = look(session)
    if ranks:
        (folder / "seen").touch()
    return ranks, others
def receive_and_say(wishes, number, frame):
    receive(wishes, number, frame)
    with (folder / "received").open("a") as said:
        said.write(f"{wishes.kill}\\n")
def monotonic():
    clock = folder / "clock"
    return float(clock.read_text()) if clock.exists() else time.monotonic()
launch._Session.look, launch._Wishes._receive = look_and_say, receive_and_say
launch.time = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so
sys.exit(launch.supervise(sys.argv[3:], grace_seconds=float(sys.argv[1])))
"""
HANGS_SECONDS = 60
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Supervise the launcher above, or a program given as text."""
    (tmp_path / "rank.py").write_text(RANK)
    begun = []

    def run(
        program: str = LAUNCHER, *, kind: str = "saves", delay: int = 0, grace: int = 600
    ) -> subprocess.Popen[str]:
        (tmp_path / "launcher.py").write_text(program.replace("DELAY", str(delay)))
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PARENT, str(grace), str(tmp_path)),
                *(sys.executable, str(tmp_path / "launcher.py")),
                *(str(tmp_path / "rank.py"), str(tmp_path), kind),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
    for left in processes_of(tmp_path):
        left.kill()  # they hold the pipe
    for process in begun:
        process.communicate()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process with the folder in its command line."""
    found = psutil.process_iter(["cmdline", "status"])
    return [
        process
        for process in found
        if any(str(folder) in word for word in process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_ranks(folder: Path) -> None:
    """Return when both hear signals, and the parent knows of them."""
    names = ("ready-0", "ready-1", "seen")
    wait_for(lambda: all((folder / name).exists() for name in names))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_wish_to_stop_reaches_all_ranks_at_once_and_waits_for_them(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start()
    wait_for_ranks(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 75
    assert "stopping" in errors
    assert not processes_of(tmp_path)


def test_an_echo_of_ctrl_c_is_one_wish_and_a_second_one_kills(start: Start, tmp_path: Path) -> None:
    clock, received, said = tmp_path / "clock", tmp_path / "received", []

    def interrupt(moment: float) -> None:
        clock.with_suffix(".new").write_text(str(moment))
        clock.with_suffix(".new").replace(clock)
        process.send_signal(signal.SIGINT)
        said.append("")
        wait_for(lambda: received.exists() and received.read_text().count("\n") == len(said))

    process = start(kind="slow")
    wait_for_ranks(tmp_path)
    interrupt(100.0)
    interrupt(100.1)
    assert received.read_text().split() == ["False", "False"]
    assert process.poll() is None
    interrupt(101.0)
    process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert not processes_of(tmp_path)


def test_stopped_before_there_are_ranks(start: Start, tmp_path: Path) -> None:
    process = start(delay=600)
    wait_for(lambda: len(processes_of(tmp_path)) == 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(("kind", "grace"), [("saves", 600), ("deaf", 1)])
def test_ranks_that_lost_their_launcher_are_stopped(
    start: Start, tmp_path: Path, kind: str, grace: int
) -> None:
    process = start(kind=kind, grace=grace)
    wait_for_ranks(tmp_path)
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    _, errors = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert (tmp_path / "heard-0").exists() == (kind == "saves")
    assert "the launcher ended before its ranks" in errors
    assert not processes_of(tmp_path)


def test_a_launcher_that_calls_its_own_death_a_success_is_not_believed(
    start: Start, tmp_path: Path
) -> None:
    seen = str(tmp_path / "seen")
    leaves = f"while not os.path.exists({seen!r}): time.sleep(0.01)\nsys.exit(0)\n"
    process = start(LAUNCHER.partition("sys.exit")[0] + leaves)
    _, errors = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == EXIT_LAUNCHER_DIED
    assert "Traceback" not in errors
    assert "the launcher ended before its ranks" in errors
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys; sys.exit(2)", 2),
        (
            "import sys; sys.exit(247)",
            128 + signal.SIGKILL,
        ),  # the launcher's word for a killed rank
        ("import sys; sys.exit(0)", EXIT_LAUNCHER_DIED),  # there never was a rank
    ],
)
def test_exit_code_without_ranks(start: Start, program: str, expected: int) -> None:
    process = start(program)
    process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == expected


def test_success_is_0(start: Start, tmp_path: Path) -> None:
    process = start(LAUNCHER.replace("rank.wait()", "rank.wait() * 0"))
    wait_for_ranks(tmp_path)
    for rank in processes_of(tmp_path):
        if any("--local_rank=" in word for word in rank.cmdline()):
            rank.terminate()
    process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 0


def test_without_a_launcher_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="deepspeed"):
        launch([])
