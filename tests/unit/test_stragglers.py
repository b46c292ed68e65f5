"""A rank that keeps the others waiting is named once, and once more when it no longer does."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganbert.stragglers import OwnTime, StragglerWatch, slowest

EVEN, THIRD_SLOW = (0.4, 0.4, 0.4), (0.4, 0.4, 0.8)


def lines(watch: StragglerWatch, *steps: tuple[tuple[float, ...], int]) -> list[str]:
    said = [watch.see(own) for own, times in steps for _ in range(times)]
    return [line for line in said if line is not None]


def watch(num: int = 3) -> StragglerWatch:
    return StragglerWatch([f"node{k}" for k in range(num)], ratio=1.5)


def test_straggler_is_named_with_its_host_after_twenty_steps_and_once() -> None:
    assert lines(watch(), (THIRD_SLOW, 19)) == []
    (line,) = lines(watch(), (THIRD_SLOW, 500))
    assert "rank 2 on node2 needs 0.80 s of its own a step, 2.0 times" in line


def test_one_slow_step_is_none() -> None:
    assert lines(watch(), *[(THIRD_SLOW, 10), (EVEN, 1)] * 20) == []


def test_its_recovery_is_told_too() -> None:
    first, second = lines(watch(), (THIRD_SLOW, 20), (EVEN, 19), (EVEN, 1), (EVEN, 100))
    assert first.startswith("straggler: rank 2")
    assert second == "rank 2 on node2 keeps up again"


def test_another_straggler_is_named_in_its_place() -> None:
    first, second = lines(watch(), (THIRD_SLOW, 30), ((0.8, 0.4, 0.4), 30))
    assert "rank 2" in first
    assert "rank 0" in second


def test_two_ranks_are_compared_with_each_other() -> None:
    assert slowest((0.2, 0.5)) == (1, 2.5)


@pytest.mark.parametrize("own", [(0.4,), (0.0001, 0.009)], ids=["alone", "noise of the clock"])
def test_there_is_no_straggler_among(own: tuple[float, ...]) -> None:
    assert slowest(own)[1] == 1.0
    assert lines(watch(), (own, 100)) == []


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=64), st.floats(0, 1e3))
def test_the_slowest_is_never_below_the_others_median(own: list[float], more: float) -> None:
    rank, ratio = slowest(own)
    assert own[rank] == max(own)
    assert ratio >= 1.0 or max(own) < 0.01
    slower = [*own]
    slower[rank] += more
    assert slowest(slower)[1] >= ratio


def test_own_time_is_what_lies_inside_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    own = OwnTime(torch.device("cpu"))
    for _ in range(2):
        with own.running():
            now += 2
        now += 50
    assert own.take() == 4.0
    assert own.take() == 0.0
