"""The subject-level split: exact sizes, each stratum at its share, nobody on two sides, stable."""

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.data.split import (
    SIDES,
    SPLIT_FRACTIONS,
    Counts,
    Stratum,
    check_can_train,
    describe_gaps,
    describe_split,
    find_strata,
    parse_side,
    put_side,
    side_counts,
    side_totals,
    split_subjects,
)
from ganbert.data.volume import Pair
from ganbert.errors import DatasetError

ONE: Stratum = (("AV45",), "")
subjects = st.text("abc0123", min_size=1, max_size=4)
# (subject, session, tracer) of each row, and the diagnosis that its line states.
cohorts = st.dictionaries(
    st.tuples(subjects, st.sampled_from(["", "M00", "M12"]), st.sampled_from(["AV45", "FDG"])),
    st.sampled_from([None, "CN", "AD", "ad"]),
    min_size=1,
    max_size=60,
)
fractions = st.sampled_from(
    [SPLIT_FRACTIONS, (0.5, 0.25, 0.25), (0.9, 0.0, 0.1), (0.34, 0.33, 0.33)]
)


def numbered(num: int) -> list[str]:
    return [f"{number:03d}" for number in range(1, num + 1)]


def of_one_kind(num: int) -> dict[str, Stratum]:
    return dict.fromkeys(numbered(num), ONE)


def make_pair(subject: str, session: str, tracer: str, diagnosis: str | None) -> Pair:
    frames = ((0.0, 300.0), (300.0, 300.0))
    return Pair(
        subject, session or None, tracer, "mri", "pet", "SUVR", *frames, diagnosis=diagnosis
    )


def strata_of(cohort: dict[tuple[str, str, str], str | None]) -> dict[str, Stratum]:
    pairs = [make_pair(*key, cohort[key]) for key in sorted(cohort)]
    return find_strata(((subject, tracer) for subject, _, tracer in cohort), pairs)


@pytest.mark.parametrize(
    ("num_subjects", "train", "val", "test"),
    [(1, 1, 0, 0), (2, 2, 0, 0), (3, 1, 1, 1), (4, 2, 1, 1), (10, 7, 1, 2), (32, 23, 3, 6)],
)
def test_sizes(num_subjects: int, train: int, val: int, test: int) -> None:
    sizes = Counter(split_subjects(of_one_kind(num_subjects), seed=0).values())
    assert (sizes["train"], sizes["val"], sizes["test"]) == (train, val, test)


@pytest.mark.parametrize(
    ("num_subjects", "seed", "val", "test"),
    [
        (3, 0, "003", "001"),
        (10, 0, "008", "005 007"),
        (10, 7, "004", "001 002"),
        (25, 1, "001 019", "004 012 014 017 025"),
        (32, 0, "007 008 021", "005 011 016 023 024 031"),
        (32, 7, "004 011 025", "001 002 012 014 018 030"),
    ],
)
def test_one_stratum_is_split_as_before_there_were_strata(
    num_subjects: int, seed: int, val: str, test: str
) -> None:
    """Published numbers were made so: by a hash of the label, the first to test, then val."""
    sides = split_subjects(of_one_kind(num_subjects), seed)
    found = {side: sorted(name for name in sides if sides[name] == side) for side in SIDES}
    assert (" ".join(found["val"]), " ".join(found["test"])) == (val, test)


@given(cohorts, st.integers(0, 100), fractions)
def test_no_subject_is_on_two_sides(
    cohort: dict[tuple[str, str, str], str | None], seed: int, parts: tuple[float, float, float]
) -> None:
    sides = split_subjects(strata_of(cohort), seed, parts)
    names = {subject for subject, _, _ in cohort}
    of_rows = {(subject, sides[subject]) for subject, _, _ in cohort}
    assert len(of_rows) == len(names) == len(sides)
    sizes = Counter(sides.values())
    assert [sizes[side] for side in SIDES] == side_totals(len(names), parts)
    assert "train" in sides.values()
    reverse = dict(reversed(cohort.items()))
    assert split_subjects(strata_of(reverse), seed, parts) == sides


