"""Rules for frames: weights and times that can be computed by hand, and what each rule refuses."""

import numpy as np
import pytest

from ganbert.data.frames import FRAME_RULES, choose_frames
from ganbert.errors import DatasetError

STARTS = (0.0, 60.0, 180.0, 300.0)
DURATIONS = (60.0, 120.0, 120.0, 300.0)


@pytest.mark.parametrize(
    ("rule", "weights", "starts", "durations"),
    [
        ("first", ((1, 0, 0, 0), (0, 1, 0, 0)), (0, 60), (60, 120)),
        ("last", ((0, 0, 1, 0), (0, 0, 0, 1)), (180, 300), (120, 300)),
        # 60 + 120 + 120 = 300: the best cut is after the third.
        ("halves", ((0.2, 0.4, 0.4, 0), (0, 0, 0, 1)), (0, 300), (300, 300)),
    ],
)
def test_four_frames_become_two(rule: str, weights: tuple, starts: tuple, durations: tuple) -> None:
    choice = choose_frames("pet", rule, STARTS, DURATIONS)
    np.testing.assert_allclose(choice.weights, weights)
    assert choice.start_s == starts
    assert choice.duration_s == durations


def test_three_equal_frames_are_cut_at_the_first_of_two_equal_places() -> None:
    choice = choose_frames("pet", "halves", (0, 5, 10), (5, 5, 5))
    assert choice.weights == ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5))
    assert (choice.start_s, choice.duration_s) == ((0, 5), (5, 10))


def test_a_pause_between_frames_does_not_count() -> None:
    choice = choose_frames("pet", "halves", (0, 100, 200, 300), (10, 10, 10, 10))
    assert (choice.start_s, choice.duration_s) == ((0, 200), (20, 20))


def test_rounded_times_are_no_overlap() -> None:
    choice = choose_frames("pet", "as-is", (0, 299.5), (300, 300))
    assert choice.duration_s == (300, 300)


@pytest.mark.parametrize("rule", FRAME_RULES)
def test_two_frames_stay_whatever_the_rule(rule: str) -> None:
    choice = choose_frames("pet", rule, (1800, 2400), (600, 300))
    assert choice.weights == ((1.0, 0.0), (0.0, 1.0))
    assert (choice.start_s, choice.duration_s) == ((1800, 2400), (600, 300))


def test_a_single_frame_is_repeated_where_that_is_asked_for() -> None:
    choice = choose_frames("pet", "repeat", (3000,), (1200,))
    assert choice.weights == ((1.0,), (1.0,))
    assert (choice.start_s, choice.duration_s) == ((3000, 3000), (1200, 1200))


@pytest.mark.parametrize("rule", [rule for rule in FRAME_RULES if rule != "repeat"])
def test_a_single_frame_is_refused_with_the_option_that_allows_it(rule: str) -> None:
    with pytest.raises(DatasetError, match=r"pet: .*found a single frame; use --frames repeat"):
        choose_frames("pet", rule, (3000,), (1200,))


@pytest.mark.parametrize("rule", ["as-is", "repeat"])
def test_several_frames_need_a_rule(rule: str) -> None:
    with pytest.raises(DatasetError, match="found 4; use --frames first, last or halves"):
        choose_frames("pet", rule, STARTS, DURATIONS)


@pytest.mark.parametrize(
    ("starts", "durations", "found"),
    [
        ((0, 0), (1, 1), "one at 0 s after one at 0 s"),
        ((5, 1), (1, 1), "one at 1 s after one at 5 s"),
        ((0, 1), (1, 0), "found 1, 0"),
        ((0, 300), (302, 300), "ends before the next one at 300 s, found one that lasts 302 s"),
        ((), (), "found none"),
    ],
)
def test_times_without_sense(starts: tuple, durations: tuple, found: str) -> None:
    with pytest.raises(DatasetError, match=found):
        choose_frames("pet", "halves", starts, durations)
