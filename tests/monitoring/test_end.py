"""By a real Prometheus: a run that ended well does not page, any other end does."""

import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from tests.distributed.conftest import free_port

from .live import Prometheus, cohort, prometheus, prometheus_program, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        prometheus_program() is None, reason="no prometheus (apt-get install -y prometheus)"
    ),
]
# Steps take a tenth of it: a scrape alone would hardly meet the last one.
SCRAPE_SECONDS = 5
STEPS = 40


def gone(server: Prometheus, run: str) -> list[object]:
    """The alert's series for a run, pending or firing, in the last minutes."""
    alert = f'ALERTS{{alertname="GanbertTrainingGone",run="{run}"}}'
    return list(server.query(f"max_over_time({alert}[5m])"))


def rank_of(launched: Popen[bytes], rank: int) -> psutil.Process:
    """The process of a rank."""
    parts = psutil.Process(launched.pid).children(recursive=True)
    return next(one for one in parts if f"--local_rank={rank}" in one.cmdline())


def hold(runs: Mapping[Path, Popen[bytes]]) -> list[psutil.Process]:
    """Stop the second rank of each after a step: the first waits for it, and serves its metrics."""
    held, end = {}, time.monotonic() + 200
    while len(held) < len(runs):
        assert time.monotonic() < end
        for folder, launched in runs.items():
            assert launched.poll() is None, (folder / "train.log").read_text()
            log = folder / "run" / "log.jsonl"
            if folder not in held and log.exists() and log.read_text():
                held[folder] = rank_of(launched, 1)
                held[folder].suspend()
        time.sleep(0.02)
    return list(held.values())


def test_the_end_is_told_from_a_death(tmp_path: Path) -> None:
    prepared = cohort(tmp_path)
    ports = {run: free_port() for run in ("ended", "killed", "stopped", "not_exported")}
    targets = {run: (port, {"namespace": "n", "run": run}) for run, port in ports.items()}
    ends = ("ended", "not_exported")
    settings = {"validation_subjects": 0, "checkpoint_every": 100000}
    with prometheus(
        tmp_path, free_port(), targets, scrape_seconds=SCRAPE_SECONDS, patience="3s"
    ) as server:
        runs = {
            run: start(
                tmp_path / run, prepared, port, ranks=2 if run in ends else 1,
                max_steps=STEPS if run in ends else 100000, **settings,
            )
            for run, port in ports.items()
        }  # fmt: skip
        # Or they may be over before they are read.
        held = hold({tmp_path / run: runs[run] for run in ends})
        for run in runs:
            server.wait_for(f'ganbert_step{{run="{run}"}} > 0', 200)
        # In the way of what follows the last step.
        (tmp_path / "not_exported" / "run" / "export").touch()
        for rank in held:
            rank.resume()
        rank_of(runs["killed"], 0).kill()  # as the kernel does when there is no memory
        runs["stopped"].terminate()
        codes = {run: process.wait(200) for run, process in runs.items()}
        assert codes == {"ended": 0, "killed": 137, "stopped": 75, "not_exported": 2}
        for run in ("killed", "stopped", "not_exported"):
            server.wait_for(
                f'ALERTS{{alertname="GanbertTrainingGone",alertstate="firing",run="{run}"}}'
            )
        server.wait_for('up{run="ended"} == 0')
        time.sleep(3 * SCRAPE_SECONDS)
        (last,) = server.query('last_over_time(ganbert_step{run="ended"}[1h])')
        assert last["value"][1] == str(STEPS)
        assert gone(server, "ended") == []
        assert gone(server, "killed")
