"""What a rank does in the tests of how ranks fail, each in a process of its own."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from ganbert.alarm import Alarm
from ganbert.errors import GanbertError, one_line_errors
from ganbert.ranks import require_same

SIZE = 3
Deed = Callable[[], None]
HANGS_SECONDS = 150


def err() -> None:
    raise GanbertError("here", expected="numbers", found="none", remedy="mend them")


def stumble() -> None:
    raise KeyError("no such key")


def abort() -> None:
    raise KeyboardInterrupt


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def err_of_what_another_broke() -> None:
    try:
        dist.barrier()
    except RuntimeError as error:
        raise GanbertError("file", expected="bytes", found="none", remedy="mend it") from error


def run_rank(rank: int, folder: Path, deeds: dict[int, Deed], address: str) -> None:
    """A rank that waits for the others, does its deed and waits again."""
    with (folder / f"log-{rank}").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    os.environ["RANK"] = str(rank)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=SIZE)
    with one_line_errors(), Alarm(rank, SIZE, address) as alarm:
        alarm.on_failure((folder / f"acted-{rank}").touch)
        dist.barrier()
        deeds.get(rank, dist.barrier)()
        dist.barrier()
    print("went on", flush=True)
    dist.destroy_process_group()


def mean_one_run() -> None:
    require_same({"seed": "1"})


def mean_another_run() -> None:
    require_same({"seed": "2"})


def wait_in_store(*names: str, port: int | None = None) -> None:
    """Return when the store of ranks that meet has these: `rank 1` has come, or the `verdict`."""
    wait = timedelta(seconds=HANGS_SECONDS)
    place = port or int(os.environ["MASTER_PORT"])
    store = TCPStore("127.0.0.1", place, None, False, wait, wait_for_workers=False)
    PrefixStore("meeting", store).wait([*names], wait)


def hold() -> None:
    """Say that this rank is here, and go on when told to."""
    print("here", flush=True)
    sys.stdin.readline()
