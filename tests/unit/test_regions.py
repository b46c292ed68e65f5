"""Names of regions: what a table says, and what is refused."""

from pathlib import Path

import pytest

from ganbert.data.regions import merge_region_names, read_region_names, reference_labels
from ganbert.errors import DatasetError


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_index_and_name_are_read_wherever_they_stand(tmp_path: Path) -> None:
    file = write(tmp_path / "dseg.tsv", "color\tname\tindex\n#ff\tpons\t5\n#00\tn/a\t7\n#01\t\t8\n")
    assert read_region_names(file) == {5: "pons"}


def test_a_short_line_has_no_name(tmp_path: Path) -> None:
    file = write(tmp_path / "dseg.tsv", "index\tname\n1\tpons\n2")
    assert read_region_names(file) == {1: "pons"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns index and name, found no line"),
        ("index\tname\n", "columns index and name, found no line"),
        ("index\tlabel\n1\tpons\n", "found none called name"),
        ("index,name\n1,pons\n", "found none called index or name"),
        ("index\tname\n1\tpons\n1.5\tx\n", "from 0 on as index in line 3, found '1.5'"),
        ("index\tname\n-1\tpons\n", "whole number from 0 on as index in line 2, found '-1'"),
        ("index\tname\n0\tpons\n", "0 to be background in line 2 .*found 'pons'; check that"),
        ("index\tname\n1\tpons\n1\tpons\n", "each index once, found 1 again in line 3"),
    ],
)
def test_a_broken_table_is_one_line_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "sub-01_dseg.tsv", text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_region_names(file)
    assert str(caught.value).startswith(f"{file}: expected ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"index\tname\n1\t\xff\xfe\n")
    for name in ("a.tsv", "none.tsv"):
        with pytest.raises(DatasetError, match=f"{name}: expected a TSV"):
            read_region_names(tmp_path / name)


def test_tables_of_all_subjects_make_one(tmp_path: Path) -> None:
    first = write(tmp_path / "sub-01_dseg.tsv", "index\tname\n9\tthalamus\n5\tpons\n")
    second = write(tmp_path / "sub-02_dseg.tsv", "index\tname\n5\tpons\n1\tfrontal\n")
    merged = merge_region_names([first, first, second])
    assert list(merged.items()) == [(1, "frontal"), (5, "pons"), (9, "thalamus")]
    assert merge_region_names([]) == {}


@pytest.mark.parametrize("name", ["Unknown", "background", "BG", "Clear Label", "???", "n/a", ""])
def test_0_is_background_and_no_region(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "dseg.tsv", f"index\tname\n0\t{name}\n5\tpons\n")
    other = write(tmp_path / "other.tsv", "index\tname\n0\tBackground\n")
    assert read_region_names(file) == {5: "pons"}
    assert merge_region_names([other, file]) == {5: "pons"}


def test_a_contradiction_names_both_files(tmp_path: Path) -> None:
    tables = []
    for subject, name in (("01", "frontal"), ("02", "pons"), ("03", "pons")):
        (tmp_path / subject).mkdir()
        tables.append(write(tmp_path / subject / "dseg.tsv", f"index\tname\n5\t{name}\n"))
    odd, *others = tables
    # Wherever the odd one stands, it is the one to mend.
    for files in ([odd, *others], [*others, odd]):
        with pytest.raises(DatasetError) as caught:
            merge_region_names(files)
        assert str(caught.value).startswith(
            f"{odd}: expected 5 to be 'pons', as in {others[0]} and 1 more, found 'frontal'; "
        )
    # One against one: the second contradicts the first.
    with pytest.raises(DatasetError) as caught:
        merge_region_names(tables[:2])
    text = f"{others[0]}: expected 5 to be 'frontal', as in {odd}, found 'pons'; "
    assert str(caught.value).startswith(text)


def test_reference_regions_are_found_by_their_parts() -> None:
    ours = {3: "cerebellar_white_matter", 4: "cerebellar_grey_matter", 5: "pons"}
    assert reference_labels(ours, ["whole cerebellum"]) == (3, 4)
    assert reference_labels(ours, ["Cerebellar Grey-Matter"]) == (4,)
    assert reference_labels(ours, ["pons", "cerebellar grey matter"]) == (4, 5)
    aseg = {
        7: "Left-Cerebellum-White-Matter",
        8: "Left-Cerebellum-Cortex",
        46: "Right-Cerebellum-White-Matter",
        47: "Right-Cerebellum-Cortex",
    }
    assert reference_labels(aseg, ["whole cerebellum"]) == (7, 8, 46, 47)
    assert reference_labels(aseg, ["cerebellar grey matter"]) == (8, 47)
    # Two labels of one name are one region.
    assert reference_labels({1: "pons", 9: "pons"}, ["pons"]) == (1, 9)


def test_a_reference_region_that_is_not_there_says_what_would_do() -> None:
    with pytest.raises(DatasetError, match=r"expected pons, found brainstem; .*--reference-region"):
        reference_labels({1: "brainstem"}, ["pons"])
    with pytest.raises(DatasetError, match=r"cerebellar grey matter \+ cerebellar white matter"):
        reference_labels({4: "cerebellar_grey_matter"}, ["whole cerebellum"])
    with pytest.raises(DatasetError, match="found no table of regions"):
        reference_labels({}, ["pons"])
