"""`prepare` again and again: no subject ever changes sides, whoever decides them."""

import json
import shutil
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ganbert.cli import app
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import Index, load_index
from ganbert.data.pairing import LayoutOptions
from ganbert.errors import ConfigError, DatasetError
from ganbert.inspection import inspect_prepared
from ganbert.prepare import prepare
from ganbert.prepared_folder import read_split
from ganbert.tables import read_tsv
from tests.bids_tree import write_description, write_pet, write_t1w, write_tree

AV45 = {"tracer": "18FAV45", "TracerName": "florbetapir"}


def run(bids: Path, out: Path, **changes: Any) -> tuple[Index, str]:
    """Prepare; return the index and what was said."""
    said = StringIO()
    options: dict[str, Any] = {
        "mri_grid": TINY_MRI_GRID,
        "pet_grid": TINY_PET_GRID,
        "jobs": 1,
        "console": Console(file=said),
    } | changes
    return prepare(bids, out, **options).index, said.getvalue()


def split_line(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("split ")]
    return line


def by_column(name: str, **options: Any) -> dict[str, Any]:
    return {"pairing": LayoutOptions(split_column=name), **options}


def write_cohort(root: Path, numbers: Iterable[int]) -> None:
    """Two sessions each, every other subject with a second tracer; three diagnoses."""
    write_description(root)
    for number in numbers:
        for session in ("M00", "M12"):
            write_t1w(root, f"{number:02d}", session)
            write_pet(root, f"{number:02d}", session)
            if number % 2:
                write_pet(root, f"{number:02d}", session, **AV45)


def write_people(root: Path, heading: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in (heading, *lines))
    (root / "participants.tsv").write_text(text.replace(" ", "\t"))


def sides_of(index: Index) -> dict[str, str]:
    """Return the side of each subject; nobody has two over sessions and tracers."""
    sides = {(row.subject, row.split) for row in index.rows}
    assert len(dict(sides)) == len(sides)
    return dict(sides)


