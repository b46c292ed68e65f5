"""`infer`: which T1w it takes, what it writes, and that bad input leaves nothing behind."""

import io
import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from scipy.ndimage import map_coordinates

import ganbert.infer
from ganbert.bids_options import expand_lists
from ganbert.errors import CheckpointError, ConfigError, DatasetError, ImageError, OutputError
from ganbert.infer import InferOptions, infer, read_ahead
from ganbert.infer_inputs import find_scans
from ganbert.report.inference import write_subject
from ganbert.tables import read_tsv

QUIET = Console(file=io.StringIO())
# x to the right, y to anterior, z to superior; 6 mm voxels; off the world's origin.
AFFINE = np.array([[6, 0, 0, -80], [0, 6, 0, -110], [0, 0, 6, -60], [0, 0, 0, 1.0]])


def write_t1w(bids: Path, name: str, array: np.ndarray | None = None) -> Path:
    """Write a ball of tissue, or the array, as sub-.../anat/...T1w.nii.gz."""
    entities = name.split("_")
    folders = [part for part in entities if part.startswith(("sub-", "ses-"))]
    file = bids.joinpath(*folders, "anat", f"{name}.nii.gz")
    file.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        x, y, z = np.mgrid[:30, :36, :32]
        array = 500.0 * ((x - 15) ** 2 + (y - 17) ** 2 + (z - 16) ** 2 < 12**2)
    nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), file)
    return file


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    write_t1w(tmp_path / "bids", "sub-01_T1w")
    write_t1w(tmp_path / "bids", "sub-02_ses-a_T1w")
    write_t1w(tmp_path / "bids", "sub-02_ses-b_T1w")
    return tmp_path / "bids"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def images_and_sidecars(folder: Path) -> list[str]:
    return [name for name in files(folder) if "/pet/" in name]


def told(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_t1w_gets_its_pet(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    images = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).images
    assert [path.name.split("_trc")[0] for path in images] == [
        "sub-01", "sub-02_ses-a", "sub-02_ses-b",
    ]  # fmt: skip
    stems = ("sub-01/pet/sub-01", "sub-02/ses-a/pet/sub-02_ses-a", "sub-02/ses-b/pet/sub-02_ses-b")
    assert images_and_sidecars(tmp_path / "out") == [
        f"{stem}_trc-18FAV45_space-T1w_desc-synth_pet.{ending}"
        for stem in stems
        for ending in ("json", "nii.gz")
    ]
    log = next((tmp_path / "out" / "logs").glob("infer-*.log")).read_text()
    assert "sub-02 ses-b: done in" in log
    assert [name for name in files(tmp_path / "out") if "/" not in name] == [
        ".bidsignore", "dataset_description.json", "sub-01.html", "sub-02.html",
    ]  # fmt: skip


def test_the_image_is_xyzt_and_centred_on_the_head(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    image = nib.load(infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).images[0])
    assert image.shape == (
        10,
        12,
        10,
        2,
    )  # x, y, z, t of the tiny PET grid (D, H, W) = (12, 10, 10)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 16.0)
    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape[:3]) - 1) / 2)
    ball = nib.affines.apply_affine(AFFINE, [15, 17, 16])
    np.testing.assert_allclose(centre, ball, atol=4.0)


