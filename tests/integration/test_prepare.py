"""From a tiny BIDS tree to cache and index, again, interrupted, and with every bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import ganbert.data.row_images
from ganbert.cli import app
from ganbert.config import GRIDS, TINY_MRI_GRID, TINY_PET_GRID, Grid
from ganbert.data.index import Index, file_sha256, load_index
from ganbert.data.layouts import LAYOUTS, Found, LayoutOptions
from ganbert.data.nifti import read_cache, read_volume
from ganbert.data.recast import RecastOptions
from ganbert.errors import ConfigError, DatasetError, GanbertError, ImageError, OutputError
from ganbert.prepare import prepare
from tests.bids_tree import (
    affine,
    head,
    write_description,
    write_image,
    write_pet,
    write_t1w,
    write_tree,
)

COARSER = Grid(shape=(10, 8, 8), spacing_mm=(20.0, 20.0, 20.0))


def run(bids: Path, out: Path, **changes: Any) -> Index:
    options: dict[str, Any] = {
        "mri_grid": TINY_MRI_GRID,
        "pet_grid": TINY_PET_GRID,
        "jobs": 1,
        "console": Console(quiet=True),
    } | changes
    return prepare(bids, out, **options).index


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("bids"), 4)


@pytest.fixture(scope="module")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    run(tree, out, jobs=2)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_index_describes_what_lies_there(prepared: Path) -> None:
    index = load_index(prepared)
    assert [row.subject for row in index.rows] == ["01", "02", "03", "04"]
    assert sorted(row.split for row in index.rows) == ["test", "train", "train", "val"]
    for row in index.rows:
        assert row.sources[0] == f"sub-{row.subject}/anat/sub-{row.subject}_T1w.nii.gz"
        mri, pet = (read_cache(prepared / image.path, row.unit) for image in (row.mri, row.pet))
        assert mri.array.shape == (1, *TINY_MRI_GRID.shape)
        assert pet.array.shape == (2, *TINY_PET_GRID.shape)
        for image, volume in ((row.mri, mri), (row.pet, pet)):
            assert file_sha256(prepared / image.path) == image.sha256
            assert image.mean == pytest.approx(volume.array.mean(), rel=1e-5)
            assert image.std == pytest.approx(volume.array.std(), rel=1e-5)
            assert image.maximum == volume.array.max()
            np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
        # The second frame of the fixture is half of the first.
        np.testing.assert_allclose(pet.array[1], pet.array[0] / 2, atol=1e-5)
    assert set(index.versions) == {"ganbert", "nibabel", "numpy", "scipy", "python"}


def test_the_cache_opens_in_any_viewer_in_the_right_place(prepared: Path) -> None:
    row = load_index(prepared).rows[0]
    volume = read_volume(prepared / row.mri.path)
    centre = np.average(np.argwhere(volume.array[0] >= 0), axis=0, weights=volume.array[0].ravel())
    # The fixture's head is a ball around (0, 0, 0) mm; voxels are 8 mm.
    np.testing.assert_allclose((volume.affine @ [*centre, 1])[:3], 0.0, atol=4.0)
    assert nib.load(prepared / row.mri.path).get_data_dtype() == np.uint8


def test_names_of_regions_are_kept(tmp_path: Path) -> None:
    bids = write_tree(tmp_path / "bids", 3)
    derivative = bids / "derivatives" / "phantom"
    write_description(derivative, DatasetType="derivative", GeneratedBy=[{"Name": "phantom"}])
    for subject in ("01", "02", "03"):
        write_image(
            derivative / f"sub-{subject}/anat/sub-{subject}_dseg.nii.gz", (head(0) > 0).astype("u1")
        )
    (derivative / "dseg.tsv").write_text("index\tname\n2\tfrontal\n1\tpons\n")
    run(bids, tmp_path / "out")
    assert load_index(tmp_path / "out").region_names == {1: "pons", 2: "frontal"}
    (derivative / "sub-02/anat/sub-02_dseg.tsv").write_text("index\tname\n1\tthalamus\n")
    with pytest.raises(DatasetError, match=r"sub-02_dseg\.tsv: expected 1 to be 'pons'"):
        run(bids, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_index_without_names_is_that_of_the_versions_before_them(prepared: Path) -> None:
    content = json.loads((prepared / "index.json").read_text())
    assert content.keys().isdisjoint({"region_names", "frames", "reference"})
    assert load_index(prepared).region_names == {}


def test_the_ratio_comes_from_the_training_rows(prepared: Path) -> None:
    index = load_index(prepared)
    ratio = index.intensity_ratio["FDG"]
    bright = [
        (row.pet.p999 - ratio * row.mri.mean) / (ratio * row.mri.std)
        for row in index.select("train")
    ]
    assert np.median(bright) == pytest.approx(9.0, rel=0.05)


def test_doing_it_again_changes_nothing_and_conforms_nothing(
    tree: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(prepared)
    monkeypatch.setattr(ganbert.data.row_images, "read_volume", None)
    run(tree, prepared)
    assert contents(prepared) == before


def test_two_jobs_write_the_same_bytes_as_one(tree: Path, prepared: Path, tmp_path: Path) -> None:
    run(tree, tmp_path / "out", jobs=1)
    assert contents(tmp_path / "out") == contents(prepared)


def test_only_what_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids, out = write_tree(tmp_path / "bids", 3), tmp_path / "out"
    before = run(bids, out)
    write_image(bids / "sub-02/anat/sub-02_T1w.nii.gz", 2 * head(7) + head(8))
    (out / before.rows[2].pet.path).write_bytes(b"damaged")
    (out / "cache" / "left.nii.tmp").write_bytes(b"half")
    read = []

    def spy(path: str, *rest: Any, **options: Any) -> Any:
        read.append(Path(path).name.split("_")[0])
        return read_volume(path, *rest, **options)

    monkeypatch.setattr(ganbert.data.row_images, "read_volume", spy)
    after = run(bids, out)
    assert set(read) == {"sub-02", "sub-03"}
    assert after.rows[0] == before.rows[0]
    assert after.rows[1].mri.sha256 != before.rows[1].mri.sha256
    assert after.rows[2] == before.rows[2]
    assert not list(out.rglob("*.tmp"))


def test_an_interrupted_run_goes_on_to_the_same_end(
    tree: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: str, *rest: Any, **options: Any) -> Any:
        if "sub-03" in str(path):
            raise KeyboardInterrupt
        return read_volume(path, *rest, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ganbert.data.row_images, "read_volume", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tree, out)
    assert not (out / "index.json").exists()
    assert len(list((out / "cache").glob("*.json"))) == 2
    run(tree, out)
    assert contents(out) == contents(prepared)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "--seed 1, found one made with --seed 0;"),
        ({"pet_grid": COARSER}, "pet_grid .* mm, found one made with --size tiny;"),
        ({"mri_grid": COARSER}, "mri_grid .* mm, found one made with --size tiny;"),
        (
            dict(zip(("mri_grid", "pet_grid"), GRIDS["demo"], strict=True)),
            "--size demo, found one made with --size tiny;",
        ),
        ({"cached": False}, "--no-cache, found one made with --cache;"),
        (
            {"recast": RecastOptions("as-is", "SUVR", ("pons", "cerebellum"))},
            "--unit SUVR, --reference-region pons --reference-region cerebellum, "
            "found one made with no --unit, no --reference-region;",
        ),
        ({"pairing": LayoutOptions(30)}, "--max-days 30, found one made with --max-days 365;"),
    ],
)
def test_other_options_in_the_same_folder_are_named(
    changes: dict[str, Any], name: str, tree: Path, prepared: Path
) -> None:
    before = contents(prepared)
    with pytest.raises(OutputError, match=f"expected a folder made with {name}"):
        run(tree, prepared, **changes)
    assert contents(prepared) == before


def test_another_dataset_in_the_same_folder_is_refused(prepared: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, 1)
    with pytest.raises(OutputError, match="found one made with dataset"):
        run(tmp_path, prepared)


def test_a_folder_that_is_not_empty_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="a folder that is not empty"):
        run(tree, tmp_path)
    with pytest.raises(OutputError, match="found a file"):
        run(tree, tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_an_output_among_the_subjects_is_refused(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "bids"))
    for place in (copy / "out", copy / "sub-01", copy, tmp_path / "x" / ".." / "bids" / "out"):
        with pytest.raises(OutputError, match=r"outside of the dataset, or below its derivatives/"):
            run(copy, place)
    assert not (copy / "out").exists()
    first = run(copy, copy / "derivatives" / "prepared")
    assert run(copy, tmp_path / "other").rows == first.rows


def test_an_output_below_a_file_is_one_line(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        run(tree, tmp_path / "file" / "x")


@pytest.mark.parametrize("call", ["mkdir", "exists", "write_text", "write_bytes"])
def test_an_output_that_may_not_be_written_is_one_line(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    out, allowed = tmp_path / "out", getattr(Path, call)

    def refuse(path: Path, *rest: Any, **options: Any) -> Any:
        if out in (path, *path.parents):
            raise PermissionError(13, "Permission denied")
        return allowed(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(OutputError, match="Permission denied"):
            run(tree, out)
    assert not out.exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_registered_layout_is_reached_by_its_name(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Spy:
        def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
            asked.append(root)
            raise DatasetError(root, expected="a pair", found="none", remedy="add one")

    monkeypatch.setitem(LAYOUTS, layout, Spy())
    (root := tmp_path / "dataset").mkdir()
    options = ["prepare", str(root), str(tmp_path / "out"), "--layout", layout]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, DatasetError)
    assert asked == [root]


def test_another_layout_in_the_same_folder_is_named(
    tree: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYOUTS, "other", LAYOUTS["bids"])
    with pytest.raises(OutputError, match="--layout other, found one made with --layout bids"):
        run(tree, prepared, layout="other")
    with pytest.raises(ConfigError, match="one of bids, adni, table, other"):
        run(tree, prepared, layout="nonsense")


@pytest.mark.parametrize(
    "changes", [{"jobs": 0}, {"fractions": (0.5, 0.5, 0.5)}, {"fractions": (0.0, 0.5, 0.5)}]
)
def test_options_without_sense(changes: dict[str, Any], tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run(tree, tmp_path / "out", **changes)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replace(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: write_image(path, array)


def far_away(path: Path) -> None:
    matrix = affine()
    matrix[0, 3] += 5000
    nib.Nifti1Image(nib.load(path).get_fdata(dtype=np.float32), matrix).to_filename(path)


BAD_T1W: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "readable NIfTI"),
    "2D": (replace(np.ones((16, 16), np.float32)), "3D or 4D"),
    "5D": (replace(np.ones((8, 8, 8, 1, 2), np.float32)), "3D or 4D"),
    "two volumes": (replace(np.stack([head(0), head(1)], -1)), "one volume"),
    "NaN": (replace(np.full((8, 8, 8), np.nan, np.float32)), "NaN"),
    "constant": (replace(np.ones((8, 8, 8), np.float32)), "contrast"),
}
BAD_PET: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "readable NIfTI"),
    "2D": (replace(np.ones((16, 16), np.float32)), "3D or 4D"),
    "5D": (replace(np.ones((8, 8, 8, 1, 2), np.float32)), "3D or 4D"),
    "NaN": (replace(np.full((8, 8, 8, 2), np.nan, np.float32)), "NaN"),
    "three frames": (
        replace(np.ones((8, 8, 8, 3), np.float32)),
        r"2 frames, as its sidecar \(or series\) says",
    ),
    "elsewhere": (far_away, "overlaps with sub-01_T1w"),
}
BAD = [(write_t1w, name, *case) for name, case in BAD_T1W.items()]
BAD += [(write_pet, name, *case) for name, case in BAD_PET.items()]


@pytest.mark.parametrize(
    ("write", "name", "damage", "message"),
    [
        pytest.param(*case, id=f"{case[0].__name__.removeprefix('write_')}-{case[1]}")
        for case in BAD
    ],
)
def test_an_unusable_image_is_named_and_nothing_stays(
    write: Callable[[Path, str], Path],
    name: str,
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
) -> None:
    bids, out = write_tree(tmp_path / "bids", 1), tmp_path / "out"
    path = write(bids, "01")
    damage(path)
    with pytest.raises((ImageError, DatasetError), match=message) as caught:
        run(bids, out)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_the_error_of_a_worker_arrives_with_its_file(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 3), tmp_path / "out"
    path = write_t1w(bids, "03")
    truncate(path)
    with pytest.raises(ImageError, match=r"sub-03_T1w\.nii\.gz: expected a readable NIfTI"):
        run(bids, out, jobs=2, strict=True)
    assert not (out / "index.json").exists()
    assert not list(out.rglob("*.tmp"))
    # Mended, the next run goes on in the same folder.
    write_t1w(bids, "03")
    assert len(run(bids, out).rows) == 3


def test_headers_are_checked_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bids, out = write_tree(tmp_path / "bids", 3), tmp_path / "out"
    write_image(bids / "sub-03/anat/sub-03_T1w.nii.gz", np.ones((16, 16), np.float32))
    monkeypatch.setattr(ganbert.data.row_images, "read_volume", None)
    with pytest.raises(ImageError, match=r"sub-03_T1w\.nii\.gz: expected a 3D or 4D"):
        run(bids, out, strict=True)
    assert not out.exists()


def test_no_t1w_and_no_pet_leave_no_folder(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 1), tmp_path / "out"
    for folder, message in (("pet", "_pet.nii"), ("anat", "_T1w.nii")):
        shutil.rmtree(write_tree(bids, 1) / "sub-01" / folder)
        with pytest.raises(GanbertError, match=message):
            run(bids, out)
    assert not out.exists()


def test_nothing_personal_is_copied(tmp_path: Path) -> None:
    bids, out = write_tree(tmp_path / "bids", 1), tmp_path / "out"
    path = bids / "sub-01/anat/sub-01_T1w.nii.gz"
    image = nib.load(path)
    image.header["descrip"] = b"Jane Doe"
    nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header).to_filename(path)
    sidecar = bids / "sub-01/pet/sub-01_trc-18FFDG_pet.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"PatientName": "Jane Doe"}))
    run(bids, out)
    assert not any(b"Jane" in content for content in contents(out).values())
