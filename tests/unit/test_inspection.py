"""`ganbert inspect` says what the index says, and finds a file that has changed."""

import re
from pathlib import Path

import pytest

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import CachedImage, Index, Row, Split, file_sha256, load_index, save_index
from ganbert.errors import DatasetError
from ganbert.inspection import inspect_prepared

IDENTITY = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))


def make_image(folder: Path, name: str) -> CachedImage:
    path = folder / name
    path.write_text(name)
    return CachedImage(
        path=name,
        affine=IDENTITY,
        sha256=file_sha256(path),
        mean=1.0,
        std=0.5,
        minimum=0.0,
        maximum=3.25,
        p999=2.75,
    )


def make_row(folder: Path, subject: str, split: Split) -> Row:
    return Row(
        subject=subject,
        session=None,
        tracer="AV45",
        unit="SUVR",
        split=split,
        frame_start_s=(0.0, 300.0),
        frame_duration_s=(300.0, 300.0),
        mri=make_image(folder, f"{subject}_T1w.nii"),
        pet=make_image(folder, f"{subject}_pet.nii"),
        truth=None,
        dseg=None,
        sources=(),
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    splits: tuple[tuple[str, Split], ...] = (("01", "train"), ("02", "train"), ("03", "test"))
    index = Index(
        schema_version=1,
        mri_grid=TINY_MRI_GRID,
        pet_grid=TINY_PET_GRID,
        intensity_ratio={"AV45": 0.0125},
        rows=tuple(make_row(tmp_path, subject, split) for subject, split in splits),
        versions={},
    )
    save_index(index, tmp_path)
    return tmp_path


def test_shows_rows_grids_and_intensities(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_prepared(prepared)
    shown = capsys.readouterr().out
    assert "32 x 32 x 32 voxels of 8 x 8 x 8 mm" in shown
    assert "AV45 0.0125" in shown
    assert "2 (2)" in shown
    assert "0 (0)" in shown
    assert "2.75" in shown


def test_a_subject_with_two_tracers_is_one_subject(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_prepared(prepared)
    assert " all " not in capsys.readouterr().out
    index = load_index(prepared)
    again = [row.model_copy(update={"tracer": "FDG"}) for row in index.rows[:2]]
    save_index(index.model_copy(update={"rows": (*index.rows, *again)}), prepared)
    inspect_prepared(prepared)
    # Of each name the first line, which is that of the upper table.
    shown = reversed(capsys.readouterr().out.splitlines())
    lines = {line[1:7].strip(): line for line in shown}
    cells = {name: re.findall(r"\d+ \(\d+\)", lines[name]) for name in ("FDG", "all")}
    assert cells == {"FDG": ["2 (2)", "0 (0)", "0 (0)"], "all": ["4 (2)", "0 (0)", "1 (1)"]}


def test_verify_accepts_untouched_files(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_prepared(prepared, verify=True)
    assert "6 files match" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [lambda p: p.write_text("x"), Path.unlink], ids=["edit", "delete"]
)
def test_verify_names_the_changed_file(prepared: Path, change: object) -> None:
    change(prepared / "02_pet.nii")
    with pytest.raises(DatasetError, match=r"02_pet\.nii: expected SHA-256"):
        inspect_prepared(prepared, verify=True)
