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

# Writes when it heard SIGTERM, then takes its time to save, as a checkpoint does.
RANK = """
import os, signal, sys, time
folder, save_seconds = sys.argv[2], float(sys.argv[3])
def stop(*_):
    open(f"{folder}/heard-{sys.argv[1][-1]}", "w").write(str(time.monotonic()))
    time.sleep(save_seconds)
    os._exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if save_seconds < 0 else stop)
open(f"{folder}/ready-{sys.argv[1][-1]}", "w").close()
time.sleep(60)
"""
# Like DeepSpeed's: starts two ranks and leaves with their exit code.
LAUNCHER = """
import subprocess, sys, time
time.sleep(float(sys.argv[3]))
ranks = [
    subprocess.Popen([sys.executable, sys.argv[1], f"--local_rank={i}", *sys.argv[2:]])
    for i in range(2)
]
sys.exit(max(rank.wait() for rank in ranks))
"""
PARENT = """
import signal, sys
from ganbert.launch import supervise
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so
sys.exit(supervise(sys.argv[2:], grace_seconds=float(sys.argv[1])))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Supervise the launcher above, or a program given as text."""
    (tmp_path / "rank.py").write_text(RANK)
    begun = []

    def run(
        program: str = LAUNCHER, *, save: float = 0.5, delay: float = 0, grace: float = 30
    ) -> subprocess.Popen[str]:
        # The rank reads its saving time where the launcher reads the delay.
        (tmp_path / "launcher.py").write_text(program.replace("sys.argv[3]", f"{delay!r}"))
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PARENT, str(grace)),
                *(sys.executable, str(tmp_path / "launcher.py")),
                *(str(tmp_path / "rank.py"), str(tmp_path), str(save)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()
    for left in processes_of(tmp_path):
        left.kill()


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
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_ranks(folder: Path) -> None:
    wait_for(lambda: all((folder / f"ready-{rank}").exists() for rank in range(2)))
    time.sleep(0.3)  # one look of the parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_wish_to_stop_reaches_all_ranks_at_once_and_waits_for_them(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(save=1.5)
    wait_for_ranks(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    first, second = (float((tmp_path / f"heard-{rank}").read_text()) for rank in range(2))
    assert abs(first - second) < 0.5, "the second rank heard it only after the first had saved"
    assert "stopping" in errors
    assert not processes_of(tmp_path)


def test_an_echo_of_ctrl_c_is_one_wish_and_a_second_one_kills(start: Start, tmp_path: Path) -> None:
    process = start(save=50)
    wait_for_ranks(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL
    assert not processes_of(tmp_path)


def test_stopped_before_there_are_ranks(start: Start, tmp_path: Path) -> None:
    process = start(delay=30)
    wait_for(lambda: len(processes_of(tmp_path)) == 2)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("save", [0.5, -1], ids=["saves", "deaf"])
def test_ranks_that_lost_their_launcher_are_stopped(
    start: Start, tmp_path: Path, save: float
) -> None:
    process = start(save=save, grace=1)
    wait_for_ranks(tmp_path)
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert (tmp_path / "heard-0").exists() == (save > 0)
    assert "the launcher ended before its ranks" in errors
    assert not processes_of(tmp_path)


def test_a_launcher_that_calls_its_own_death_a_success_is_not_believed(
    start: Start, tmp_path: Path
) -> None:
    process = start(LAUNCHER.replace("max(rank.wait() for rank in ranks)", "0 * time.sleep(1)"))
    process.communicate(timeout=20)
    assert process.returncode == EXIT_LAUNCHER_DIED
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
    process.communicate(timeout=20)
    assert process.returncode == expected


def test_success_is_0(start: Start, tmp_path: Path) -> None:
    process = start(LAUNCHER.replace("rank.wait()", "rank.wait() * 0"))
    wait_for_ranks(tmp_path)
    for rank in processes_of(tmp_path):
        if any("--local_rank=" in word for word in rank.cmdline()):
            rank.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_without_a_launcher_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="deepspeed"):
        launch([])
