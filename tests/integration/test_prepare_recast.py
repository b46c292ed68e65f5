"""Frames, units and rejections through `prepare`: what the cache and the index then hold."""

import json
import logging
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.frames import FRAME_RULES
from ganbert.data.index import Index, load_index
from ganbert.data.nifti import read_cache
from ganbert.data.recast import RecastOptions
from ganbert.errors import DatasetError, ImageError, OutputError
from ganbert.prepare import prepare
from ganbert.tables import read_tsv
from tests.bids_tree import head, write_description, write_image, write_pet, write_t1w, write_tree

DOSE = {
    "Units": "kBq/mL",
    "InjectedRadioactivity": 350,
    "InjectedRadioactivityUnits": "MBq",
    "InjectionStart": 0,
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
}


def run(bids: Path, out: Path, **recast: Any) -> Index:
    return prepare(
        bids,
        out,
        mri_grid=TINY_MRI_GRID,
        pet_grid=TINY_PET_GRID,
        recast=RecastOptions(**recast),
        jobs=1,
        console=Console(quiet=True),
    ).index


def write_dynamic(bids: Path, levels: list[float], **keys: Any) -> Path:
    """Write sub-01 with a PET whose frames are one picture times each level, 5 min each."""
    write_description(bids)
    write_t1w(bids, "01")
    times = {
        "FrameTimesStart": [3000 + 300 * number for number in range(len(levels))],
        "FrameDuration": [300] * len(levels),
    }
    path = write_pet(bids, "01", **(times | keys))
    write_image(path, np.stack([level * head(1) for level in levels], axis=-1))
    return path


def levels_of(out: Path, index: Index) -> tuple[float, float]:
    """Return the mean of each cached frame."""
    pet = read_cache(out / index.rows[0].pet.path).array
    return float(pet[0].mean()), float(pet[1].mean())


@pytest.mark.parametrize(
    ("rule", "levels", "starts", "duration"),
    [
        ("first", (1, 2), (3000, 3300), 300),
        ("last", (3, 4), (3600, 3900), 300),
        ("halves", (1.5, 3.5), (3000, 3600), 600),
    ],
)
def test_four_frames_become_two(
    rule: str, levels: tuple, starts: tuple, duration: float, tmp_path: Path
) -> None:
    write_dynamic(tmp_path / "bids", [1, 2, 3, 4])
    index = run(tmp_path / "bids", tmp_path / rule, frames=rule)
    write_dynamic(tmp_path / "plain", [1, 1])
    unit, _ = levels_of(tmp_path / "one", run(tmp_path / "plain", tmp_path / "one"))
    found = levels_of(tmp_path / rule, index)
    assert found == pytest.approx([level * unit for level in levels], rel=1e-4)
    row = load_index(tmp_path / rule).rows[0]
    assert row.frame_start_s == starts
    assert row.frame_duration_s == (duration, duration)
    assert index.frames == rule
    assert json.loads((tmp_path / rule / "prepare.json").read_text())["frames"] == rule


def test_a_single_frame_is_used_for_both_only_when_that_is_asked_for(tmp_path: Path) -> None:
    bids, out = tmp_path / "bids", tmp_path / "out"
    path = write_dynamic(bids, [2])
    with pytest.raises(DatasetError, match=r"found a single frame; use --frames repeat") as caught:
        run(bids, out)
    assert str(path) in str(caught.value)
    assert not out.exists()
    index = run(bids, out, frames="repeat")
    first, second = levels_of(out, index)
    assert first == second > 0
    assert index.rows[0].frame_start_s == (3000, 3000)
    assert index.rows[0].frame_duration_s == (300, 300)


def test_one_unusable_pet_is_refused_with_its_reason(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 3), tmp_path / "out"
    path = write_pet(bids, "02", FrameTimesStart=[0], FrameDuration=[60])
    index = run(bids, out)
    assert [row.subject for row in index.rows] == ["01", "03"]
    (line,) = (line for line in read_tsv(out / "prepare-report.tsv") if line["subject"] == "02")
    assert (line["status"], line["file"]) == ("refused", str(path.relative_to(bids)))
    assert line["reason"].startswith("expected 2 frames, found a single frame; use --frames")


def test_many_of_one_reason_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bids = write_tree(tmp_path / "bids", 1)
    paths = [write_pet(bids, f"{number:02d}").parents[1] for number in range(11, 16)]
    with caplog.at_level(logging.WARNING):
        run(bids, tmp_path / "out")
    named = ", ".join(str(path) for path in paths[:3])
    (line,) = caplog.messages
    assert line.startswith(f"left out: {named} and 2 more: expected a T1w and a PET, found no T1w")


