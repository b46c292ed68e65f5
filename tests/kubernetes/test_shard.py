"""What shard.sh refuses: another try would end the same way, or would never end."""

from pathlib import Path

import pytest

from .manifests import KUBERNETES
from .test_scripts import refused, run

SCRIPT = KUBERNETES / "overlays/infer/shard.sh"
GOOD = {"JOB_COMPLETION_INDEX": "0", "GANBERT_SHARDS": "2"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GANBERT_SHARDS", ""),
        ("GANBERT_SHARDS", "0"),  # the share would be counted up by nothing, for ever
        ("GANBERT_SHARDS", "-2"),
        ("GANBERT_SHARDS", "two"),
        ("GANBERT_SHARDS", "08"),
        ("JOB_COMPLETION_INDEX", ""),
        ("JOB_COMPLETION_INDEX", "2"),  # of the shares 0 and 1
        ("JOB_COMPLETION_INDEX", "-1"),
        ("GANBERT_WAIT_SECONDS", "5m"),
    ],
)
def test_a_variable_that_is_no_number_is_a_mistake(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    line = refused(run(SCRIPT, tmp_path, tmp_path / "out", **GOOD | {name: value}))
    assert line.startswith(f"ganbert: error: {name}: ")
    assert f"'{value}'" in line


def test_without_its_words_it_says_which(tmp_path: Path) -> None:
    assert "BIDS and OUT" in refused(run(SCRIPT, tmp_path, **GOOD))
