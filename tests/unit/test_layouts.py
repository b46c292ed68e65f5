"""BIDS: what is paired with what, where units and frames come from, and what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ganbert.data.layouts import LAYOUTS, find_pairs, survey
from ganbert.errors import ConfigError, DatasetError
from tests.bids_tree import head, write_description, write_image, write_pet, write_t1w, write_tree


def test_pairs_are_sorted_and_carry_the_sidecar(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    write_pet(tmp_path, "01", tracer="18FAV45", Units="Bq/mL")
    first, second, third = find_pairs(tmp_path)
    assert [(p.subject, p.tracer) for p in (first, second, third)] == [
        ("01", "AV45"),
        ("01", "FDG"),
        ("02", "FDG"),
    ]
    assert (first.unit, second.unit) == ("Bq/mL", "SUVR")
    assert second.frame_start_s == (1800.0, 2400.0)
    assert second.frame_duration_s == (600.0, 600.0)
    assert second.session is None
    assert second.truth is None
    assert second.dseg is None
    assert Path(second.mri) == tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"
    assert Path(second.pet) == tmp_path / "sub-01/pet/sub-01_trc-18FFDG_pet.nii.gz"


def test_frames_count_from_the_injection(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    write_pet(tmp_path, "01", InjectionStart=-3000, FrameTimesStart=[0, 300])
    assert find_pairs(tmp_path)[0].frame_start_s == (3000.0, 3300.0)


def test_sidecars_are_inherited(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    write_pet(tmp_path, "01", Units=None)
    (tmp_path / "trc-18FFDG_pet.json").write_text(json.dumps({"Units": "g/mL"}))
    assert find_pairs(tmp_path)[0].unit == "g/mL"


@pytest.mark.parametrize("name", ["florbetapir", "AV45", "Florbetapir"])
def test_the_tracer_may_stand_in_the_sidecar(name: str, tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01")
    write_pet(tmp_path, "01", tracer=None, TracerName=name)
    assert find_pairs(tmp_path)[0].tracer == "AV45"


def test_the_t1w_of_the_same_session_is_preferred(tmp_path: Path) -> None:
    write_description(tmp_path)
    for session in ("A", "B"):
        write_t1w(tmp_path, "01", session)
    for session in ("B", "C"):
        write_pet(tmp_path, "01", session)
    same, other = find_pairs(tmp_path)
    assert (same.session, other.session) == ("B", "C")
    assert "ses-B_T1w" in same.mri
    assert "ses-A_T1w" in other.mri
    write_t1w(tmp_path, "01")
    assert Path(find_pairs(tmp_path)[1].mri).name == "sub-01_T1w.nii.gz"


def test_subjects_without_a_partner_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tree(tmp_path, 2)
    write_t1w(tmp_path, "07")
    write_pet(tmp_path, "08")
    with caplog.at_level(logging.WARNING):
        assert [pair.subject for pair in find_pairs(tmp_path)] == ["01", "02"]
    assert "without a T1w: sub-08" in caplog.text
    assert "without a PET: sub-07" in caplog.text


def test_ground_truth_of_the_phantom_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    derivative = tmp_path / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    truth = derivative / "sub-01/pet/sub-01_trc-18FFDG_desc-truth_pet.nii.gz"
    dseg = derivative / "sub-01/anat/sub-01_dseg.nii.gz"
    for path in (truth, dseg):
        write_image(path, head(0))
    first, second = find_pairs(tmp_path)
    assert (first.truth, first.dseg) == (str(truth), str(dseg))
    assert (second.truth, second.dseg) == (None, None)


def test_the_table_of_regions_is_inherited(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    derivative = tmp_path / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    for subject in ("01", "02"):
        write_image(derivative / f"sub-{subject}/anat/sub-{subject}_dseg.nii.gz", head(0))
    assert [pair.dseg_table for pair in find_pairs(tmp_path)] == [None, None]
    # Of another segmentation, and of another place.
    for stray in (derivative / "desc-aseg_dseg.tsv", tmp_path / "dseg.tsv"):
        stray.write_text("index\tname\n")
    assert [pair.dseg_table for pair in find_pairs(tmp_path)] == [None, None]
    above, beside = derivative / "dseg.tsv", derivative / "sub-01/anat/sub-01_dseg.tsv"
    for table in (above, beside):
        table.write_text("index\tname\n")
    tables = [pair.dseg_table for pair in find_pairs(tmp_path)]
    assert tables == [str(beside), str(above)]


def break_json(root: Path) -> None:
    (root / "sub-01/pet/sub-01_trc-18FFDG_pet.json").write_text("{")


PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no unit": (lambda root: write_pet(root, "01", Units=None), "'Units' in its JSON sidecar"),
    "no frames": (lambda root: write_pet(root, "01", FrameTimesStart=None), "'FrameTimesStart'"),
    "three frames": (
        lambda root: write_pet(root, "01", FrameTimesStart=[0, 1, 2], FrameDuration=[1, 1, 1]),
        "2 frames, which is what is supported now, found 3",
    ),
    "one frame": (
        lambda root: write_pet(root, "01", FrameTimesStart=[0], FrameDuration=[1]),
        "2 frames, which is what is supported now, found 1",
    ),
    "frames in words": (lambda root: write_pet(root, "01", FrameTimesStart=["a", "b"]), "numbers"),
    "frames that are NaN": (
        lambda root: write_pet(root, "01", FrameTimesStart=[0, float("nan")]), "numbers of seconds"
    ),
    "a duration that no float holds": (
        lambda root: write_pet(root, "01", FrameDuration=[1, 10**400]), "numbers of seconds"
    ),
    "an infinite injection": (
        lambda root: write_pet(root, "01", InjectionStart=float("inf")), "in 'InjectionStart'"
    ),
    "another name than the file's": (
        lambda root: write_pet(root, "01", suffix="T1w"), "found another value in suffix"
    ),
    "half a character": (
        lambda root: write_pet(root, "01", Manufacturer="\ud800"), "surrogates not allowed"
    ),
    "unknown tracer": (
        lambda root: write_pet(root, "01", tracer="11CPIB", TracerName="PiB"),
        "one of AV45, AV1451, FDG, found 11CPIB and PiB",
    ),
    "no tracer": (lambda root: write_pet(root, "01", tracer=None, TracerName=None), "trc- entity"),
    "two alike": (
        lambda root: write_pet(root, "01", tracer=None),
        "one PET per subject, session and tracer",
    ),
    "broken JSON": (break_json, "sub-01_trc-18FFDG_pet.json: expected JSON"),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_an_unusable_sidecar_is_one_line_with_its_path(problem: str, tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    damage, message = PROBLEMS[problem]
    damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as caught:
        find_pairs(tmp_path)
    assert "sub-01" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_one_pair_costs_no_other(tmp_path: Path) -> None:
    write_tree(tmp_path, 3)
    write_pet(tmp_path, "01", Units=None)
    (tmp_path / "sub-02/anat/sub-02_T1w.json").write_text("no JSON")
    pairs, refusals = survey(tmp_path)
    assert [pair.subject for pair in pairs] == ["03"]
    assert [(r.subject, r.tracer) for r in refusals] == [("01", "FDG"), ("02", "FDG")]
    assert [refusal.label for refusal in refusals] == ["sub-01 FDG", "sub-02 FDG"]
    assert Path(str(refusals[1].error.where)).name == "sub-02_T1w.json"


def test_a_folder_that_may_not_be_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, 3)
    closed = tmp_path / "sub-02" / "pet"
    # The administrator may read everything, so the mode of the folder is no test.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed)
    pairs, refusals = survey(tmp_path)
    assert [pair.subject for pair in pairs] == ["01", "03"]
    assert [(r.subject, str(r.error.where), r.error.found) for r in refusals] == [
        ("02", str(closed), "one that may not be read")
    ]


def test_what_pybids_does_not_read_is_not_read(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    for folder in (".git", "sourcedata", "derivatives/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "broken.json").write_text("{")
    (tmp_path / "derivatives" / "up").symlink_to(tmp_path, target_is_directory=True)
    pairs, refusals = survey(tmp_path)
    assert (len(pairs), refusals) == (1, [])


def test_no_t1w_says_where_was_looked_and_what_came_near(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_pet(tmp_path, "01")
    write_image(tmp_path / "sub-01" / "T1W.nii.gz", head(0))
    with pytest.raises(DatasetError, match=r"anat/\*_T1w.*such as sub-01/T1W.nii.gz") as caught:
        find_pairs(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: expected ")


def test_no_pet(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01")
    with pytest.raises(DatasetError, match=r"pet/\*_pet.nii.*such as sub-01/anat/sub-01_T1w"):
        find_pairs(tmp_path)


def test_no_subject_with_both(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01")
    write_pet(tmp_path, "02")
    with pytest.raises(DatasetError, match="a subject with"):
        find_pairs(tmp_path)


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no image at all"):
        find_pairs(tmp_path)
    with pytest.raises(DatasetError, match="a BIDS folder, found nothing"):
        find_pairs(tmp_path / "none")


def test_an_unknown_layout() -> None:
    with pytest.raises(ConfigError, match="one of bids"):
        find_pairs(Path(), layout="minc")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_refuses_an_empty_folder(layout: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        find_pairs(tmp_path, layout)
