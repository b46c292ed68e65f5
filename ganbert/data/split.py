"""The split: each subject, with all its sessions and tracers, on one side of it.

A subject's stratum is the set of its tracers and its diagnosis, where one is known. How many
subjects of a stratum go to each side is a table of whole numbers, strata by sides, whose sums are
given: rows add up to the strata, columns to the totals of the cohort. Shares are fractions. There
is always a table in which each number is its share rounded up or down (Bacharach, Management Sci
1966; Cox, JASA 1987: controlled rounding), and `side_counts` finds the one that is nearest to the
shares. Within a stratum, a hash of (seed, label) decides.

Stable: a subject whose side is known keeps it, and new ones go where their stratum and the cohort
lack most. A threshold on the hash would need no memory, but gives a cohort of ten an empty test set
now and then, and holds no stratum to its share.

A diagnosis is used here, and written nowhere.
"""

import hashlib
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from ganbert.data.index import Row, Split
from ganbert.data.volume import Pair
from ganbert.errors import DatasetError

SIDES: tuple[Split, ...] = ("train", "val", "test")
SPLIT_FRACTIONS = (0.7, 0.1, 0.2)
Stratum = tuple[tuple[str, ...], str]  # tracers, diagnosis ("": not known)
Counts = list[int]  # subjects in train, val and test
_WORDS: dict[str, Split] = {
    **{side: side for side in SIDES},
    **dict.fromkeys(("validation", "valid", "dev"), "val"),
}
_UNKNOWN = ("", "n/a", "na", "nan")
_MAX_NAMED = 3


def known_value(text: str | None) -> str | None:
    """Return the value of a cell without blanks around it; None where it says that it has none."""
    value = (text or "").strip()
    return None if value.lower() in _UNKNOWN else value


def parse_side(where: object, text: str) -> Split:
    """Read a side of the split: train, test, or val (validation, valid, dev); in either case.

    Raises
    ------
    DatasetError
        If it is anything else, which is not repeated: another column may hold anything.
    """
    side = _WORDS.get(text.strip().lower())
    if side is None:
        expected, remedy = "train, val or test as side of the split", "mend it, or write n/a"
        raise DatasetError(where, expected=expected, found="something else", remedy=remedy)
    return side


def put_side(
    sides: MutableMapping[str, Split],
    subject: str,
    side: Split,
    where: object,
    remedy: str = "decide for one",
) -> None:
    """Enter the side of a subject.

    Raises
    ------
    DatasetError
        If it has another one already.
    """
    first = sides.setdefault(subject, side)
    if first != side:
        expected = f"one side of the split for sub-{subject}"
        found = f"{first} and {side}"
        raise DatasetError(where, expected=expected, found=found, remedy=remedy)


def check_can_train(where: object, sides: Iterable[Split]) -> None:
    """Raise if nobody is left to train on.

    Raises
    ------
    DatasetError
        If no side is train.
    """
    if "train" not in sides:
        remedy = "put subjects in train, or prepare others in another folder"
        raise DatasetError(where, expected="a subject in train", found="none", remedy=remedy)


def find_strata(
    tracers: Iterable[tuple[str, str]], pairs: Iterable[Pair] = ()
) -> dict[str, Stratum]:
    """Return the stratum of each subject.

    Parameters
    ----------
    tracers : (subject, tracer) of each row
    pairs : sorted by session; a subject's diagnosis is the first that is known
    """
    tracers_of: dict[str, set[str]] = {}
    for subject, tracer in tracers:
        tracers_of.setdefault(subject, set()).add(tracer)
    diagnoses: dict[str, str] = {}
    for pair in pairs:
        if pair.diagnosis:
            diagnoses.setdefault(pair.subject, pair.diagnosis.casefold())
    return {
        subject: (tuple(sorted(found)), diagnoses.get(subject, ""))
        for subject, found in tracers_of.items()
    }


