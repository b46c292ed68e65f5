"""A rank that keeps the others waiting is named by them, in the log and in the metrics."""

import os
import signal
from pathlib import Path

import pytest

from .conftest import RECIPE, Launch
from .test_train import finish, ranks_of, read_log, scrape, wait_for_step


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rank_that_others_wait_for_is_named(
    launch: Launch, prepared: Path, repository: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("--config", RECIPE, "--data", prepared, "--output", run)
    slow = repository / "tests" / "slow_rank.py"
    process = launch(*options, "--max-steps", 100000, script=slow)
    wait_for_step(run, 2, process)
    ranks = ranks_of(process)
    try:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:  # the test's own time limit ends it
            output += line
            if "straggler" in line:
                break
        text = scrape(output)
    finally:
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
