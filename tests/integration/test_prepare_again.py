"""A second `prepare` in the same folder: by content of the inputs, and after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import ganbert.data.row_images
from ganbert.cli import app
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import Index, file_sha256
from ganbert.data.nifti import read_volume
from ganbert.errors import ImageError
from ganbert.folder_lock import LOCK_NAME
from ganbert.prepare import prepare
from tests.bids_tree import affine, head

Place = tuple[Path, Path]


def run(dataset: Path, out: Path, **changes: Any) -> Index:
    options: dict[str, Any] = {
        "mri_grid": TINY_MRI_GRID,
        "pet_grid": TINY_PET_GRID,
        "layout": "table" if dataset.is_file() else "bids",
        "jobs": 1,
        "console": Console(quiet=True),
    } | changes
    return prepare(dataset, out, **options).index


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for the lock: it names who held it last, if that was killed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_NAME
    }


def record_of(out: Path, subject: str) -> Path:
    return out / f"cache/sub-{subject}_trc-18FFDG.json"


def record(out: Path, subject: str) -> Any:
    return json.loads(record_of(out, subject).read_text())


def write_table(folder: Path, num_subjects: int = 3) -> Path:
    """Write a table of images that are not compressed: their size does not tell their content."""
    folder.mkdir()
    lines = ["subject,mri,pet,tracer,Units,FrameTimesStart,FrameDuration"]
    for subject in (f"{number:02d}" for number in range(1, num_subjects + 1)):
        frame = head(int(subject))
        nib.Nifti1Image(frame, affine()).to_filename(folder / f"{subject}_T1w.nii")
        pet = np.stack([frame, frame / 2], -1) / 300
        nib.Nifti1Pair(pet, affine()).to_filename(folder / f"{subject}_pet.hdr")
        lines.append(f"{subject},{subject}_T1w.nii,{subject}_pet.hdr,FDG,SUVR,0 60,60 60")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def change_a_voxel(path: Path, *, keep_time: bool) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    middle = len(content) // 2 // 4 * 4
    content[middle : middle + 4] = np.float32(900.0).tobytes()
    path.write_bytes(content)
    later = 0 if keep_time else 10**9
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later))


def touch_all(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, ns=(0, 10**18 + number))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are read to be conformed."""
    names = []

    def spy(path: str, *rest: Any, **options: Any) -> Any:
        names.append(Path(path).name)
        return read_volume(path, *rest, **options)

    monkeypatch.setattr(ganbert.data.row_images, "read_volume", spy)
    return names


@pytest.fixture
def place(tmp_path: Path, read: list[str]) -> Place:
    """A table of three pairs, and the folder that it is prepared in."""
    table, out = write_table(tmp_path / "data"), tmp_path / "out"
    run(table, out)
    read.clear()
    return table, out


def test_the_record_holds_the_checksums_of_the_inputs(place: Place) -> None:
    table, out = place
    names = ("02_T1w.nii", "02_pet.hdr", "02_pet.img")
    found = record(out, "02")
    assert [name for name, *_ in found["recipe"]["inputs"]] == list(names)
    assert found["input_sha256"] == [file_sha256(table.parent / name) for name in names]


def test_a_copy_of_the_dataset_is_not_done_again(place: Place, read: list[str]) -> None:
    table, out = place
    before = contents(out)
    touch_all(table.parent)
    run(table, out)
    assert not read
    after = contents(out)
    # The records alone: they hold the new times, so that the next run opens nothing.
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"cache/sub-{n}_trc-18FFDG.json" for n in ("01", "02", "03")}
    times = [time_ns for _, _, time_ns in record(out, "01")["recipe"]["inputs"]]
    assert times == [10**18 + n for n in range(3)]
    assert before.keys() == after.keys()


def test_what_was_kept_and_what_was_made_is_said(place: Place) -> None:
    table, out = place

    def said() -> list[str]:
        text = StringIO()
        run(table, out, console=Console(file=text))
        return [line for line in text.getvalue().splitlines() if "rows made" in line]

    assert said() == ["0 rows made, 3 kept from before"]
    change_a_voxel(table.parent / "02_pet.img", keep_time=False)
    assert said() == ["1 rows made, 2 kept from before"]
    shutil.rmtree(out)
    assert said() == ["3 rows made"]


