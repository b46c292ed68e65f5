"""Ranks that must leave together: two processes, one of which finds a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from ganbert.errors import EXIT_USER_ERROR

SAID = "here: expected numbers, found none; mend them"
LEFT = f"left with {EXIT_USER_ERROR}"
RANK = """
import sys
import torch
import torch.distributed as dist
from ganbert.errors import GanbertError
from ganbert.ranks import require

rank, wrong, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
mistake = GanbertError("here", expected="numbers", found="none", remedy="mend them")
try:
    require(torch.tensor(rank != wrong), lambda: mistake)
    print("went on")
except GanbertError as error:
    print(error)
except SystemExit as left:
    print("left with", left.code)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("wrong", "outcomes"),
    [(-1, ["went on", "went on"]), (0, [SAID, LEFT]), (1, [LEFT, SAID])],
)
def test_one_rank_is_wrong_and_both_leave(wrong: int, outcomes: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(wrong), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == outcomes