def files_with(text: bytes, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """Six subjects with a T1w and a PET."""
    return write_tree(tmp_path / "bids", 6)


def test_no_subject_changes_sides_when_others_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bids, out = tmp_path / "bids", tmp_path / "out"
    words = ("confidential", "n/a")
    people = [f"sub-{number:02d} {words[number % 3 == 0]}" for number in range(1, 9)]
    write_cohort(bids, range(1, 5))
    write_people(bids, "participant_id Group", *people)
    index, said = run(bids, out)
    before = sides_of(index)
    assert len(index.rows) == 12
    assert split_line(said) == (
        "split 2/1/1 subjects (train/val/test), stratified by tracer and diagnosis (3 strata)"
    )

    write_cohort(bids, range(5, 9))
    index, said = run(bids, out)
    after = sides_of(index)
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    assert sorted(after.values()).count("test") == 2
    assert split_line(said).endswith("; sides kept from before: 4")
    lines = [(line["participant_id"], line["split"]) for line in read_tsv(out / "split.tsv")]
    assert lines == sorted((f"sub-{name}", side) for name, side in after.items())

    # A diagnosis makes strata, and is written and shown nowhere.
    assert not files_with(b"confidential", out)
    capsys.readouterr()
    inspect_prepared(out)
    shown = capsys.readouterr().out
    assert "confidential" not in said + shown


def test_without_a_cache_no_diagnosis_is_written_either(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"
    write_people(bids, "participant_id dx fold", "sub-01 confidential train", "sub-02 n/a Dev")
    run(bids, out, cached=False, **by_column("fold"))
    assert not files_with(b"confidential", out)


def test_an_index_from_before_there_was_a_split_tsv_counts(six: Path, tmp_path: Path) -> None:
    before = sides_of(run(six, tmp_path / "out")[0])
    (tmp_path / "out" / "split.tsv").unlink()
    # Three strata, of which the first run knew nothing.
    write_people(six, "participant_id dx", *(f"sub-{n:02d} {n % 3}" for n in range(1, 7)))
    assert sides_of(run(six, tmp_path / "out")[0]) == before
    assert read_split(tmp_path / "out") == before


def test_another_folder_takes_the_sides_of_a_first_one(six: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "second"
    before = sides_of(run(six, first)[0])
    assert all(read_split(first / name) == before for name in ("", "split.tsv", "index.json"))
    second = write_tree(tmp_path / "more", 7)
    shutil.rmtree(second / "sub-01")
    index, said = run(second, out, split_from=first, seed=5)
    after = sides_of(index)
    assert before | after == after | before
    assert set(after) == {"02", "03", "04", "05", "06", "07"}
    assert split_line(said).endswith("; sides kept from before: 5")
    # What was given is copied: the first folder may go, and sub-01 may come back.
    shutil.rmtree(first)
    write_tree(second, 8)
    last = sides_of(run(second, out, seed=5)[0])
    assert last | before | after == last


def test_who_was_refused_gets_a_side_when_mended_and_keeps_an_old_one(
    six: Path, tmp_path: Path
) -> None:
    out, torn = tmp_path / "out", six / "sub-03/anat/sub-03_T1w.nii.gz"
    torn.write_bytes(b"torn")
    first = sides_of(run(six, out)[0])
    assert "03" not in read_split(out)
    write_t1w(six, "03")
    second = sides_of(run(six, out)[0])
    assert second == first | {"03": "train"}  # of 6, one each is for val and test
    torn.write_bytes(b"torn again")
    assert "03" not in sides_of(run(six, out)[0])
    write_t1w(six, "03")
    assert sides_of(run(six, out)[0]) == second


def test_a_column_of_the_participants_decides(six: Path, tmp_path: Path) -> None:
    words = ["Train", "test", "valid", "n/a", "dev"]
    people = [f"sub-{number:02d} {word}" for number, word in enumerate(words, start=1)]
    write_people(six, "participant_id fold", *people)
    out = tmp_path / "out"
    index, said = run(six, out, **by_column("fold"))
    assert sides_of(index) == {"01": "train", "02": "test", "03": "val", "05": "val"}
    assert split_line(said) == "split 1/2/1 subjects (train/val/test), as column 'fold' says"
    report = {line["subject"]: line for line in read_tsv(out / "prepare-report.tsv")}
    for subject in ("04", "06"):  # n/a, and without a line
        assert report[subject]["status"] == "left out"
        assert report[subject]["reason"].startswith("expected a side of the split in column 'fold'")
    # The folder remembers: nobody changes sides by a slip of the pen.
    people[1] = "sub-02 train"
    write_people(six, "participant_id fold", *people)
    with pytest.raises(DatasetError, match=r"split\.tsv: .* for sub-02, found test and train"):
        run(six, out, **by_column("fold"))
    assert sides_of(load_index(out)) == sides_of(index)


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (["sub-01 train", "sub-02 Jane"], r"participants\.tsv:3: expected train, val or test"),
        (["sub-01 train", "sub-01 test"], r"participants\.tsv:3: .* sub-01, found train and test"),
        (["sub-01 test", "sub-02 val"], "column 'fold': expected a subject in train, found none"),
        ([], r"expected a column of .*participants\.tsv \(there is none\), found fold"),
    ],
)
def test_a_column_that_makes_no_split(
    people: list[str], message: str, six: Path, tmp_path: Path
) -> None:
    write_people(six, "participant_id fold", *people)
    with pytest.raises((DatasetError, ConfigError), match=message) as caught:
        run(six, tmp_path / "out", **by_column("fold"))
    assert "\n" not in str(caught.value)
    assert "Jane" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_column_of_a_table_of_pairs(six: Path, tmp_path: Path) -> None:
    def write(*sides: str) -> Path:
        lines = ["subject,session,mri,pet,fold"]
        for number, side in enumerate(sides):
            name = f"sub-{number // 2 + 1:02d}"
            images = f"{name}/anat/{name}_T1w.nii.gz,{name}/pet/{name}_trc-18FFDG_pet.nii.gz"
            lines.append(f"{name},ses-{number % 2},{images},{side}")
        (six / "pairs.csv").write_text("\n".join(lines) + "\n")
        return six / "pairs.csv"

    # The second line of a subject may be silent, and must not contradict.
    table = write("train", "", "test", "test", "", "val")
    index, _ = run(table, tmp_path / "out", layout="table", **by_column("fold"))
    assert sides_of(index) == {"01": "train", "02": "test", "03": "val"}
    assert len(index.rows) == 6
    table = write("train", "", "test", "val")
    with pytest.raises(DatasetError, match=r"column 'fold': .* for sub-02, found test and val"):
        run(table, tmp_path / "other", layout="table", **by_column("fold"))


def test_a_torn_split_is_one_line_and_costs_nothing(six: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "split.tsv", tmp_path / "out"
    given.write_text("participant_id\tsplit\nsub-01\ttrain\nsub-0")
    with pytest.raises(DatasetError, match=r"split\.tsv:3: .* found half a line"):
        run(six, out, split_from=given)
    assert not out.exists()
    index, _ = run(six, out)
    shutil.copy(given, out)
    with pytest.raises(DatasetError, match=r"out/split\.tsv:3: .* found half a line"):
        run(six, out)
    assert load_index(out) == index


def test_a_split_that_is_not_there_or_for_others_is_one_line(six: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for place in (tmp_path / "none.tsv", tmp_path / "none.json", six):
        with pytest.raises(DatasetError, match="No such file"):
            run(six, out, split_from=place)
    given = tmp_path / "split.tsv"
    given.write_text("participant_id\tsplit\n" + "".join(f"{n:02d}\ttest\n" for n in range(1, 7)))
    with pytest.raises(DatasetError, match="given: expected a subject in train, found none"):
        run(six, out, split_from=given)
    given.write_text("participant_id\tsplit\nK1\ttest\nK2\ttrain\n")
    with pytest.raises(DatasetError, match="one subject of this dataset, found 2 others"):
        run(six, out, split_from=given)
    assert not out.exists()
    with pytest.raises(ConfigError, match="--split-from: expected one source of the split"):
        run(six, out, split_from=given, **by_column("fold"))


def test_nothing_stays_of_a_given_split_where_nothing_can_be_prepared(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 1)
    path = bids / "sub-01/pet/sub-01_trc-18FFDG_pet.json"
    # Found only at work: frames that the image does not have.
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"FrameTimesStart": [0, 1, 2]}
            | {"FrameDuration": [1, 1, 1]}
        )
    )
    given = tmp_path / "split.tsv"
    given.write_text("participant_id\tsplit\nsub-01\ttrain\n")
    with pytest.raises(DatasetError):
        run(bids, tmp_path / "out", split_from=given)
    assert not (tmp_path / "out").exists()


