"""A rank with busy neighbours is named by the others, in the log and in the metrics."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import RECIPE, Launch
from .test_train import DEADLINE_SECONDS, finish, ranks_of, read_log, scrape, wait_for_step

BURN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each of two ranks")
def test_rank_with_busy_neighbours_is_named(launch: Launch, prepared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--config", RECIPE, "--data", prepared, "--output", run)
    process = launch(*options, "--max-steps", 100000)
    wait_for_step(run, 2, process)
    slow_core, fast_core = sorted(os.sched_getaffinity(0))[:2]
    ranks = ranks_of(process)
    for rank, core in ((0, fast_core), (1, slow_core)):
        for thread in ranks[rank].threads():
            os.sched_setaffinity(thread.id, {core})
    burn = [sys.executable, "-c", BURN, str(slow_core)]
    neighbours = [subprocess.Popen(burn) for _ in range(8)]
    try:
        assert process.stdout is not None
        output, deadline = "", time.monotonic() + DEADLINE_SECONDS
        while "straggler" not in output:
            assert time.monotonic() < deadline, output
            output += process.stdout.readline()
        text = scrape(output)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
        process.send_signal(signal.SIGINT)
        for rank in ranks.values():
            rank.send_signal(signal.SIGTERM)
        finish(process)
    (line,) = [line for line in output.splitlines() if "straggler" in line]
    assert f"straggler: rank 1 on {os.uname().nodename} needs" in line
    own = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    first, second = (float(own[f'ganbert_rank_own_seconds{{rank="{rank}"}}']) for rank in (0, 1))
    assert second > first
    assert all(len(line["own_seconds"]) == 2 for line in read_log(run))
