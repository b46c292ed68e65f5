"""Two nodes of a rank each; the first cannot export: the other does not call the run ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from ganbert.errors import EXIT_USER_ERROR

from .conftest import RECIPE, free_port, place_of

# Argument 1 is made when a node says that the run is at its end; the others are train.py's.
RANK = """
import sys, time
from pathlib import Path
from ganbert import train
from ganbert.errors import OutputError
from ganbert.exporter import PrometheusSink

said = Path(sys.argv[1])

def export(run, weights, card):
    end = time.monotonic() + 5
    while not said.exists() and time.monotonic() < end:
        time.sleep(0.05)
    raise OutputError(run, expected="room", found="none", remedy="make some")

train.export_generator = export
PrometheusSink.finished = lambda sink: said.touch()
del sys.argv[1]
train.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_node_is_at_its_end_before_the_export_is_whole(prepared: Path, tmp_path: Path) -> None:
    said, run, port = tmp_path / "said", tmp_path / "run", free_port()
    options = ["--config", RECIPE, "--data", prepared, "--output", run, "--max-steps", 2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, said, *map(str, options)], env=place_of(rank, 2, port),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_USER_ERROR] * 2, outputs
    assert "expected room, found none; make some" in outputs[1]
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
    assert not said.exists()