def test_the_options_of_the_command(six: Path, tmp_path: Path) -> None:
    write_people(six, "participant_id stage fold", "sub-01 A train", "sub-02 B test")

    def call(out: str, *options: str) -> Any:
        command = ["prepare", str(six), str(tmp_path / out), "--size", "tiny", "--jobs", "1"]
        return CliRunner().invoke(app, [*command, *options])

    assert call("a", "--split-column", "fold").exit_code == 0
    assert read_split(tmp_path / "a") == {"01": "train", "02": "test"}
    assert (
        call("b", "--split-from", str(tmp_path / "a"), "--diagnosis-column", "stage").exit_code == 0
    )
    assert read_split(tmp_path / "b") | {"01": "train", "02": "test"} == read_split(tmp_path / "b")
    for option in ("--diagnosis-column", "--split-column"):
        error = call("c", option, "folds").exception
        assert isinstance(error, ConfigError)
        assert "participant_id, stage, fold" in str(error)
    assert not (tmp_path / "c").exists()


def test_a_tracer_with_nobody_to_be_tested_on_is_said(tmp_path: Path) -> None:
    write_cohort(tmp_path / "bids", (2, 4, 6))
    assert "warning" not in run(tmp_path / "bids", tmp_path / "whole")[1]
    write_pet(tmp_path / "bids", "06", "M00", **AV45)
    index, said = run(tmp_path / "bids", tmp_path / "out")
    side = next(row.split for row in index.rows if row.tracer == "AV45")
    others = " and none in ".join(name for name in ("train", "val", "test") if name != side)
    (line,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: AV45 has no subject in {others}: ")


@pytest.mark.parametrize("cached", [True, False])
def test_one_image_under_two_labels_is_said(cached: bool, tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 4)
    _, said = run(bids, tmp_path / "clean", cached=cached)
    assert "several subjects" not in said
    first, _, third, _ = sorted(bids.glob("sub-*/anat/*_T1w.nii.gz"))
    shutil.copyfile(first, third)
    index, said = run(bids, tmp_path / "out", cached=cached)
    sides = sides_of(index)
    assert f"several subjects: sub-01 ({sides['01']}), sub-03 ({sides['03']});" in said
