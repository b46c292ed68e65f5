"""A run that another process holds: no rank of a second training writes into it."""

import subprocess
import sys
from pathlib import Path

import yaml

from ganbert.errors import EXIT_USER_ERROR
from ganbert.folder_lock import LOCK_NAME, held

from .conftest import RECIPE, free_port, place_of

# Rank 0 is late: whatever the other one does without its word, it does by then. One that does not
# wait for the word is given a minute.
PROGRAM = """
import os, time
from pathlib import Path
from ganbert import train

def claim_late(output):
    end = time.monotonic() + 60
    while not waits.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return claim(output)

def wait_for_the_word():
    if os.environ["RANK"] == "1":
        waits.touch()
    barrier()

waits = Path(os.environ["WAITS"])
claim, train.claim = train.claim, claim_late
barrier, train.barrier = train.barrier, wait_for_the_word
train.main()
"""


def test_a_run_that_another_process_holds_is_left_as_it_is(prepared: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe"
    recipe.mkdir()
    settings = {"base": str(RECIPE), "max_steps": 4, "log_samples": True, "metrics_port": 0}
    (recipe / "run.yaml").write_text(yaml.safe_dump(settings))
    options = ("--config", recipe, "--data", prepared, "--output", run)
    port = free_port()
    with held(run, expected="", remedy=""):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *map(str, options)],
                env=place_of(rank, 2, port, ranks_here=2) | {"WAITS": str(tmp_path / "waits")},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
        assert [path.name for path in run.iterdir()] == [LOCK_NAME], outputs
        assert (tmp_path / "waits").exists()
    assert [rank.returncode for rank in ranks] == [EXIT_USER_ERROR] * 2, outputs
    for output in outputs:
        assert "expected a run that nobody else is training, found another process" in output