@given(cohorts, st.integers(0, 100), fractions)
def test_each_side_of_each_stratum_is_within_one_of_its_share(
    cohort: dict[tuple[str, str, str], str | None], seed: int, parts: tuple[float, float, float]
) -> None:
    strata = strata_of(cohort)
    sides = split_subjects(strata, seed, parts)
    totals = side_totals(len(strata), parts)
    for stratum, size in Counter(strata.values()).items():
        for side, total in zip(SIDES, totals, strict=True):
            number = sum(sides[name] == side for name in strata if strata[name] == stratum)
            assert abs(number - Fraction(total * size, len(strata))) < 1


@given(cohorts, st.data())
def test_adding_subjects_sessions_and_tracers_moves_nobody(
    cohort: dict[tuple[str, str, str], str | None], data: st.DataObject
) -> None:
    first = data.draw(st.sets(st.sampled_from(sorted(cohort)), min_size=1))
    before = split_subjects(strata_of({key: cohort[key] for key in first}), 0)
    strata = strata_of(cohort)
    after = split_subjects(strata, 0, known=before)
    assert {name: after[name] for name in before} == before
    # The new ones make the totals those of the whole cohort, as far as they can.
    sizes, known = Counter(after.values()), Counter(before.values())
    totals = dict(zip(SIDES, side_totals(len(strata), SPLIT_FRACTIONS), strict=True))
    if all(known[side] <= totals[side] for side in SIDES):
        assert sizes == {side: total for side, total in totals.items() if total}


def test_new_subjects_fill_what_their_stratum_lacks() -> None:
    healthy = {f"h{number}": (("FDG",), "cn") for number in range(20)}
    before = split_subjects(healthy, 0)
    ill = {f"i{number}": (("FDG",), "ad") for number in range(10)}
    after = split_subjects(healthy | ill, 0, known=before)
    assert Counter(after[name] for name in ill) == {"train": 7, "val": 1, "test": 2}
    # Where all were in train, the next ones are not.
    given_sides = dict.fromkeys(numbered(7), "train")
    after = split_subjects(of_one_kind(10), 0, known=given_sides)
    assert Counter(after[name] for name in numbered(10)[7:]) == {"val": 1, "test": 2}


def test_a_subject_that_is_not_there_keeps_no_place() -> None:
    sides = split_subjects(of_one_kind(10), 0, known={"gone": "test", "001": "val"})
    assert set(sides) == set(numbered(10))
    assert Counter(sides.values()) == {"train": 7, "val": 1, "test": 2}
    assert sides["001"] == "val"


def test_the_seed_changes_the_split() -> None:
    strata = of_one_kind(40)
    assert split_subjects(strata, 0) != split_subjects(strata, 1)
    # Whose share is rounded up is drawn, too: else the first stratum by name would always gain.
    single = {name: ((f"T{name}",), "") for name in numbered(10)}
    tested = {
        name for seed in range(8) for name, s in split_subjects(single, seed).items() if s == "test"
    }
    assert len(tested) > 4


small = st.integers(0, 2)
rows = st.lists(
    st.tuples(st.integers(0, 3), st.tuples(small, small, small)), min_size=1, max_size=3
)


@given(rows, fractions)
def test_no_other_table_is_nearer_to_the_shares(
    rows: list[tuple[int, tuple[int, int, int]]], parts: tuple[float, float, float]
) -> None:
    new, known = [count for count, _ in rows], [list(row) for _, row in rows]
    num = sum(new) + sum(map(sum, known))
    totals = side_totals(num, parts)
    found = side_counts(totals, new, known)
    assert [sum(row) for row in found] == new

    def cost(table: list[Counts]) -> tuple[int, int]:
        distances = [
            abs(totals[side] * (count + sum(before)) - num * (row[side] + before[side]))
            for count, before, row in zip(new, known, table, strict=True)
            for side in range(3)
        ]
        return sum(max(0, d - num + 1) for d in distances), sum(d * d for d in distances)

    def ways(units: int) -> list[Counts]:
        every = itertools.product(range(units + 1), repeat=3)
        return [list(way) for way in every if sum(way) == units]

    columns = [sum(column) for column in zip(*found, strict=True)]
    others = (
        list(table)
        for table in itertools.product(*(ways(count) for count in new))
        if [sum(column) for column in zip(*table, strict=True)] == columns
    )
    assert cost(found) == min(map(cost, others))


