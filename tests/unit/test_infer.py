"""`infer`: which T1w it takes, what it writes, and that bad input leaves nothing behind."""

import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from ganbert.errors import CheckpointError, ConfigError, DatasetError, ImageError, OutputError
from ganbert.infer import find_scans, infer

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


def test_every_t1w_gets_its_pet(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    images = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    assert [path.name.split("_trc")[0] for path in images] == [
        "sub-01", "sub-02_ses-a", "sub-02_ses-b",
    ]  # fmt: skip
    tail = "trc-18FAV45_space-T1w_desc-synth_pet"
    assert files(tmp_path / "out") == [
        "dataset_description.json",
        f"sub-01/pet/sub-01_{tail}.json",
        f"sub-01/pet/sub-01_{tail}.nii.gz",
        f"sub-02/ses-a/pet/sub-02_ses-a_{tail}.json",
        f"sub-02/ses-a/pet/sub-02_ses-a_{tail}.nii.gz",
        f"sub-02/ses-b/pet/sub-02_ses-b_{tail}.json",
        f"sub-02/ses-b/pet/sub-02_ses-b_{tail}.nii.gz",
    ]


def test_the_image_is_xyzt_and_centred_on_the_head(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    image = nib.load(infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)[0])
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
    images = infer(bids, out, model=tiny_export, participant_labels=[label], console=QUIET)
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


def test_a_second_run_keeps_what_is_finished(bids: Path, tmp_path: Path, tiny_export: Path) -> None:
    out = tmp_path / "out"
    first = infer(bids, out, model=tiny_export, participant_labels=["01"], console=QUIET)
    before = first[0].stat().st_mtime_ns
    console = Console(file=io.StringIO(), width=300)
    images = infer(bids, out, model=tiny_export, console=console)
    assert len(images) == 3
    assert first[0].stat().st_mtime_ns == before
    assert "(1 from an earlier run)" in console.file.getvalue()


def test_an_image_without_sidecar_is_not_finished(
    bids: Path, tmp_path: Path, tiny_export: Path
) -> None:
    image = infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)[0]
    content = image.read_bytes()
    next(image.parent.glob("*.json")).unlink()
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
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(ImageError, match=r"sub-01_T1w\.nii\.gz") as caught:
        infer(bids, tmp_path / "out", model=tiny_export, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "sub-01").exists()
    assert len(list((tmp_path / "out" / "sub-02").rglob("*.nii.gz"))) == 2


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
    infer(bids, tmp_path / "out", model=tiny_export, participant_labels=["01"], console=console)
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
        infer(bids, tmp_path / "out", model=tiny_export, level="group", console=QUIET)
    assert not (tmp_path / "out").exists()