@pytest.mark.parametrize("cached", [True, False])
def test_rows_that_are_gone_are_named(place: Place, cached: bool) -> None:
    table, out = place
    out = out.with_name(f"cached-{cached}")
    gone = run(table, out, cached=cached).select("test")[0].subject
    whole = table.read_text()
    kept = [line for line in whole.splitlines(keepends=True) if not line.startswith(gone)]
    assert len(kept) == 3
    table.write_text("".join(kept))
    said = StringIO()
    run(table, out, cached=cached, console=Console(file=said, width=500))
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("cache: ")]
    assert line.startswith(f"cache: kept sub-{gone}_trc-18FFDG, which the index no longer has")
    assert record_of(out, gone).exists()
    table.write_text(whole)
    said = StringIO()
    run(table, out, cached=cached, console=Console(file=said, width=500))
    assert "3 kept from before" in said.getvalue()
    assert "cache:" not in said.getvalue()


def test_what_counts_as_unchanged_is_not_opened(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, out = place
    opened = []

    def spy(path: Path) -> str:
        opened.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("ganbert.data.row_record.file_sha256", spy)
    run(table, out)
    assert not opened
    os.utime(table.parent / "02_T1w.nii", ns=(0, 0))
    run(table, out)
    assert opened == ["02_T1w.nii"]
    run(table, out)
    assert opened == ["02_T1w.nii"]


@pytest.mark.parametrize("name", ["02_T1w.nii", "02_pet.img"])
def test_another_content_at_another_time_is_done_again(
    name: str, place: Place, read: list[str]
) -> None:
    table, out = place
    before = contents(out)
    change_a_voxel(table.parent / name, keep_time=False)
    run(table, out)
    assert read == ["02_T1w.nii", "02_pet.hdr"]
    kind = name.split("_")[1].split(".")[0]
    cached = f"cache/sub-02_trc-18FFDG_{kind}.nii"
    assert contents(out)[cached] != before[cached]


def test_content_that_kept_its_time_is_seen_where_it_is_asked_for(
    place: Place, read: list[str]
) -> None:
    table, out = place
    change_a_voxel(table.parent / "02_pet.img", keep_time=True)
    before = run(table, out)
    assert not read
    after = run(table, out, verify_inputs=True)
    assert read == ["02_T1w.nii", "02_pet.hdr"]
    assert [row.pet.sha256 for row in after.rows] != [row.pet.sha256 for row in before.rows]
    assert run(table, out, verify_inputs=True) == after
    assert len(read) == 2


def test_the_option_reaches_the_rows(place: Place) -> None:
    table, out = place
    words = ["prepare", str(table), str(out), "--size", "tiny", "--layout", "table", "--jobs", "1"]
    before = contents(out)
    change_a_voxel(table.parent / "02_pet.img", keep_time=True)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert contents(out) == before
    assert CliRunner().invoke(app, [*words, "--verify-inputs"]).exit_code == 0
    assert contents(out) != before


@pytest.mark.parametrize("way", ["as it is", "touched", "verified"])
def test_a_record_of_a_version_without_checksums(way: str, place: Place, read: list[str]) -> None:
    table, out = place
    before = contents(out)
    old = record(out, "02")
    del old["input_sha256"]
    record_of(out, "02").write_text(json.dumps(old))
    if way == "touched":
        os.utime(table.parent / "02_T1w.nii", ns=(0, 0))
    run(table, out, verify_inputs=way == "verified")
    if way == "as it is":
        assert not read
        return
    # Nobody knows what it was made from: it is made again, and has checksums from then on.
    assert read == ["02_T1w.nii", "02_pet.hdr"]
    assert len(record(out, "02")["input_sha256"]) == 3
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} <= {
        "cache/sub-02_trc-18FFDG.json"
    }


def test_a_cached_image_that_was_damaged_is_mended_whatever_the_inputs(
    place: Place, read: list[str]
) -> None:
    table, out = place
    before = contents(out)
    change_a_voxel(out / "cache/sub-03_trc-18FFDG_pet.nii", keep_time=True)
    run(table, out, verify_inputs=True)
    assert read == ["03_T1w.nii", "03_pet.hdr"]
    assert contents(out) == before


