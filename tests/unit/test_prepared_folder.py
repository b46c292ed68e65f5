"""`split.tsv`: read as a person may have written it, or not at all."""

from pathlib import Path

import pytest

from ganbert.errors import DatasetError
from ganbert.prepared_folder import read_split, write_split


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    sides = {"02": "test", "01": "train", "3": "val"}
    write_split(tmp_path, sides)
    assert read_split(tmp_path) == sides
    text = "participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\nsub-3\tval\n"
    assert (tmp_path / "split.tsv").read_text() == text


def test_a_table_of_persons_will_do(tmp_path: Path) -> None:
    """Other columns, other line ends, labels as the archive has them, and some without a side."""
    file = tmp_path / "participants.tsv"
    lines = ("age\tsplit\tparticipant_id", "70\tDev\t002_S_0413", "71\tn/a\tsub-02", "x\ttrain\t3")
    file.write_bytes("\r\n".join(lines).encode())
    assert read_split(file) == {"002S0413": "val", "3": "train"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"split\.tsv: expected a table with columns participant_id and split, found no line"),
        ("participant_id\tfold\nsub-01\ttest\n", "columns participant_id and split, found others"),
        ("participant_id\tsplit\nsub-01\ttrain\nsub-0", r"split\.tsv:3: .* found half a line"),
        ("participant_id\tsplit\nsub-01\ttra", r"split\.tsv:2: expected train, val or test"),
        ("participant_id\tsplit\n01\ttest\nsub-01\tval\n", "for sub-01, found test and val"),
        (b"\xff\xfe", "columns participant_id and split, found something else"),
    ],
)
def test_a_torn_or_contradictory_split_is_one_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "split.tsv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_split(file)
    assert "\n" not in str(caught.value)
