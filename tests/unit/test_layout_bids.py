"""BIDS: what is paired with what, where units and frames come from, and what is refused."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ganbert.data.layouts import LayoutOptions, find_pairs, survey
from ganbert.data.recast import NO_RECAST, plan_recasts
from ganbert.data.sidecar import sidecar_of
from ganbert.errors import DatasetError
from tests.bids_tree import head, write_description, write_image, write_pet, write_t1w, write_tree


def test_pairs_are_sorted_and_carry_the_sidecar(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    write_pet(tmp_path, "01", tracer="18FAV45", Units="Bq/mL")
    first, second, third = find_pairs(tmp_path).pairs
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
    assert find_pairs(tmp_path).pairs[0].frame_start_s == (3000.0, 3300.0)


ABOVE = ["sub-99", "sub-99_ses-B_trc-18FFDG_rec-nac/ses-A", "x_desc-draft", "func/acq-1"]


@pytest.mark.parametrize("above", ABOVE)
def test_folders_above_the_dataset_say_nothing_of_its_images(above: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / above / "bids", 2)
    sidecar = sidecar_of(write_pet(root, "02", tracer="18FAV45", Units=None))
    # A key in lower case is compared with the name of the file.
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"subject": "02"}))
    (root / "sub-02/sub-02_pet.json").write_text(json.dumps({"Units": "kBq/mL"}))
    truth = root / "derivatives/phantom"
    write_description(truth, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    image = truth / "sub-01/pet/sub-01_trc-18FFDG_desc-truth_pet.nii.gz"
    write_image(image, head(1))
    found = find_pairs(root)
    assert [(pair.subject, pair.session, pair.tracer) for pair in found.pairs] == [
        ("01", None, "FDG"),
        ("02", None, "AV45"),
        ("02", None, "FDG"),
    ]
    assert found.refusals == []
    assert found.pairs[0].truth == str(image)
    assert found.pairs[1].unit == "kBq/mL"
    assert {Path(pair.mri).name for pair in found.pairs[1:]} == {"sub-02_T1w.nii.gz"}


def test_sidecars_are_inherited(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    write_pet(tmp_path, "01", Units=None)
    (tmp_path / "trc-18FFDG_pet.json").write_text(json.dumps({"Units": "g/mL"}))
    assert find_pairs(tmp_path).pairs[0].unit == "g/mL"


@pytest.mark.parametrize("name", ["florbetapir", "AV45", "Florbetapir"])
def test_the_tracer_may_stand_in_the_sidecar(name: str, tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01")
    write_pet(tmp_path, "01", tracer=None, TracerName=name)
    assert find_pairs(tmp_path).pairs[0].tracer == "AV45"


def test_the_t1w_of_the_same_session_is_preferred(tmp_path: Path) -> None:
    write_description(tmp_path)
    for session in ("A", "B"):
        write_t1w(tmp_path, "01", session)
    for session in ("B", "C"):
        write_pet(tmp_path, "01", session)
    same, other = find_pairs(tmp_path).pairs
    assert (same.session, other.session) == ("B", "C")
    assert "ses-B_T1w" in same.mri
    assert "ses-A_T1w" in other.mri
    write_t1w(tmp_path, "01")
    assert Path(find_pairs(tmp_path).pairs[1].mri).name == "sub-01_T1w.nii.gz"


def test_a_t1w_without_contrast_agent_goes_before_one_with_it(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    only = tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"
    with_agent = only.rename(only.with_name("sub-01_ce-gadolinium_T1w.nii.gz"))
    assert Path(find_pairs(tmp_path).pairs[0].mri) == with_agent  # better than none
    without = only.with_name("sub-01_run-1_T1w.nii.gz")
    shutil.copy(with_agent, without)
    assert Path(find_pairs(tmp_path).pairs[0].mri) == without


def test_subjects_without_a_partner_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tree(tmp_path, 2)
    write_t1w(tmp_path, "07")
    write_pet(tmp_path, "08", "A")
    with caplog.at_level(logging.WARNING):
        found = find_pairs(tmp_path)
    assert [pair.subject for pair in found.pairs] == ["01", "02"]
    assert [
        (entry.subject, entry.session, entry.tracer, entry.path, entry.status)
        for entry in found.refusals
    ] == [
        ("07", None, None, str(tmp_path / "sub-07"), "left out"),
        ("08", None, None, str(tmp_path / "sub-08"), "left out"),
    ]
    assert [entry.reason for entry in found.refusals] == [
        "expected a T1w and a PET, found no PET; add it",
        "expected a T1w and a PET, found no T1w; add it",
    ]
    for entry in found.refusals:
        assert f"left out: {entry.path}: {entry.reason}" in caplog.text


@pytest.mark.parametrize(
    ("image", "moved", "found"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-01_T1w.nii.gz", "sub-02.*sub-01"),
        (
            "sub-01/pet/sub-01_trc-18FFDG_pet.nii.gz",
            "sub-02/pet/sub-01_trc-18FFDG_pet.nii.gz",
            "sub-02.*sub-01",
        ),
        (
            "sub-03/ses-A/pet/sub-03_ses-A_trc-18FFDG_pet.nii.gz",
            "sub-03/ses-B/pet/sub-03_ses-A_trc-18FFDG_pet.nii.gz",
            "ses-B.*ses-A",
        ),
    ],
)
def test_an_image_in_the_folder_of_another_is_nobodys(
    image: str, moved: str, found: str, tmp_path: Path
) -> None:
    write_tree(tmp_path, 2)
    for session in ("A", "B"):
        write_t1w(tmp_path, "03", session)
        write_pet(tmp_path, "03", session)
    (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
    for place in (image, image.replace(".nii.gz", ".json")):
        if (tmp_path / place).exists():
            new = Path(moved).with_name(Path(place).name)
            shutil.move(tmp_path / place, tmp_path / new)
    survey_of = survey(tmp_path, "bids", LayoutOptions())
    (refusal,) = [each for each in survey_of.refusals if each.status == "refused"]
    assert refusal.path == str(tmp_path / moved)
    assert re.search(found, refusal.reason)
    assert (refusal.subject, refusal.session) == (None, None)
    for pair in survey_of.pairs:
        assert str(tmp_path / moved) not in (pair.mri, pair.pet)


def test_a_pet_that_cannot_be_used_does_not_stop_the_others(tmp_path: Path) -> None:
    write_tree(tmp_path, 3)
    path = write_pet(tmp_path, "02", Units=None)
    found = find_pairs(tmp_path)
    assert [pair.subject for pair in found.pairs] == ["01", "03"]
    assert [(entry.subject, entry.path) for entry in found.refusals] == [("02", str(path))]
    assert "'Units' in its JSON sidecar" in found.refusals[0].reason
    assert str(path) not in found.refusals[0].reason


def test_of_several_runs_the_first_is_taken_and_the_others_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    first = write_pet(tmp_path, "01", tracer="18FAV45_run-1")
    second = write_pet(tmp_path, "01", tracer="18FAV45_run-2")
    found = find_pairs(tmp_path)
    assert [pair.pet for pair in found.pairs if pair.tracer == "AV45"] == [str(first)]
    assert [(entry.path, entry.status) for entry in found.refusals] == [(str(second), "refused")]
    assert found.refusals[0].reason.startswith("expected one PET per subject, session and tracer")
    assert f"found also {first.name}, which goes before it" in found.refusals[0].reason


def test_two_tracers_of_one_name_are_alike(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    write_pet(tmp_path, "01", tracer=None)
    (refusal,) = find_pairs(tmp_path).refusals
    assert "one PET per subject, session and tracer" in refusal.reason


def test_a_pet_with_attenuation_correction_goes_before_one_without(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01")
    write_pet(tmp_path, "01", tracer="18FFDG_rec-nacdyn")
    corrected = write_pet(tmp_path, "01", tracer="18FFDG_rec-zz")
    assert find_pairs(tmp_path).pairs[0].pet == str(corrected)


def test_images_may_be_compressed_or_not(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    for path in tmp_path.rglob("*.nii.gz"):
        path.rename(path.with_suffix(""))
    (pair,) = find_pairs(tmp_path).pairs
    assert (Path(pair.mri).suffix, Path(pair.pet).suffix) == (".nii", ".nii")


def test_the_nearest_sidecar_has_the_last_word(tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01", "A")
    write_pet(tmp_path, "01", "A", Units=None, FrameDuration=None)
    for name, content in {
        "pet.json": {"Units": "one", "FrameDuration": [1, 1]},
        "trc-18FFDG_pet.json": {"Units": "two"},
        "trc-18FAV45_pet.json": {"Units": "of another tracer"},
        "sub-01/sub-01_trc-18FFDG_pet.json": {"Units": "three"},
        "sub-01/ses-A/sub-01_ses-A_pet.json": {"Units": "four"},
        "sub-01/sub-01_ses-B_pet.json": {"Units": "of another session"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    (pair,) = find_pairs(tmp_path).pairs
    assert (pair.unit, pair.frame_duration_s) == ("four", (1, 1))
    (tmp_path / "sub-01/ses-A/sub-01_ses-A_pet.json").unlink()
    assert find_pairs(tmp_path).pairs[0].unit == "three"
    (tmp_path / "sub-01/sub-01_trc-18FFDG_pet.json").unlink()
    assert find_pairs(tmp_path).pairs[0].unit == "two"


def write_scans(root: Path, session: str, **times: str) -> None:
    """Write the `scans.tsv` of sub-01; `times` by the suffix of the image."""
    folder = root / "sub-01" / f"ses-{session}"
    lines = [
        f"{image.relative_to(folder)}\t{times[image.name.split('_')[-1].split('.')[0]]}\n"
        for image in folder.rglob("*.nii.gz")
    ]
    file = folder / f"sub-01_ses-{session}_scans.tsv"
    file.write_text("".join(["filename\tacq_time\n", *lines]))


def test_the_t1w_of_the_nearest_date_is_taken_within_the_limit(tmp_path: Path) -> None:
    write_description(tmp_path)
    for session, day in (("A", "2001-01-01"), ("B", "2001-03-01")):
        write_t1w(tmp_path, "01", session)
        write_scans(tmp_path, session, T1w=f"{day}T10:00:00")
    write_pet(tmp_path, "01", "C")
    write_scans(tmp_path, "C", pet="2001-02-05T23:59:59.5")
    # 24 days after is nearer than 35 before.
    (pair,) = find_pairs(tmp_path).pairs
    assert "ses-B_T1w" in pair.mri
    assert find_pairs(tmp_path, options=LayoutOptions(max_days=24)).pairs == [pair]
    with pytest.raises(DatasetError, match="a T1w within 23 days, found the nearest 24 days away"):
        find_pairs(tmp_path, options=LayoutOptions(max_days=23))


@pytest.mark.parametrize("unread", ["T1w", "pet"])
def test_a_date_that_cannot_be_read_is_not_no_date(unread: str, tmp_path: Path) -> None:
    write_description(tmp_path)
    write_t1w(tmp_path, "01", "A")
    write_pet(tmp_path, "01", "B")
    for day, found in (("31.12.2001", 0), ("10:00:00", 0), ("n/a", 1), ("2001-12-31", 1)):
        days = {"T1w": "2001-12-01", "pet": "2001-12-01"} | {unread: day}
        write_scans(tmp_path, "A", T1w=days["T1w"])
        write_scans(tmp_path, "B", pet=days["pet"])
        survey_of = survey(tmp_path, "bids", LayoutOptions())
        assert len(survey_of.pairs) == found
        if not found:
            (refusal,) = survey_of.refusals
            assert refusal.path.endswith(f"_{unread}.nii.gz")
            assert "as its acq_time in scans.tsv, found something else" in refusal.reason
            assert day not in refusal.reason  # of a person


def test_body_weight_is_that_of_the_participants(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    write_pet(tmp_path, "01", InjectedRadioactivity=350, InjectionStart=0)
    table = "participant_id\tage\tweight\nsub-01\t70\t81.5\nsub-02\t71\tn/a\n"
    (tmp_path / "participants.tsv").write_text(table)
    first, second = find_pairs(tmp_path).pairs
    assert first.facts == {"InjectedRadioactivity": 350, "InjectionStart": 0, "weight": "81.5"}
    assert second.facts == {"weight": "n/a"}
    # Pounds are no number of kg, which whoever needs it will say.
    (tmp_path / "participants.json").write_text(json.dumps({"weight": {"Units": "lb"}}))
    assert find_pairs(tmp_path).pairs[0].facts["weight"] == "81.5 lb"


@pytest.mark.parametrize(
    ("heading", "options", "diagnosis"),
    [
        ("participant_id\tage\tDX", {}, "AD"),
        ("participant_id\tGroup\tdx", {}, "70"),  # before dx
        ("participant_id\tage\tclinical", {}, None),
        ("participant_id\tdx\tclinical", {"diagnosis_column": "clinical"}, "AD"),
        ("participant_id\tdx\tsimulated_diagnosis", {"diagnosis_column": "dx"}, "70"),
    ],
)
def test_the_diagnosis_is_that_of_the_participants(
    heading: str, options: dict[str, str], diagnosis: str | None, tmp_path: Path
) -> None:
    write_tree(tmp_path, 2)
    (tmp_path / "participants.tsv").write_text(f"{heading}\nsub-01\t70\tAD\nsub-02\tn/a\tN/A\n")
    first, second = find_pairs(tmp_path, options=LayoutOptions(**options)).pairs
    assert (first.diagnosis, second.diagnosis) == (diagnosis, None)


def test_a_table_of_persons_with_two_columns_of_one_name(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tweight\tweight\nsub-01\t70\t154\n")
    with pytest.raises(DatasetError, match=r"\.tsv: .*found two columns called weight; "):
        find_pairs(tmp_path)


def test_ground_truth_of_the_phantom_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    derivative = tmp_path / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    truth = derivative / "sub-01/pet/sub-01_trc-18FFDG_desc-truth_pet.nii.gz"
    dseg = derivative / "sub-01/anat/sub-01_dseg.nii.gz"
    for path in (truth, dseg):
        write_image(path, head(0))
    first, second = find_pairs(tmp_path).pairs
    assert (first.truth, first.dseg) == (str(truth), str(dseg))
    assert (second.truth, second.dseg) == (None, None)


def test_the_table_of_regions_is_inherited(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    derivative = tmp_path / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    for subject in ("01", "02"):
        write_image(derivative / f"sub-{subject}/anat/sub-{subject}_dseg.nii.gz", head(0))
    assert [pair.dseg_table for pair in find_pairs(tmp_path).pairs] == [None, None]
    # Of another segmentation, and of another place.
    for stray in (derivative / "desc-aseg_dseg.tsv", tmp_path / "dseg.tsv"):
        stray.write_text("index\tname\n")
    assert [pair.dseg_table for pair in find_pairs(tmp_path).pairs] == [None, None]
    above, beside = derivative / "dseg.tsv", derivative / "sub-01/anat/sub-01_dseg.tsv"
    for table in (above, beside):
        table.write_text("index\tname\n")
    tables = [pair.dseg_table for pair in find_pairs(tmp_path).pairs]
    assert tables == [str(beside), str(above)]


def break_json(root: Path) -> None:
    (root / "sub-01/pet/sub-01_trc-18FFDG_pet.json").write_text("{")


def only_pet(root: Path, tracer: str | None, name: str | None) -> None:
    shutil.rmtree(root / "sub-01" / "pet")
    write_pet(root, "01", tracer=tracer, TracerName=name)


PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no unit": (lambda root: write_pet(root, "01", Units=None), "'Units' in its JSON sidecar"),
    "no frames": (lambda root: write_pet(root, "01", FrameTimesStart=None), "'FrameTimesStart'"),
    "frames of two lengths": (
        lambda root: write_pet(root, "01", FrameTimesStart=[0, 1, 2], FrameDuration=[1, 1]),
        "as many frames in FrameTimesStart as in FrameDuration, found 3 and 2",
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
    "an injection in quotation marks": (
        lambda root: write_pet(root, "01", InjectionStart="-3000"), "in 'InjectionStart'"
    ),
    "another name than the file's": (
        lambda root: write_pet(root, "01", suffix="T1w"), "found another value in suffix"
    ),
    "half a character": (
        lambda root: write_pet(root, "01", Manufacturer="\ud800"), "surrogates not allowed"
    ),
    "unknown tracer": (
        lambda root: only_pet(root, "11CPIB", "PiB"),
        "one of AV45, AV1451, FDG, found 11CPIB and PiB",
    ),
    "two tracers at once": (
        lambda root: only_pet(root, "18FFDG", "florbetapir"),
        "one tracer in its name and its sidecar, found 18FFDG and florbetapir",
    ),
    "no sidecar": (
        lambda root: write_pet(root, "01").with_suffix("").with_suffix(".json").unlink(),
        "'FrameTimesStart', 'FrameDuration' in its JSON sidecar, found no sidecar",
    ),
    "no tracer": (lambda root: only_pet(root, None, None), "trc- entity"),
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


@pytest.mark.parametrize(
    ("starts", "message"),
    [([0, 1, 2], "expected 2 frames, found 3;"), ([0], "expected 2 frames, found a single frame;")],
)
def test_other_numbers_of_frames_are_for_a_rule(
    starts: list[float], message: str, tmp_path: Path
) -> None:
    write_tree(tmp_path, 1)
    path = write_pet(tmp_path, "01", FrameTimesStart=starts, FrameDuration=[1] * len(starts))
    pairs, (refusal,) = plan_recasts(find_pairs(tmp_path).pairs, NO_RECAST, {}, tmp_path)
    assert (pairs, refusal.path, refusal.label) == ([], str(path), "sub-01 FDG")
    assert refusal.reason.startswith(message)


def test_what_is_wrong_with_one_pair_costs_no_other(tmp_path: Path) -> None:
    write_tree(tmp_path, 3)
    write_pet(tmp_path, "01", Units=None)
    (tmp_path / "sub-02/anat/sub-02_T1w.json").write_text("no JSON")
    found = survey(tmp_path)
    assert [pair.subject for pair in found.pairs] == ["03"]
    refusals = sorted(found.refusals, key=lambda refusal: refusal.label)
    assert [(r.subject, r.tracer) for r in refusals] == [("01", "FDG"), ("02", "FDG")]
    assert [refusal.label for refusal in refusals] == ["sub-01 FDG", "sub-02 FDG"]
    assert Path(refusals[1].path).name == "sub-02_T1w.json"


def outside(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (path.unlink(), make(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (outside, "found a link or path that leaves it"),
        (replaced(os.mkfifo), "found no regular file"),
        (replaced(Path.mkdir), "found no regular file"),
        (replaced(lambda path: path.symlink_to("gone.json")), "found a link to nothing"),
        (replaced(lambda path: path.symlink_to(path.name)), "expected JSON"),
    ],
)
def test_a_sidecar_is_a_file_of_the_dataset(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    bids = write_tree(tmp_path / "bids", 3)
    pet = bids / "sub-01/pet/sub-01_trc-18FFDG_pet.json"
    mri = bids / "sub-02/anat/sub-02_T1w.json"
    mri.write_text("{}")
    for path in (pet, mri):
        damage(path)
    found = survey(bids)
    assert [pair.subject for pair in found.pairs] == ["03"]
    assert {refusal.path for refusal in found.refusals} == {str(pet), str(mri)}
    assert all(message in refusal.reason for refusal in found.refusals)


@pytest.mark.parametrize("name", ["pet.json", "T1w.json", "dataset_description.json"])
def test_a_file_that_many_inherit_is_an_error(name: str, tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    (tmp_path / name).write_text("{")
    with pytest.raises(DatasetError, match=f"{name}: expected JSON with an object"):
        survey(tmp_path)


def test_a_folder_that_may_not_be_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, 3)
    closed = tmp_path / "sub-02" / "pet"
    # The administrator may read everything, so the mode of the folder is no test.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed)
    found = survey(tmp_path)
    assert [pair.subject for pair in found.pairs] == ["01", "03"]
    assert [(r.subject, r.path, r.error.found) for r in found.refusals] == [
        ("02", str(closed), "one that may not be read")
    ]


def test_what_pybids_does_not_read_is_not_read(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    for folder in (".git", "sourcedata", "derivatives/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "broken.json").write_text("{")
    (tmp_path / "derivatives" / "up").symlink_to(tmp_path, target_is_directory=True)
    found = survey(tmp_path)
    assert (len(found.pairs), found.refusals) == (1, [])


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


def test_the_folder_of_a_subject_is_no_dataset(tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    with pytest.raises(DatasetError, match="the folder of one subject; give the folder above it"):
        find_pairs(tmp_path / "sub-01")


def test_a_label_is_not_cut_where_its_letters_and_digits_end(tmp_path: Path) -> None:
    write_tree(tmp_path, 2)
    shutil.copytree(tmp_path / "sub-02", tmp_path / "sub-01 b")
    for file in (tmp_path / "sub-01 b").rglob("sub-02*"):
        file.rename(file.with_name(file.name.replace("sub-02", "sub-01")))
    found = survey(tmp_path)
    assert [pair.subject for pair in found.pairs] == ["01", "02"]
    assert all("sub-01 b" not in pair.mri + pair.pet for pair in found.pairs)
    refused = {str(refusal.error) for refusal in found.refusals if refusal.status == "refused"}
    assert len(refused) == 2
    assert all("letters and digits, found sub-01 b" in line for line in refused)