def split_subjects(
    strata: Mapping[str, Stratum],
    seed: int,
    fractions: tuple[float, float, float] = SPLIT_FRACTIONS,
    known: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Return the side of each subject.

    Without known ones the totals are exact (`side_totals`), and each side of each stratum is less
    than 1 subject from its share.

    Parameters
    ----------
    strata : of all subjects
    known : sides that were decided before, of these and of other subjects
    """
    sides = {name: side for name, side in (known or {}).items() if name in strata}
    members: dict[Stratum, list[str]] = {}
    for subject in sorted(strata, key=lambda subject: _hash(seed, subject)):
        members.setdefault(strata[subject], []).append(subject)
    # Ties between strata fall in this order: not always to the first by name.
    groups = [members[stratum] for stratum in sorted(members, key=lambda key: _hash(seed, key))]
    counts = side_counts(
        side_totals(len(strata), fractions),
        [sum(subject not in sides for subject in group) for group in groups],
        [
            [sum(sides.get(subject) == side for subject in group) for side in SIDES]
            for group in groups
        ],
    )
    for group, (_, num_val, num_test) in zip(groups, counts, strict=True):
        new = [subject for subject in group if subject not in sides]
        sides |= dict.fromkeys(new, "train")
        sides |= dict.fromkeys(new[:num_test], "test")
        sides |= dict.fromkeys(new[num_test : num_test + num_val], "val")
    return sides


def _hash(seed: int, key: str | Stratum) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def side_totals(num_subjects: int, fractions: tuple[float, float, float]) -> Counts:
    """Return how many subjects of a cohort are in train, val and test.

    The fractions, rounded; from three subjects on at least one each. With one or two, and whatever
    the fractions, there is something to train on.
    """
    num_val, num_test = (round(fraction * num_subjects) for fraction in fractions[1:])
    if num_subjects >= 3:
        num_val, num_test = max(num_val, 1), max(num_test, 1)
    num_test = min(num_test, max(num_subjects - 1, 0))
    num_val = min(num_val, max(num_subjects - num_test - 1, 0))
    return [num_subjects - num_val - num_test, num_val, num_test]


def side_counts(totals: Counts, new: Sequence[int], known: Sequence[Counts]) -> list[Counts]:
    """Return how many of each stratum's new subjects go to each side.

    A share is the stratum's part of a total. Of all tables whose columns fill the totals, as far as
    the known subjects let them, the one is taken whose numbers reach least beyond a distance below
    1 from their shares (not at all, if nobody is known), and then the one with the least sum of
    squared distances. It is found as the cheapest flow: each stratum first takes what is best for
    itself, then single subjects change sides where that costs least (Ahuja, Magnanti, Orlin:
    Network Flows, 1993, chapter 14). Whole numbers only, so that it is the same on every machine.

    Parameters
    ----------
    totals : of the cohort, new and known subjects together
    new : number of new subjects of each stratum
    known : of each stratum, on each side
    """
    num = sum(totals)
    sizes = [count + sum(row) for count, row in zip(new, known, strict=True)]
    # More than all squares of a table without a number 1 or more from its share.
    heavy = len(SIDES) * len(new) * num * num + 1

    def gap(row: int, side: int, count: int) -> int:
        """What the share is above the number, in units of 1 / num."""
        return totals[side] * sizes[row] - num * (known[row][side] + count)

    def cost(row: int, side: int, count: int) -> int:
        distance = abs(gap(row, side, count))
        return distance * distance + heavy * max(0, distance - num + 1)

    def change(row: int, source: int, target: int) -> int:
        """What it costs to move one subject of a stratum."""
        here, there = counts[row][source], counts[row][target]
        before = cost(row, source, here) + cost(row, target, there)
        return cost(row, source, here - 1) + cost(row, target, there + 1) - before

    sides = range(len(SIDES))
    taken = [sum(row[side] for row in known) for side in sides]
    wanted = _pour(sum(new), [totals[side] - taken[side] for side in sides], 1)
    counts = [
        _pour(count, [gap(row, side, 0) for side in sides], num) for row, count in enumerate(new)
    ]
    while any(over := [sum(row[side] for row in counts) - wanted[side] for side in sides]):
        # Of strata in the same state, the first stands for all.
        alike = {(sizes[row], *known[row], *counts[row]): row for row in reversed(range(len(new)))}
        moves = {
            (a, b): min((change(row, a, b), row) for row in movable)
            for a in sides
            for b in sides
            if a != b and (movable := [row for row in alike.values() if counts[row][a]])
        }
        ways = [
            [(a, b), (b, c)] if b != c else [(a, c)]
            for a in sides
            for c in sides
            for b in sides
            if over[a] > 0 > over[c] and a != b
        ]
        possible = [way for way in ways if all(step in moves for step in way)]
        for a, b in min(possible, key=lambda way: sum(moves[step][0] for step in way)):
            row = moves[a, b][1]
            counts[row][a] -= 1
            counts[row][b] += 1
    return counts


def _pour(units: int, gaps: list[int], size: int) -> Counts:
    """Give units out one by one, each to the largest gap, which it makes smaller by `size`."""
    counts = [0] * len(gaps)
    for _ in range(units):
        # Of equal gaps the last: a test set is missed more than a validation set.
        side = max(range(len(gaps)), key=lambda side: (gaps[side], side))
        counts[side] += 1
        gaps[side] -= size
    return counts


def describe_split(
    sides: Mapping[str, Split], strata: Mapping[str, Stratum], *, num_known: int, column: str | None
) -> str:
    """Say in one line how many subjects are on each side, and why."""
    numbers = "/".join(str(sum(side == each for each in sides.values())) for side in SIDES)
    text = f"split {numbers} subjects ({'/'.join(SIDES)})"
    if column is not None:
        return f"{text}, as column {column!r} says"
    kinds = set(strata.values())
    by = ["tracer"] if len({tracers for tracers, _ in kinds}) > 1 else []
    by += ["diagnosis"] if len({diagnosis for _, diagnosis in kinds}) > 1 else []
    if by:
        text += f", stratified by {' and '.join(by)} ({len(kinds)} strata)"
    return f"{text}; sides kept from before: {num_known}" if num_known else text


def describe_gaps(sides: Mapping[str, Split], strata: Mapping[str, Stratum]) -> str | None:
    """Say in one line which tracers have nobody on a side; None if all have somebody on each."""
    there: dict[str, set[Split]] = {}
    for subject, (tracers, _) in strata.items():
        for tracer in tracers:
            there.setdefault(tracer, set()).add(sides[subject])
    gaps = [
        f"{tracer} has no subject in {' and none in '.join(missing)}"
        for tracer in sorted(there)
        if (missing := [side for side in SIDES if side not in there[tracer]])
    ]
    if not gaps:
        return None
    return f"warning: {'; '.join(gaps)}: add subjects, or give the split (--split-column)"


def describe_doubles(rows: Iterable[Row]) -> str | None:
    """Say in one line which subjects share an image; None if nobody does.

    A person who is listed twice is on two sides of the split half of the time, and no label says
    so: what is held out from training was then trained on. The cached images are compared, by their
    checksums.
    """
    owners: dict[str, dict[str, Split]] = {}
    for row in rows:
        for image in (row.mri, row.pet):
            owners.setdefault(image.sha256, {})[row.subject] = row.split
    shared = {tuple(sorted(sides.items())) for sides in owners.values() if len(sides) > 1}
    if not shared:
        return None
    # Those that spoil a test first.
    ordered = sorted(shared, key=lambda group: (len({side for _, side in group}) == 1, group))
    first = ", ".join(f"sub-{subject} ({side})" for subject, side in ordered[0][:_MAX_NAMED])
    more = f", and {len(ordered) - 1} more such groups" if len(ordered) > 1 else ""
    return (
        f"warning: one image is that of several subjects: {first}{more}; if they are one person, "
        "give all images one label, or figures of the test are too good"
    )