@pytest.mark.parametrize("label", ["02", "sub-02"])
def test_labels_go_with_or_without_prefix(
    label: str, bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    images = infer(
        bids,
        out,
        model=tiny_export,
        options=InferOptions(participant_labels=[label]),
        console=QUIET,
    ).images
    assert len(images) == 2
    assert not (out / "sub-01").exists()


def test_of_several_t1w_the_plainest_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("sub-01_run-2_T1w", "sub-01_acq-fast_run-1_T1w", "sub-01_run-1_T1w"):
        write_t1w(tmp_path, name)
    (tmp_path / "sub-02").mkdir()
    with caplog.at_level(logging.WARNING):
        scans = find_scans(tmp_path)
    assert [scan.path.name for scan in scans] == ["sub-01_run-1_T1w.nii.gz"]
    assert "3 T1w, sub-01_run-1_T1w.nii.gz is used" in caplog.text
    assert "no T1w, left out: sub-02" in caplog.text


def test_a_t1w_with_contrast_agent_is_the_last_choice(tmp_path: Path) -> None:
    write_t1w(tmp_path, "sub-01_ce-gadolinium_T1w")
    assert [scan.path.name for scan in find_scans(tmp_path)] == ["sub-01_ce-gadolinium_T1w.nii.gz"]
    write_t1w(tmp_path, "sub-01_rec-norm_run-1_T1w")
    (scan,) = find_scans(tmp_path)
    assert scan.path.name == "sub-01_rec-norm_run-1_T1w.nii.gz"


def test_a_second_run_keeps_what_is_finished(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    out = tmp_path / "out"
    first = infer(
        bids, out, model=tiny_export, options=InferOptions(participant_labels=["01"]), console=QUIET
    ).images
    before = first[0].stat().st_mtime_ns
    console = Console(file=io.StringIO(), width=300)
    images = infer(bids, out, model=tiny_export, console=console).images
    assert len(images) == 3
    assert first[0].stat().st_mtime_ns == before
    assert "(1 from an earlier run)" in console.file.getvalue()


def test_an_image_without_sidecar_is_not_finished(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    image = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).images[0]
    content = image.read_bytes()
    image.with_name(image.name.replace(".nii.gz", ".json")).unlink()
    image.write_bytes(b"torn")
    infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    assert image.read_bytes() == content


def test_a_folder_with_other_content_is_refused(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="empty folder"):
        infer(bids, out, model=tiny_export, console=QUIET)
    assert files(out) == ["thesis.txt"]
    with pytest.raises(OutputError, match="found a file"):
        infer(bids, out / "thesis.txt", model=tiny_export, console=QUIET)
    with pytest.raises(OutputError, match="empty folder"):
        infer(bids, bids, model=tiny_export, console=QUIET)


def test_an_output_below_a_file_is_one_line(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="found a file"):
        infer(bids, tmp_path / "file" / "x", model=tiny_export, console=QUIET)


@pytest.mark.parametrize("call", ["mkdir", "exists", "write_text"])
def test_an_output_that_may_not_be_written_is_one_line(
    bids: Path, tmp_path: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    out, allowed = tmp_path / "out", getattr(Path, call)

    def refuse(path: Path, *rest: Any, **options: Any) -> Any:
        if out in (path, *path.parents):
            raise PermissionError(13, "Permission denied")
        return allowed(path, *rest, **options)

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        infer(bids, out, model=tiny_export, console=QUIET)


def test_the_output_of_another_model_is_refused(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    infer(bids, out, model=tiny_export, console=QUIET)
    description = json.loads((out / "dataset_description.json").read_text())
    description["GanbertModel"]["WeightsSHA256"] = "0" * 64
    (out / "dataset_description.json").write_text(json.dumps(description))
    with pytest.raises(OutputError, match="this model"):
        infer(bids, out, model=tiny_export, console=QUIET)


def test_one_bad_image_does_not_cost_the_others(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    torn = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-20])
    console = Console(file=io.StringIO(), width=300)
    outcome = infer(bids, tmp_path / "out", model=tiny_export, console=console)
    (failure,) = outcome.failures
    assert len(outcome.images) == 2
    assert isinstance(failure.error, ImageError)
    assert "\n" not in str(failure)
    assert "failed: 1 of 3" in told(console)
    assert told(console).rstrip().splitlines()[-2].strip() == str(failure)
    assert not (tmp_path / "out" / "sub-01").exists()
    torn.write_bytes(whole)
    assert infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).num_kept == 2


def test_the_first_failure_may_end_it(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    (bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"torn")
    options = InferOptions(stop_on_first_crash=True)
    with pytest.raises(ImageError, match=r"sub-01_T1w\.nii\.gz"):
        infer(bids, tmp_path / "out", model=tiny_export, options=options, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_bug_at_one_image_leaves_its_traceback_and_the_others(
    bids: Path, tmp_path: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ganbert.infer.write_image

    def crash(image: Path, *rest: Any) -> None:
        if "ses-a" in image.name:
            raise MemoryError("no room")
        write(image, *rest)

    monkeypatch.setattr(ganbert.infer, "write_image", crash)
    outcome = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    (failure,) = outcome.failures
    assert failure.crash_file is not None
    assert failure.crash_file.parent == tmp_path / "out" / "logs"
    assert "MemoryError: no room" in failure.crash_file.read_text()
    assert len(outcome.images) == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((20, 20)), "3D or 4D"),
        (np.ones((6, 6, 6, 2, 2)), "3D or 4D"),
        (np.full((8, 8, 8), np.nan), "finite"),
        (np.ones((8, 8, 8)), "contrast"),
        (np.random.default_rng(0).uniform(size=(8, 8, 8, 3)), "one volume"),
    ],
)
def test_a_useless_image_is_one_line_and_no_output(
    array: np.ndarray, message: str, tmp_path: Path, tiny_export: Path
) -> None:
    file = write_t1w(tmp_path / "bids", "sub-01_T1w", array)
    with pytest.raises(ImageError, match=message) as caught:
        infer(tmp_path / "bids", tmp_path / "out", model=tiny_export, console=QUIET)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_several_bad_images_are_counted(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    for file in bids.rglob("*.nii.gz"):
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="3 that are not"):
        infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_which_of_two_affines_counts_is_said(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    path = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image = nib.load(path)
    image.set_qform(np.diag([6.0, 6.0, 6.0, 1.0]), "scanner")
    nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header).to_filename(path)
    console = Console(file=io.StringIO(), width=300)
    infer(
        bids,
        tmp_path / "out",
        model=tiny_export,
        options=InferOptions(participant_labels=["01"]),
        console=console,
    )
    assert "sub-01: sform and qform disagree by up to" in console.file.getvalue()


def test_links_to_folders_in_a_circle_do_not_keep_it_busy(bids: Path) -> None:
    for number in range(4):
        (bids / f"sub-01/anat/up{number}").symlink_to(bids, target_is_directory=True)
    assert len(find_scans(bids)) == 3


def test_a_dataset_without_t1w_says_what_is_there(tmp_path: Path, tiny_export: Path) -> None:
    with pytest.raises(DatasetError, match="no NIfTI file at all"):
        infer(tmp_path, tmp_path / "out", model=tiny_export, console=QUIET)
    shutil.move(write_t1w(tmp_path, "sub-01_T1w"), tmp_path / "brain.nii.gz")
    with pytest.raises(DatasetError, match=r"for example brain\.nii\.gz"):
        infer(tmp_path, tmp_path / "out", model=tiny_export, console=QUIET)
    with pytest.raises(DatasetError, match="BIDS folder"):
        infer(tmp_path / "absent", tmp_path / "out", model=tiny_export, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_an_unknown_subject_is_answered_with_known_ones(bids: Path) -> None:
    with pytest.raises(DatasetError, match="sub-01"):
        find_scans(bids, ["1"])


def test_a_missing_model_and_an_unknown_level_write_nothing(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    with pytest.raises(CheckpointError):
        infer(bids, tmp_path / "out", model=tmp_path / "absent", console=QUIET)
    with pytest.raises(ConfigError, match="participant"):
        infer(bids, tmp_path / "out", model=tiny_export, level="city", console=QUIET)
    with pytest.raises(ConfigError, match="expected a model"):
        infer(bids, tmp_path / "out", console=QUIET)
    with pytest.raises(ConfigError, match="--uncertainty"):
        infer(bids, tmp_path / "out", model=tiny_export, options=InferOptions(passes=99))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("above", ["sub-99", "sub-99_x/ses-A", "func"])
def test_folders_above_the_dataset_are_no_subjects_and_sessions(
    bids: Path, tmp_path: Path, above: str
) -> None:
    usual = find_scans(bids)
    assert len(usual) > 1
    place = tmp_path / "moved" / above / "bids"
    shutil.copytree(bids, place)
    assert find_scans(place) == usual


def test_sessions_and_a_filter_file_choose(bids: Path, tmp_path: Path) -> None:
    assert [scan.label for scan in find_scans(bids, session_labels=["ses-b"])] == ["sub-02 ses-b"]
    with pytest.raises(DatasetError, match="ses-a, ses-b"):
        find_scans(bids, session_labels=["c"])
    write_t1w(bids, "sub-01_acq-fast_T1w")
    filters = tmp_path / "filter.json"
    filters.write_text('{"t1w": {"acquisition": "fast"}, "bold": {}}')
    assert [s.path.name for s in find_scans(bids, filter_file=filters)] == [
        "sub-01_acq-fast_T1w.nii.gz"
    ]
    filters.write_text('{"t1w": {"session": null, "acquisition": "Query.NONE"}}')
    assert [s.path.name for s in find_scans(bids, filter_file=filters)] == ["sub-01_T1w.nii.gz"]


@pytest.mark.parametrize("above", ["plain", "ses-9/sub-99_acq-top_run-7/func"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"session": "01"}, "A"),
        ({"session": "9"}, ""),
        ({"session": 9}, ""),
        ({"session": None}, "C"),
        ({"session": ["01", None]}, "AC"),
        ({"session": ["Query.NONE", "*"]}, "ABC"),
        ({"session": "Query.OPTIONAL"}, "ABC"),
        ({"session": []}, "ABC"),
        ({"subject": "01"}, "AB"),
        ({"subject": ["99", "02"]}, "C"),
        ({"acquisition": "*"}, "B"),
        ({"acquisition": "Query.NONE"}, "AC"),
        ({"acquisition": ["fast", "top"]}, "B"),
        ({"run": 2}, "B"),
        ({"run": "02"}, "B"),
        ({"run": ["2", None]}, "ABC"),
        ({"run": "two"}, ""),
        ({"run": 7}, ""),
        ({"datatype": "anat"}, "ABC"),
        ({"datatype": "func"}, ""),
        ({"suffix": "T2w"}, ""),
        ({"extension": ".nii.gz"}, "ABC"),
        ({"extension": "nii"}, ""),
        ({"session": "*", "acquisition": None, "extension": ["nii.gz", "nii"]}, "A"),
    ],
)
def test_a_filter_goes_by_what_stands_in_the_dataset(
    asked: dict[str, Any], expected: str, above: str, tmp_path: Path
) -> None:
    names = {
        "A": "sub-01_ses-01_T1w",
        "B": "sub-01_ses-02_acq-fast_run-02_T1w",
        "C": "sub-02_T1w",
    }
    study, filters = tmp_path / above / "study", tmp_path / "filter.json"
    for name in names.values():
        write_t1w(study, name)
    filters.write_text(json.dumps({"t1w": asked}))
    if not expected:
        with pytest.raises(DatasetError, match="none that passes the filter"):
            find_scans(study, filter_file=filters)
        return
    found = [scan.path.name for scan in find_scans(study, filter_file=filters)]
    assert found == [f"{names[letter]}.nii.gz" for letter in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{torn", "no JSON"),
        ("[]", "found a list; write an object"),
        ("[1]", "found a list; write an object"),
        ("3", "found a number; write an object"),
        ('{"t1w": [1]}', "found a list as t1w; give it an object"),
        ('{"T1w": {}}', "no filter for t1w"),
        ('{"t1w": {"acquisitoin": "x"}}', "did you mean 'acquisition'"),
        ('{"t1w": {"run": {"a": 1}}}', "a value of run"),
    ],
)
def test_a_filter_file_that_says_nothing_is_one_line(
    text: str, message: str, bids: Path, tmp_path: Path
) -> None:
    write_t1w(bids, "sub-01_acq-fast_T1w")
    (tmp_path / "filter.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        find_scans(bids, filter_file=tmp_path / "filter.json")
    assert "\n" not in str(caught.value)


def test_overwrite_computes_again_and_work_dir_keeps_what_the_network_saw(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    options = InferOptions(participant_labels=["01"], passes=0, nprocs=2, omp_nthreads=1)
    out, work = tmp_path / "out", tmp_path / "work"
    first = infer(bids, out, model=tiny_export, options=options, console=QUIET).images[0]
    before = first.stat().st_mtime_ns
    again = replace(options, overwrite=True, work_dir=work)
    assert infer(bids, out, model=tiny_export, options=again, console=QUIET).num_kept == 0
    assert first.stat().st_mtime_ns > before
    logs = sorted((out / "logs").glob("infer-*.log"))
    assert ["done in" in log.read_text() for log in logs] == [True, True]
    seen = nib.load(work / "sub-01" / "sub-01_desc-conformed_T1w.nii.gz")
    assert seen.shape == (32, 32, 32)
    assert not list(out.rglob("*synthstd*"))
    # Asked for later, it is made then.
    later = replace(options, passes=2)
    assert infer(bids, out, model=tiny_export, options=later, console=QUIET).num_kept == 0
    assert len(list(out.rglob("*synthstd*"))) == 2
    assert "test-time" in (out / "logs" / "CITATION.md").read_text()
    assert "no error bar" in (out / "sub-01.html").read_text()
    # And goes with the image that it belongs to.
    infer(bids, out, model=tiny_export, options=again, console=QUIET)
    assert not list(out.rglob("*synthstd*"))
    assert not list(out.rglob("*std*"))
    assert "no error bar" not in (out / "sub-01.html").read_text()


def test_the_page_of_a_subject_shows_flags_and_pictures(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    image = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET).images[0]
    page = (tmp_path / "out" / "sub-02.html").read_text()
    assert page.count("data:image/jpeg;base64") == 2 * 3
    assert "Synthetic, for research only" in page
    assert "sub-02 ses-a" in page
    assert "sub-02 ses-b" in page
    assert str(tmp_path) not in page
    sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["GanbertQuality"]["Flags"]
    for flag in sidecar["GanbertQuality"]["Flags"]:
        assert flag["Text"][:20] in page


def test_a_plane_near_the_origin_is_not_at_minus_zero(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    options = InferOptions(participant_labels=["01"])
    infer(bids, tmp_path / "out", model=tiny_export, options=options, console=QUIET)
    (file,) = (tmp_path / "out" / "sub-01" / "figures").glob("*.json")
    about = json.loads(file.read_text()) | {"point_mm": [-0.3, 0.2, -1.6]}
    file.write_text(json.dumps(about))
    page = write_subject(tmp_path / "out", "sub-01", {}).read_text()
    assert "x = 0, y = 0, z = -2 mm" in page


def test_where_the_dataset_departs_from_bids_is_said(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    for options, said in ((InferOptions(), True), (InferOptions(check_names=False), False)):
        console = Console(file=io.StringIO(), width=300)
        infer(bids, tmp_path / "out", model=tiny_export, options=options, console=console)
        assert ("no dataset_description.json" in told(console)) == said


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sub-01 b_T1w", "found sub-01 b"),
        ("sub-01-b_T1w", "found sub-01-b"),
        ("sub-\N{LATIN SMALL LETTER U WITH DIAERESIS}_T1w", "a label of letters and digits"),
        ("sub-01_ses-a b_T1w", "found ses-a b"),
    ],
)
def test_a_label_that_is_none_makes_nobody_another_person(
    name: str, found: str, bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    file = write_t1w(bids, name)
    outcome = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    assert len(outcome.images) == 3
    (failure,) = outcome.failures
    assert str(file) in str(failure)
    assert found in str(failure)
    sidecar = json.loads(outcome.images[0].with_suffix("").with_suffix(".json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]


def test_a_t1w_in_the_folder_of_another_person_is_nobodys(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    file = write_t1w(bids, "sub-03_T1w")
    file.rename(bids / "sub-01" / "anat" / file.name)
    console = Console(file=io.StringIO(), width=300)
    outcome = infer(bids, tmp_path / "out", model=tiny_export, console=console)
    assert len(outcome.images) == 3
    assert "expected a name with sub-01, as its folder has, found sub-03" in told(console)
    options = InferOptions(participant_labels=["04 x"])
    write_t1w(bids, "sub-04 x_T1w")
    with pytest.raises(ImageError, match="whose image it is"):
        infer(bids, tmp_path / "none", model=tiny_export, options=options, console=QUIET)
    assert not (tmp_path / "none").exists()


def test_the_next_images_are_read_while_one_is_taken() -> None:
    begun: list[int] = []
    seen = []

    def read(number: int) -> int:
        begun.append(number)
        return number * number

    for item, future in read_ahead(read, range(5), 1):
        seen.append((item, future.result()))
        deadline = time.monotonic() + 60
        while len(begun) < min(item + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(begun) == min(item + 2, 5)
    assert seen == [(n, n * n) for n in range(5)]


def test_lists_after_one_option_are_spread() -> None:
    args = "in out participant --participant-label 01 02 --model m --session-label a b -w w".split()
    assert expand_lists(args, set(), 3) == (
        "in out participant --participant-label 01 --participant-label 02 --model m "
        "--session-label a --session-label b -w w".split()
    )
    before = "--participant-label 01 in out participant".split()
    assert expand_lists(before, set(), 3) == before


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    """A dataset with one subject and its regions."""
    bids = tmp_path / "segmented"
    write_t1w(bids, "sub-01_T1w")
    folder = bids / "derivatives" / "seg" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    labels = np.zeros((30, 36, 32), np.int16)
    labels[10:15, 12:22, 12:20], labels[15:20, 12:22, 12:20] = 1, 2
    labels[:2] = 3  # beyond the field of view
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "sub-01_dseg.nii.gz")
    table = "index\tname\n0\tBackground\n1\tleft\n2\tright\n3\tfar\n4\tabsent\n"
    (bids / "derivatives" / "seg" / "dseg.tsv").write_text(table)
    return bids


def test_the_group_has_regional_values_and_a_page(
    segmented: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    image = infer(segmented, out, model=tiny_export, console=QUIET).images[0]
    infer(segmented, out, level="group", console=QUIET)
    lines = read_tsv(out / "group_regions.tsv")
    assert [(line["region"], line["frame"]) for line in lines] == [
        (region, frame) for region in ("left", "right", "far") for frame in "12"
    ]
    pet = nib.load(image)
    voxels = nib.affines.apply_affine(
        np.linalg.inv(pet.affine) @ AFFINE,
        np.argwhere(np.ones((5, 10, 8))) + np.array([10, 12, 12]),
    )
    expected = map_coordinates(pet.get_fdata()[..., 1], voxels.T, order=1, mode="nearest").mean()
    assert float(lines[1]["mean"]) == pytest.approx(expected, rel=1e-3)
    assert float(lines[0]["volume_ml"]) == pytest.approx(5 * 10 * 8 * 0.216)
    assert lines[0]["inside"] == "1"
    assert float(lines[4]["inside"]) < 1
    (line,) = read_tsv(out / "group_pet.tsv")
    assert (line["subject"], line["session"], line["tracer"]) == ("sub-01", "n/a", "AV45")
    assert line["burden_suvr"] == "n/a"
    page = (out / "group_pet.html").read_text()
    assert 'href="sub-01.html"' in page
    assert "sub-01/figures/" in page


def test_the_group_names_a_flag_once_with_its_number(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    options = InferOptions(participant_labels=["01"])
    (image,) = infer(bids, out, model=tiny_export, options=options, console=QUIET).images
    file = image.with_suffix("").with_suffix(".json")
    sidecar = json.loads(file.read_text())
    names = ("intensity", "contrast", "intensity")
    flags = [{"Name": name, "Severity": "warning", "Text": "..."} for name in names]
    sidecar["GanbertQuality"]["Flags"] = flags
    file.write_text(json.dumps(sidecar))
    infer(bids, out, level="group", console=QUIET)
    page = (out / "group_pet.html").read_text()
    assert page.count("warning: intensity") == 1
    assert "warning: intensity (2)<" in page
    assert "warning: contrast<" in page


def test_the_group_says_which_images_and_labels_have_no_regional_values(
    segmented: Path, tmp_path: Path, tiny_export: Path
) -> None:
    out = tmp_path / "out"
    for label in ("02", "03"):
        write_t1w(segmented, f"sub-{label}_T1w")
    file = next(segmented.rglob("*_dseg.nii.gz"))
    image = nib.load(file)
    labels = np.asarray(image.dataobj).copy()
    labels[20:22, 12:14, 12], labels[25, 12, 12] = 7, 9
    nib.save(nib.Nifti1Image(labels, image.affine), file)
    other = segmented / "derivatives" / "seg" / "sub-03" / "anat" / "sub-03_dseg.nii.gz"
    other.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.where(labels == 9, 9, 0).astype(np.int16), image.affine), other)
    infer(segmented, out, model=tiny_export, console=QUIET)
    console = Console(file=io.StringIO(), width=300)
    infer(segmented, out, level="group", console=console)
    names = "labels of sub-01_dseg.nii.gz that its table does not name are left out: 7, 9 (5 voxels"
    of_two = "no regional values of sub-02: no segmentation (_dseg with the table of its regions)"
    of_three = "no regional values of sub-03: no voxel of sub-03_dseg.nii.gz has a label that"
    page = (out / "group_pet.html").read_text()
    for text in (names, of_two, of_three):
        assert f"warning: {'sub-01: ' if text is names else ''}{text}" in told(console)
        assert text in page
    assert "3 images, 1 with regional values" in told(console)
    about = json.loads((out / "group_regions.json").read_text())
    assert list(about["ImagesWithoutRegions"]) == ["sub-02", "sub-03"]
    assert about["VoxelsOfUnnamedLabels"] == {"sub-01": {"7": 4, "9": 1}, "sub-03": {"9": 1}}
    columns = read_tsv(out / "group_regions.tsv")[0].keys()
    assert {name for name in about if name.islower()} <= columns
    # Gone with what it is about.
    shutil.rmtree(segmented / "derivatives")
    infer(segmented, out, level="group", console=QUIET)
    assert not list(out.glob("group_regions.*"))


def test_the_group_needs_images(tmp_path: Path, bids: Path, tiny_export: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        infer(bids, tmp_path / "out", level="group", console=QUIET)
    infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    options = InferOptions(participant_labels=["03"])
    with pytest.raises(DatasetError, match="`participant` first"):
        infer(bids, tmp_path / "out", level="group", options=options, console=QUIET)
    infer(bids, tmp_path / "out", level="group", console=QUIET)
    assert not (tmp_path / "out" / "group_regions.tsv").exists()
