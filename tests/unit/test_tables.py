"""TSV as BIDS writes it: no quoting, "n/a" for what is not known."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganbert.tables import read_table, read_tsv, write_tsv

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1)


def test_a_quotation_mark_is_a_character(tmp_path: Path) -> None:
    file = tmp_path / "dseg.tsv"
    file.write_text('index\tname\n1\t"frontal\n2\tinsula"\n')
    assert [line["name"] for line in read_tsv(file)] == ['"frontal', 'insula"']


def test_a_value_without_an_end_is_an_error_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "dseg.tsv"
    file.write_text("index\tname\n1\t" + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match="limit"):
        read_tsv(file)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_read(tmp_path: Path, values: list[tuple[str, str]]) -> None:
    file = tmp_path / "table.tsv"
    lines = [{"first": first, "second": second} for first, second in values]
    write_tsv(file, lines)
    assert read_tsv(file) == lines


def test_separators_within_a_value_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    write_tsv(file, [{"reason": "two\nlines\tand more", "value": math.nan, "share": 0.12345678}])
    assert file.read_text() == "reason\tvalue\tshare\ntwo lines and more\tn/a\t0.123457\n"


@pytest.mark.parametrize("read", [read_tsv, read_table])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, read: Any) -> None:
    file = tmp_path / "participants.tsv"
    file.write_text("participant_id\tweight\tage\t\t\tweight\nsub-01\t70\t60\t\t\t154\n")
    with pytest.raises(ValueError, match="two columns called weight"):
        read(file)
    file.write_text("participant_id\tweight\tage\t\t\tWeight\nsub-01\t70\t60\t\t\t154\n")
    assert read(file)[0]["weight"] == "70"