def test_an_input_that_cannot_be_compared_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, out = place
    monkeypatch.setattr(
        "ganbert.data.row_record.file_sha256", lambda path: (_ for _ in ()).throw(OSError(5, "I/O"))
    )
    with pytest.raises(ImageError, match=r"01_T1w\.nii: expected a readable NIfTI, found I/O"):
        run(table, out, verify_inputs=True, strict=True)


def test_killed_at_any_write_it_goes_on_to_the_same_end(tmp_path: Path, repository: Path) -> None:
    table, outs = write_table(tmp_path / "data", 2), tmp_path / "outs"
    outs.mkdir()
    command = [sys.executable, "-m", "tests.killed_prepare", str(table), str(outs)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    whole, names = contents(outs / "whole"), result.stdout.split()
    # Two rows of two images; besides them the plan, two records, report, split and index.
    kinds = Counter(name.split("-")[0] for name in names)
    assert kinds == {"half": 4, "fsync": 10, "replace": 10}
    for name in names:
        is_whole = contents(outs / name) == whole
        assert is_whole == (name == "replace-10"), name
        run(table, outs / name)
        assert contents(outs / name) == whole, name


def test_killed_with_its_workers_it_goes_on_to_the_same_end(
    tmp_path: Path, repository: Path
) -> None:
    table, out = write_table(tmp_path / "data", 8), tmp_path / "out"
    command = [sys.executable, "-m", "ganbert.cli", "prepare", str(table), str(out)]
    command += ["--layout", "table", "--size", "tiny", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=repository, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(out.glob("cache/*_pet.nii*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.poll() is None, "ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "index.json").exists()
    run(table, out)
    run(table, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_alone_it_takes_its_workers_with_it(tmp_path: Path, repository: Path) -> None:
    table, out = write_table(tmp_path / "data", 24), tmp_path / "out"
    command = [sys.executable, "-m", "ganbert.cli", "prepare", str(table), str(out)]
    command += ["--layout", "table", "--size", "demo", "--jobs", "2"]
    with subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(out.glob("cache/*_pet.nii*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert process.poll() is None, "ended before it could be killed"
        process.kill()  # as the system does when memory runs out: it alone
        # Whoever is left holds the pipe, and would for five minutes.
        os.set_blocking(process.stderr.fileno(), False)
        deadline = time.monotonic() + 20
        while process.stderr.read() != b"":
            assert time.monotonic() < deadline, "workers outlive it"
            time.sleep(0.1)
    num_finished = len(list(out.glob("cache/*.json")))
    assert num_finished < 24
    assert not (out / "index.json").exists()


def test_two_at_once_do_not_get_in_each_others_way(tmp_path: Path, repository: Path) -> None:
    table, out = write_table(tmp_path / "data", 8), tmp_path / "out"
    command = [sys.executable, "-m", "ganbert.cli", "prepare", str(table), str(out)]
    command += ["--layout", "table", "--size", "tiny", "--jobs", "1"]
    first = subprocess.Popen(command, cwd=repository, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while first.poll() is None and not list(out.glob("cache/*_pet.nii*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)  # in the middle of its work
    before = contents(out)
    second = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert "out: expected a folder that no other `ganbert prepare` works in, found" in line
    assert contents(out) == before
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    run(table, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("existed", [False, True])
def test_a_failure_leaves_no_lock_in_a_folder_that_was_new(existed: bool, tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "data", 1), tmp_path / "out"
    (tmp_path / "data/01_T1w.nii").write_bytes(b"")
    if existed:
        out.mkdir()
    with pytest.raises(ImageError):
        run(table, out)
    assert out.exists() == existed
    # The header is sound, so that it fails in the folder; and there may be a lock that was left.
    nib.Nifti1Image(np.ones((8, 8, 8), np.float32), affine()).to_filename(
        tmp_path / "data/01_T1w.nii"
    )
    if existed:
        (out / ".lock").touch()
    with pytest.raises(ImageError, match="contrast"):
        run(table, out)
    assert out.exists() == existed
    assert not existed or not list(out.iterdir())
