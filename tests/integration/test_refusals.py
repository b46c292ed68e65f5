"""A dataset with every defect: each is refused for its reason, and the others go on."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ganbert.atomic import write_text
from ganbert.cli import app
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import load_index
from ganbert.data.recast import RecastOptions
from ganbert.errors import EXIT_SOME_REFUSED, DatasetError, ImageError, OutputError
from ganbert.prepare import Prepared, prepare
from tests.bids_tree import head, write_description, write_image, write_pet, write_t1w, write_tree
from tests.defects import DEFECTS, END, PERSON, SOUND, START, prepare_defects, table, write_defects

USABLE = {"disagree", "integers", "oblique", "fourth"}


def run(bids: Path, out: Path, **changes: Any) -> Prepared:
    options: dict[str, Any] = {
        "mri_grid": TINY_MRI_GRID,
        "pet_grid": TINY_PET_GRID,
        "jobs": 1,
        "console": Console(quiet=True),
    } | changes
    return prepare(bids, out, **options)


def report(out: Path) -> list[dict[str, str]]:
    with (out / "prepare-report.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def damage(bids: Path, subject: str) -> Path:
    """Cut the T1w of a subject short."""
    path = bids / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("hostile")
    return prepare_defects(write_defects(folder / "bids"), folder / "out"), folder / "out"


@pytest.mark.parametrize("subject", [*SOUND, *DEFECTS])
def test_each_defect_has_its_fate(subject: str, hostile: tuple[dict[str, Any], Path]) -> None:
    lines = hostile[0][subject]
    assert lines, "not in the report"
    refused = [line for line in lines if line["status"] == "refused"]
    if subject in (*SOUND, *USABLE):
        assert not refused
        return
    assert refused
    _, kind, _ = DEFECTS[subject]
    for line in refused:
        assert line["reason"].startswith("expected ")
        assert line["file"].startswith(f"sub-{subject}/")
        if subject != "folders":
            assert f"_{kind}." in line["file"]


def test_the_index_knows_the_usable_ones(hostile: tuple[dict[str, Any], Path]) -> None:
    by_subject, out = hostile
    rows = load_index(out).rows
    prepared = {s for s, lines in by_subject.items() if lines[0]["status"] == "prepared"}
    assert {row.subject for row in rows} == prepared >= USABLE | set(SOUND)
    # 8 subjects: sizes as if the others were not there.
    assert sorted(row.split for row in rows).count("train") == len(rows) - 3


def test_the_report_says_nothing_of_persons_or_places(
    hostile: tuple[dict[str, Any], Path],
) -> None:
    out = hostile[1]
    for path in [path for path in out.rglob("*") if path.is_file()]:
        assert PERSON.encode() not in path.read_bytes(), path.name
    text = (out / "prepare-report.tsv").read_text()
    assert str(out.parent) not in text
    assert "Traceback" not in text


def test_the_page_tells_what_happens(
    hostile: tuple[dict[str, Any], Path], repository: Path
) -> None:
    page = (repository / "docs" / "data.md").read_text()
    told = page.split(START)[1].split(END)[0].strip()
    assert told == table(hostile[0]), "run: python -m tests.defects docs/data.md"


def test_exit_code_report_and_summary(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 4), tmp_path / "out"
    options = ["prepare", str(bids), str(out), "--size", "tiny", "--jobs", "2"]
    damage(bids, "02")
    result = CliRunner().invoke(app, options)
    assert result.exit_code == EXIT_SOME_REFUSED == 65
    assert "refused: 1 pairs" in result.output
    assert "sub-02/anat/sub-02_T1w.nii.gz: expected a readable NIfTI" in result.output
    lines = report(out)
    assert list(lines[0]) == ["subject", "session", "tracer", "status", "file", "reason"]
    assert [(x["subject"], x["tracer"], x["status"]) for x in lines] == [
        ("01", "FDG", "prepared"),
        ("02", "FDG", "refused"),
        ("03", "FDG", "prepared"),
        ("04", "FDG", "prepared"),
    ]
    assert [row.subject for row in load_index(out).rows] == ["01", "03", "04"]
    # Mended, it is picked up, and the others are not made again.
    write_t1w(bids, "02")
    before = {path: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}
    assert CliRunner().invoke(app, options).exit_code == 0
    assert [row.subject for row in load_index(out).rows] == ["01", "02", "03", "04"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {line["status"] for line in report(out)} == {"prepared"}


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 3), tmp_path / "out"
    path = damage(bids, "02")
    result = CliRunner().invoke(
        app, ["prepare", str(bids), str(out), "--size", "tiny", "--jobs", "1", "--strict"]
    )
    assert isinstance(result.exception, ImageError)
    assert str(result.exception.where) == str(path)
    assert not (out / "index.json").exists()
    assert not (out / "prepare-report.tsv").exists()


def test_strict_refuses_a_sidecar_too(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 3)
    (bids / "sub-02/pet/sub-02_trc-18FFDG_pet.json").write_text("{")
    with pytest.raises(DatasetError, match=r"sub-02_trc-18FFDG_pet\.json: expected JSON"):
        run(bids, tmp_path / "out", strict=True)
    assert [row.subject for row in run(bids, tmp_path / "out").index.rows] == ["01", "03"]


def test_who_has_only_one_image_is_listed_and_no_fault(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"
    write_t1w(bids, "03")
    assert run(bids, out, strict=True).refusals == ()
    assert report(out)[2] == {
        "subject": "03",
        "session": "n/a",
        "tracer": "n/a",
        "status": "left out",
        "file": "sub-03",
        "reason": "expected a T1w and a PET, found no PET; add it",
    }


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"
    for subject in ("01", "02"):
        damage(bids, subject)
    with pytest.raises(DatasetError, match="one pair that can be used, found 2 that cannot"):
        run(bids, out)
    assert not out.exists()


def test_an_index_does_not_outlive_what_it_says(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"
    run(bids, out)
    damage(bids, "01")
    assert [row.subject for row in run(bids, out).index.rows] == ["02"]
    damage(bids, "02")
    with pytest.raises(DatasetError):
        run(bids, out)
    assert not (out / "index.json").exists()
    assert not (out / "prepare-report.tsv").exists()


def test_a_report_that_cannot_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"

    def fill_the_disk(file: Path, lines: object) -> None:
        write_text(file, "subject\tses")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ganbert.data.refusals.write_tsv", fill_the_disk)
    with pytest.raises(OutputError, match="No space left"):
        run(bids, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "cache", "prepare.json"]


def test_an_inherited_sidecar_that_nobody_can_read_is_an_error(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 2)
    (bids / "pet.json").write_text("{")
    with pytest.raises(DatasetError, match=r"bids/pet\.json: expected JSON"):
        run(bids, tmp_path / "out")


def test_links_to_folders_in_a_circle_do_not_keep_it_busy(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 3)
    for number in range(4):
        (bids / f"sub-01/anat/up{number}").symlink_to(bids, target_is_directory=True)
    result = run(bids, tmp_path / "out")
    assert len(result.index.rows) == 3
    assert len(result.refusals) == 4


def write_table(folder: Path) -> Path:
    """Write a table of five pairs: 02 without unit, 03 of one frame, 05 with a T1w elsewhere."""
    lines = ["subject,mri,pet,tracer,Units,FrameTimesStart,FrameDuration"]
    for number in range(1, 5):
        mri = write_t1w(folder / "images", f"{number:02d}").relative_to(folder)
        pet = write_pet(folder / "images", f"{number:02d}").relative_to(folder)
        lines.append(f"{number:02d},{mri},{pet},FDG,SUVR,1800 2400,600 600")
    outside = write_t1w(folder.parent / "elsewhere", "05")
    lines.append(f"05,{outside},{pet},FDG,SUVR,1800 2400,600 600")
    lines[2] = lines[2].replace("SUVR", "")
    lines[3] = lines[3].replace("1800 2400,600 600", "1800,600")
    for file in folder.rglob("*.json"):
        file.unlink()
    file = folder / "pairs.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("named", ["table", "folder"])
def test_a_table_of_pairs_is_reported_beside_its_dataset(named: str, tmp_path: Path) -> None:
    file, out = write_table(tmp_path / "data"), tmp_path / "out"
    place = file if named == "table" else file.parent
    result = run(place, out, layout="table")
    assert [row.subject for row in result.index.rows] == ["01", "04"]
    pet = "images/sub-{0}/pet/sub-{0}_trc-18FFDG_pet.nii.gz"
    assert [(x["subject"], x["status"], x["file"]) for x in report(out)] == [
        ("01", "prepared", pet.format("01")),
        ("02", "refused", "pairs.csv:3"),
        ("03", "refused", pet.format("03")),
        ("04", "prepared", pet.format("04")),
        ("05", "refused", "sub-05_T1w.nii.gz"),
    ]
    reasons = [line["reason"] for line in report(out)]
    assert reasons[1].startswith("expected 'Units' in its JSON sidecar")
    assert reasons[2].startswith("expected 2 frames, found a single frame")
    assert reasons[4].startswith("expected a file of the dataset, found a link or path that leaves")
    options = [
        "prepare",
        str(place),
        str(out),
        "--size",
        "tiny",
        "--jobs",
        "1",
        "--layout",
        "table",
    ]
    assert CliRunner().invoke(app, options).exit_code == EXIT_SOME_REFUSED
    with pytest.raises(DatasetError, match=r"pairs\.csv:3: expected 'Units'"):
        run(place, out, layout="table", strict=True)


def test_the_voxels_of_a_pair_of_files_do_not_lie_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    file = write_table(folder)
    pet = folder / "images/sub-01/pet/sub-01_trc-18FFDG_pet.nii.gz"
    image = nib.load(pet)
    pair = nib.Nifti1Pair(image.get_fdata(dtype=np.float32), image.affine)
    pair.to_filename(pet.parent / "a.img")
    file.write_text(file.read_text().replace(str(pet.relative_to(folder)), f"{pet.parent}/a.hdr"))
    assert run(file, tmp_path / "out", layout="table").index.rows[0].subject == "01"
    (pet.parent / "a.img").rename(tmp_path / "a.img")
    (pet.parent / "a.img").symlink_to(tmp_path / "a.img")
    result = run(file, tmp_path / "out", layout="table")
    assert [row.subject for row in result.index.rows] == ["04"]
    reasons = {str(refusal.error) for refusal in result.refusals}
    assert any("a.img: expected a file of the dataset" in reason for reason in reasons)


def test_strict_stops_at_a_recast_too(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 3)
    path = write_pet(bids, "02", Units="counts")
    recast = RecastOptions(unit="SUVR", reference_mask=str(tmp_path / "mask.nii.gz"))
    write_image(tmp_path / "mask.nii.gz", np.ones(head(0).shape, np.uint8))
    with pytest.raises(DatasetError, match="a unit that SUVR follows from") as caught:
        run(bids, tmp_path / "out", recast=recast, strict=True)
    assert str(caught.value.where) == str(path)
    result = run(bids, tmp_path / "out", recast=recast)
    assert [refusal.label for refusal in result.refusals] == ["sub-02 FDG"]


def test_a_mask_of_the_dataset_does_not_lead_out_of_it(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 2)
    write_image(tmp_path / "secret.nii.gz", np.ones(head(0).shape, np.uint8))
    for subject in ("01", "02"):
        write_pet(bids, subject, Units="SUV")
        write_image(bids / f"masks/{subject}.nii.gz", np.ones(head(0).shape, np.uint8))
    (bids / "masks/02.nii.gz").unlink()
    (bids / "masks/02.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    recast = RecastOptions(unit="SUVR", reference_mask="masks/{subject}.nii.gz")
    result = run(bids, tmp_path / "out", recast=recast)
    assert [row.subject for row in result.index.rows] == ["01"]
    assert [Path(refusal.path).name for refusal in result.refusals] == ["02.nii.gz"]


def test_a_table_of_regions_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 2)
    derivative = bids / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    write_image(derivative / "sub-01/anat/sub-01_dseg.nii.gz", head(0))
    os.mkfifo(derivative / "sub-01/anat/sub-01_dseg.tsv")
    result = run(bids, tmp_path / "out")
    assert [row.subject for row in result.index.rows][-1] == "02"


def test_a_plan_from_before_frames_and_units_is_taken_up(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 2), tmp_path / "out"
    run(bids, out)
    plan = json.loads((out / "prepare.json").read_text())
    known = ("dataset", "mri_grid", "pet_grid", "seed", "fractions", "layout")
    write_text(out / "prepare.json", json.dumps({name: plan[name] for name in known}))
    assert len(run(bids, out).index.rows) == 2
    assert json.loads((out / "prepare.json").read_text()) == plan
