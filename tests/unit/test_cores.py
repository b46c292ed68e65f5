"""The ranks of a node share its cores."""

import os

import pytest

from ganbert.cores import passive_waiting, share_of_cores


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "share"),
    [(8, "1", 8), (8, "2", 4), (8, "3", 2), (2, "4", 1), (80, "8", 10), (6, None, 6)],
)
def test_each_rank_has_its_share_and_at_least_one(
    num_cores: int, num_ranks: str | None, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    if num_ranks is not None:
        monkeypatch.setenv("LOCAL_SIZE", num_ranks)
    assert share_of_cores() == share


def test_threads_sleep_while_they_wait_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert passive_waiting() == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert passive_waiting() == {"OMP_WAIT_POLICY": "ACTIVE"}
