"""From the frames of a PET to the two that the networks see, by a rule that the user names.

A rule says which frames of the source become the first frame of the result and which the second;
several become one by their average, weighted by their durations, which is what one frame over all
of that time would have measured.

    as-is    two frames, and they stay
    first    the first two of several
    last     the last two of several
    halves   the average of the earlier and of the later ones, cut where both last most alike
    repeat   a single frame, twice; two frames stay
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ganbert.config import NUM_FRAMES
from ganbert.errors import DatasetError

Groups = tuple[tuple[int, ...], tuple[int, ...]]

AS_IS = "as-is"
# Scanners and converters round starts and durations, each for itself.
_ROUNDING_S = 1.0


@dataclass(frozen=True)
class FrameChoice:
    """Two frames made from those of a PET.

    Attributes
    ----------
    weights : (2, N); each row sums to 1
    start_s : of the first source frame in each, s after injection
    duration_s : of all source frames in each together; a pause between them does not count
    """

    weights: tuple[tuple[float, ...], ...]
    start_s: tuple[float, ...]
    duration_s: tuple[float, ...]


def _as_is(durations: Sequence[float]) -> Groups | None:
    return ((0,), (1,)) if len(durations) == NUM_FRAMES else None


def _first(durations: Sequence[float]) -> Groups | None:
    return ((0,), (1,)) if len(durations) >= NUM_FRAMES else None


def _last(durations: Sequence[float]) -> Groups | None:
    num = len(durations)
    return ((num - 2,), (num - 1,)) if num >= NUM_FRAMES else None


def _halves(durations: Sequence[float]) -> Groups | None:
    num = len(durations)
    if num < NUM_FRAMES:
        return None
    # The first of several equally good cuts, so that the result does not depend on rounding order.
    cut = min(range(1, num), key=lambda at: abs(sum(durations[:at]) - sum(durations[at:])))
    return tuple(range(cut)), tuple(range(cut, num))


def _repeat(durations: Sequence[float]) -> Groups | None:
    return ((0,), (0,)) if len(durations) == 1 else _as_is(durations)


# The groups of source frames behind each frame of the result; None: the rule does not fit them.
FRAME_RULES: dict[str, Callable[[Sequence[float]], Groups | None]] = {
    AS_IS: _as_is,
    "first": _first,
    "last": _last,
    "halves": _halves,
    "repeat": _repeat,
}


def choose_frames(
    where: str, rule: str, start_s: Sequence[float], duration_s: Sequence[float]
) -> FrameChoice:
    """Apply a rule to the frames of one PET.

    Parameters
    ----------
    where : path of the PET, for the error
    rule : key of `FRAME_RULES`
    start_s, duration_s : of each frame on disk, s after injection

    Raises
    ------
    DatasetError
        If the rule does not fit the number of frames (the message names one that does), they do not
        follow one another, or one has no duration.
    """
    _check_times(where, start_s, duration_s)
    groups = FRAME_RULES[rule](duration_s)
    if groups is None:
        raise _unfit(where, rule, len(duration_s))
    weights = []
    for group in groups:
        total = sum(duration_s[frame] for frame in group)
        weights.append(
            tuple(
                duration / total if frame in group else 0.0
                for frame, duration in enumerate(duration_s)
            )
        )
    return FrameChoice(
        weights=tuple(weights),
        start_s=tuple(start_s[group[0]] for group in groups),
        duration_s=tuple(sum(duration_s[frame] for frame in group) for group in groups),
    )


def _check_times(where: str, start_s: Sequence[float], duration_s: Sequence[float]) -> None:
    remedy = "mend FrameTimesStart and FrameDuration"
    if not duration_s or min(duration_s) <= 0:
        found = ", ".join(f"{duration:g}" for duration in duration_s) or "none"
        expected = "frames that last more than 0 s"
        raise DatasetError(where, expected=expected, found=found, remedy=remedy)
    frames = zip(start_s, duration_s, strict=True)
    for (earlier, duration), (later, _) in itertools.pairwise(frames):
        if later <= earlier:
            raise DatasetError(
                where,
                expected="frames that start one after another",
                found=f"one at {later:g} s after one at {earlier:g} s",
                remedy=remedy,
            )
        # Durations are the weights of averages, and the exponents of decay.
        if earlier + duration > later + _ROUNDING_S:
            raise DatasetError(
                where,
                expected=f"a frame at {earlier:g} s that ends before the next one at {later:g} s",
                found=f"one that lasts {duration:g} s",
                remedy=remedy,
            )


def _unfit(where: str, rule: str, num: int) -> DatasetError:
    remedy = "use --frames first, last or halves"
    if num < NUM_FRAMES:
        remedy = "use --frames repeat to take it for both, or give a dynamic PET"
    expected = f"{NUM_FRAMES} frames"
    if rule in ("first", "last", "halves"):
        expected = f"at least {NUM_FRAMES} frames for --frames {rule}"
    return DatasetError(
        where, expected=expected, found="a single frame" if num == 1 else str(num), remedy=remedy
    )