def test_a_stratum_is_tracers_and_the_first_known_diagnosis() -> None:
    cohort = {
        ("01", "M00", "FDG"): None,
        ("01", "M12", "AV45"): "CN",
        ("01", "M24", "AV45"): "MCI",
        ("02", "M00", "AV45"): "cn",
        ("02", "M00", "FDG"): "AD",
        ("03", "", "FDG"): None,
    }
    both = ("AV45", "FDG")
    assert strata_of(cohort) == {"01": (both, "cn"), "02": (both, "cn"), "03": (("FDG",), "")}


@pytest.mark.parametrize(
    ("word", "side"),
    [
        ("train", "train"),
        (" Test ", "test"),
        ("val", "val"),
        ("validation", "val"),
        ("VALID", "val"),
        ("dev", "val"),
    ],
)
def test_words_for_sides(word: str, side: str) -> None:
    assert parse_side("here", word) == side


def test_another_word_is_named_by_its_place_and_not_repeated() -> None:
    with pytest.raises(DatasetError, match=r"t\.tsv:3: expected train, val or test") as caught:
        parse_side("t.tsv:3", "Jane Doe")
    assert "Jane" not in str(caught.value)


def test_a_second_side_is_an_error() -> None:
    sides = {"01": "train"}
    put_side(sides, "01", "train", "here")
    put_side(sides, "02", "val", "here")
    assert sides == {"01": "train", "02": "val"}
    with pytest.raises(DatasetError, match=r"there: .* for sub-01, found train and test"):
        put_side(sides, "01", "test", "there")


def test_somebody_must_be_trained_on() -> None:
    check_can_train("here", ["val", "train"])
    with pytest.raises(DatasetError, match="here: expected a subject in train, found none"):
        check_can_train("here", ["val", "test"])


@pytest.mark.parametrize(
    ("strata", "said"),
    [
        ([ONE, ONE, ONE], "split 1/1/1 subjects (train/val/test)"),
        ([ONE, (("FDG",), ""), ONE], "stratified by tracer (2 strata)"),
        ([(("FDG",), "secret"), (("FDG",), ""), ONE], "by tracer and diagnosis (3 strata)"),
        ([(("FDG",), "secret"), (("FDG",), "b"), (("FDG",), "b")], "by diagnosis (2 strata)"),
    ],
)
def test_what_is_said_of_a_split(strata: list[Stratum], said: str) -> None:
    by_name = dict(zip(numbered(3), strata, strict=True))
    sides = dict(zip(numbered(3), SIDES, strict=True))
    line = describe_split(sides, by_name, num_known=0, column=None)
    assert line.endswith(said)
    assert "secret" not in line
    known = describe_split(sides, by_name, num_known=2, column=None)
    assert known == f"{line}; sides kept from before: 2"
    given_by = describe_split(sides, by_name, num_known=3, column="fold")
    assert given_by == "split 1/1/1 subjects (train/val/test), as column 'fold' says"


def test_tracers_with_nobody_on_a_side_are_said_in_one_line() -> None:
    both, fdg, tau = (("AV45", "FDG"), "b"), (("FDG",), "secret"), (("AV1451",), "")
    sides = dict(zip(numbered(5), ("train", "val", "test", "train", "train"), strict=True))
    strata = dict(zip(numbered(5), (both, fdg, both, tau, fdg), strict=True))
    assert describe_gaps(sides, strata) == (
        "warning: AV1451 has no subject in val and none in test; AV45 has no subject in val: "
        "add subjects, or give the split (--split-column)"
    )
    whole = dict.fromkeys(strata, both)
    assert describe_gaps(sides, whole) is None
