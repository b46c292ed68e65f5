"""A training whose words nobody reads any more: `| head`, a pager, an ssh that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganbert.checkpoint_files import find_damage, list_checkpoints

from .conftest import RECIPE, free_port, place_of
from .test_train import read_log


@pytest.mark.timeout(300)
def test_a_training_that_nobody_reads_goes_on_to_its_end(
    prepared: Path, repository: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("--config", RECIPE, "--data", prepared, "--output", run, "--max-steps", 4)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-u", repository / "ganbert" / "train.py", *map(str, options)],
        env=place_of(0, 1, free_port()), stdout=writing, stderr=writing,
    )  # fmt: skip
    os.close(writing)
    os.close(reading)
    assert process.wait(240) == 0
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4]
    (checkpoint,) = list_checkpoints(run)
    assert find_damage(checkpoint) is None
    assert (run / "export" / "generator.safetensors").is_file()
