"""A few kills; `chaos.py` has many (docs/reliability.md)."""

from pathlib import Path

import pytest

from .chaos import run_chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    figures = run_chaos(tmp_path, num_kills=4, seed=7)
    assert figures["kills_in_all"] == 4
    assert figures["samples"] >= 2 * figures["samples_of_an_epoch"]
    assert not figures["failures"], figures
