"""Tables of paired paths: columns, sidecars beside the PET, dates, and lines that are left out."""

import json
from pathlib import Path

import pytest

from ganbert.data.layouts import LayoutOptions, find_pairs
from ganbert.errors import ConfigError, DatasetError

HEADING = "subject,mri,pet,tracer,Units,FrameTimesStart,FrameDuration"
LINE = "01,t1.nii,pet.nii.gz,FDG,SUV,1800 2400,600 600"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("t1.nii", "pet.nii.gz", "dseg.nii", "dseg.tsv"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, *lines: str, name: str = "pairs.csv") -> Path:
    file = folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_columns_say_everything(folder: Path) -> None:
    columns = ",session,dseg,dseg_table,weight,InjectedRadioactivity,ImageDecayCorrected"
    values = ",ses-M12,dseg.nii,dseg.tsv,70,350.5,True"
    write(folder, HEADING + columns, LINE + values)
    (pair,) = find_pairs(folder, "table").pairs
    assert (pair.subject, pair.session, pair.tracer, pair.unit) == ("01", "M12", "FDG", "SUV")
    assert (pair.mri, pair.pet) == (str(folder / "t1.nii"), str(folder / "pet.nii.gz"))
    assert (pair.frame_start_s, pair.frame_duration_s) == ((1800, 2400), (600, 600))
    assert (pair.dseg, pair.dseg_table) == (str(folder / "dseg.nii"), str(folder / "dseg.tsv"))
    assert pair.truth is None
    assert pair.facts == {
        "InjectedRadioactivity": 350.5,
        "ImageDecayCorrected": True,
        "weight": "70",
    }


def test_a_tsv_by_its_own_path(folder: Path) -> None:
    file = write(folder, *(line.replace(",", "\t") for line in (HEADING, LINE)), name="mine.tsv")
    assert find_pairs(file, "table").pairs[0].tracer == "FDG"


def test_a_sidecar_says_what_no_column_does(folder: Path) -> None:
    sidecar = {"TracerName": "florbetapir", "Units": "Bq/mL", "FrameTimesStart": [0, 300]}
    (folder / "pet.json").write_text(json.dumps(sidecar | {"FrameDuration": [300, 300]}))
    write(folder, "subject,mri,pet,Units", "01,t1.nii,pet.nii.gz,SUV")
    (pair,) = find_pairs(folder, "table").pairs
    assert (pair.tracer, pair.unit, pair.frame_start_s) == ("AV45", "SUV", (0, 300))


def test_dates_hold_the_limit(folder: Path) -> None:
    write(folder, HEADING + ",mri_date,pet_date", LINE + ",2001-12-31,01/30/2002")
    options = LayoutOptions(max_days=30)
    assert len(find_pairs(folder, "table", options).pairs) == 1
    with pytest.raises(DatasetError, match="within 29 days, found the nearest 30 days away"):
        find_pairs(folder, "table", LayoutOptions(max_days=29))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "02,none.nii,pet.nii.gz,FDG,SUV,1800 2400,600 600",
            "a file as mri, found none.nii, which",
        ),
        ("02,t1.nii,,FDG,SUV,1800 2400,600 600", "a file as pet, found none"),
        ("02,t1.nii,pet.nii.gz,PIB,SUV,1800 2400,600 600", "one of AV45, AV1451, FDG, found PIB"),
        ("02,t1.nii,pet.nii.gz,FDG,,1800 2400,600 600", "'Units' in its JSON sidecar"),
        (
            "02,t1.nii,pet.nii.gz,FDG,SUV,soon 2400,600 600",
            "numbers of seconds in 'FrameTimesStart'",
        ),
        ("0/2,t1.nii,pet.nii.gz,FDG,SUV,1800 2400,600 600", "letters and digits as subject"),
        (",t1.nii,pet.nii.gz,FDG,SUV,1800 2400,600 600", "a subject, found none"),
        (LINE, "one PET per subject, session and tracer"),
    ],
)
def test_a_line_that_is_not_usable_is_rejected_with_its_number(
    line: str, reason: str, folder: Path
) -> None:
    file = write(folder, HEADING, LINE, line)
    found = find_pairs(folder, "table")
    assert [pair.subject for pair in found.pairs] == ["01"]
    (entry,) = found.refusals
    assert reason in entry.reason
    assert entry.path in (f"{file}:3", str(folder / "pet.nii.gz"))


def test_a_date_that_cannot_be_read_is_not_guessed(folder: Path) -> None:
    write(folder, HEADING + ",pet_date", LINE + ",31.12.2001")
    with pytest.raises(DatasetError, match=r"MM/DD/YYYY as pet_date, found something else"):
        find_pairs(folder, "table")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((), "no line"),
        ((HEADING,), "no line"),
        ((HEADING.replace("mri", "t1w"), LINE), "none called mri"),
        ((HEADING, LINE + ",more"), "more values than columns in line 2"),
    ],
)
def test_a_broken_table_is_one_line(lines: tuple[str, ...], found: str, folder: Path) -> None:
    file = write(folder, *lines)
    with pytest.raises(DatasetError, match=found) as caught:
        find_pairs(folder, "table")
    assert str(caught.value).startswith(f"{file}: expected ")


def test_diagnosis_and_side_are_columns(folder: Path) -> None:
    file = write(folder, HEADING + ",Diagnosis,group,fold", LINE + ", CN ,2,dev")
    (pair,) = find_pairs(folder, "table").pairs
    assert (pair.diagnosis, pair.side) == ("CN", None)
    options = LayoutOptions(diagnosis_column="group", split_column="fold")
    (pair,) = find_pairs(folder, "table", options).pairs
    assert (pair.diagnosis, pair.side) == ("2", "val")
    for name in ("diagnosis_column", "split_column"):
        with pytest.raises(ConfigError, match=r"a column of .*pairs\.csv \(subject, .*found Group"):
            find_pairs(folder, "table", LayoutOptions(**{name: "Group"}))
    # What is no side concerns the whole split, though the line could not be used anyway.
    write(folder, HEADING + ",fold", LINE + ",train", LINE.replace("t1", "none") + ",fold 3")
    with pytest.raises(DatasetError, match="expected train, val or test") as caught:
        find_pairs(folder, "table", LayoutOptions(split_column="fold"))
    assert caught.value.where == f"{file}:3"


def test_what_is_no_label_is_not_repeated_in_the_report(folder: Path) -> None:
    write(folder, HEADING, LINE, LINE.replace("01", "Jane Doe", 1))
    (refusal,) = find_pairs(folder, "table").refusals
    assert refusal.subject is None
    assert "Jane" not in refusal.reason + refusal.label + refusal.path