def test_activity_becomes_suv_by_dose_and_weight(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    write_dynamic(bids, [10, 20], **DOSE)
    (bids / "participants.tsv").write_text("participant_id\tweight\nsub-01\t70\n")
    plain = levels_of(tmp_path / "plain", run(bids, tmp_path / "plain"))
    index = run(bids, tmp_path / "suv", unit="SUV")
    # 350 MBq in 70 kg: 5 kBq/mL is 1 SUV.
    found = levels_of(tmp_path / "suv", index)
    assert found == pytest.approx([level / 5 for level in plain], rel=1e-5)
    assert load_index(tmp_path / "plain").rows[0].unit == "kBq/mL"
    assert load_index(tmp_path / "suv").rows[0].unit == "SUV"
    in_becquerel = levels_of(tmp_path / "bq", run(bids, tmp_path / "bq", unit="Bq/mL"))
    assert in_becquerel == pytest.approx([1000 * level for level in plain], rel=1e-5)


def test_without_dose_or_weight_there_is_no_suv(tmp_path: Path) -> None:
    path = write_dynamic(tmp_path / "bids", [1, 2], **(DOSE | {"InjectedRadioactivity": None}))
    with pytest.raises(
        DatasetError, match=r"'InjectedRadioactivity' in its.* and 'weight'"
    ) as caught:
        run(tmp_path / "bids", tmp_path / "out", unit="SUV")
    assert str(path) in str(caught.value)


def write_dseg(bids: Path, labels: np.ndarray, table: str) -> None:
    derivative = bids / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    write_image(derivative / "sub-01/anat/sub-01_dseg.nii.gz", labels)
    (derivative / "dseg.tsv").write_text(table)


def test_suvr_is_relative_to_the_region_of_the_segmentation(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    path = write_dynamic(bids, [1, 3], Units="Bq/mL")
    picture = head(1)
    labels = np.zeros(picture.shape, np.uint8)
    labels[8, 9, 7] = 5
    write_dseg(bids, labels, "index\tname\n5\tpons\n")
    reference = float(picture[8, 9, 7])
    plain, _ = levels_of(tmp_path / "plain", run(bids, tmp_path / "plain"))
    index = run(bids, tmp_path / "suvr", unit="SUVR")
    # FDG refers to the pons; both frames are the same picture, up to a factor that cancels.
    found = levels_of(tmp_path / "suvr", index)
    assert found == pytest.approx([plain / reference] * 2, rel=1e-5)
    assert (index.rows[0].unit, index.reference) == ("SUVR", {"FDG": "pons"})
    with pytest.raises(DatasetError, match=r"expected thalamus, found pons") as caught:
        run(bids, tmp_path / "none", unit="SUVR", reference_regions=("thalamus",))
    assert str(path) in str(caught.value)


def test_suvr_is_relative_to_a_mask(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    write_dynamic(bids, [1, 3], Units="arbitrary")
    picture = head(1)
    mask = np.zeros(picture.shape, np.uint8)
    mask[8, 9, 7:9] = 1
    write_image(tmp_path / "masks" / "01.nii.gz", mask)
    pattern = str(tmp_path / "masks" / "{subject}.nii.gz")
    plain, _ = levels_of(tmp_path / "plain", run(bids, tmp_path / "plain"))
    index = run(bids, tmp_path / "suvr", unit="SUVR", reference_mask=pattern)
    expected = plain / float(picture[8, 9, 7:9].mean())
    assert levels_of(tmp_path / "suvr", index) == pytest.approx([expected] * 2, rel=1e-5)
    assert index.reference == {"FDG": pattern}
    assert index.rows[0].sources[-1].endswith("masks/01.nii.gz")


def test_a_mask_elsewhere_is_named_with_the_pet(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    path = write_dynamic(bids, [1, 3], Units="SUV")
    write_image(tmp_path / "mask.nii.gz", np.zeros(head(1).shape, np.uint8))
    with pytest.raises((DatasetError, ImageError), match="at least one voxel in the ref") as caught:
        run(bids, tmp_path / "out", unit="SUVR", reference_mask=str(tmp_path / "mask.nii.gz"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("rule", [rule for rule in FRAME_RULES if rule != "as-is"])
def test_another_rule_in_the_same_folder_is_named(rule: str, tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 1)
    run(bids, tmp_path / "out")
    with pytest.raises(OutputError, match="found one made with --frames as-is"):
        run(bids, tmp_path / "out", frames=rule)
    with pytest.raises(OutputError, match="--unit SUVR, found one made with no --unit"):
        run(bids, tmp_path / "out", unit="SUVR")


def test_an_average_that_takes_its_frames_for_corrected_says_so(tmp_path: Path) -> None:
    bids, out, said = tmp_path / "bids", tmp_path / "out", StringIO()
    for subject in ("02", "03", "04", "05"):
        write_t1w(bids, subject)
        write_pet(bids, subject, Units="Bq/mL")
    write_dynamic(bids, [1, 2, 3, 4], Units="Bq/mL")
    for path in bids.glob("sub-0[2-5]/pet/*"):
        path.write_bytes(next(bids.glob(f"sub-01/pet/*{''.join(path.suffixes)}")).read_bytes())
    write_image(tmp_path / "mask.nii.gz", (head(1) > 0).astype(np.float32))
    recast = RecastOptions(
        frames="halves", unit="SUVR", reference_mask=str(tmp_path / "mask.nii.gz")
    )
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(bids, out, recast=recast, jobs=1, console=Console(file=said, width=500), **grids)
    note = "its frames are averaged as decay-corrected, which nothing says"
    lines = read_tsv(out / "prepare-report.tsv")
    assert [note in line["reason"] for line in lines] == [True] * 5
    # One line of the console for all of them.
    (line,) = [line for line in said.getvalue().splitlines() if note in line]
    assert line.startswith("sub-01/pet/")
    assert " and 2 more: " in line
