"""A second `prepare` by a version that refuses more: what the first one accepted is asked again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

import ganbert.data.layout_bids
import ganbert.data.nifti_header
import ganbert.data.recast
import ganbert.data.row_images
import ganbert.data.row_record
import ganbert.data.units
from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.recast import RecastOptions
from ganbert.prepare import Prepared, prepare
from tests.bids_tree import affine, head, write_image, write_tree

Patch = Callable[..., None]


def run(dataset: Path, **changes: Any) -> Prepared:
    options: dict[str, Any] = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID, "jobs": 1}
    options |= {"console": Console(quiet=True)} | changes
    return prepare(dataset, dataset.with_name("out"), **options)


def pet_of(dataset: Path, subject: str) -> Path:
    return dataset / f"sub-{subject}/pet/sub-{subject}_trc-18FFDG_pet.nii.gz"


def mend_sidecars(dataset: Path, subject: str = "*", **keys: object) -> None:
    for path in dataset.glob(f"sub-{subject}/pet/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def milliseconds(dataset: Path, patch: Patch) -> dict[str, Any]:
    mend_sidecars(dataset, "02", FrameTimesStart=[1.8e6, 2.4e6], FrameDuration=[6e5, 6e5])
    patch(ganbert.data.recast, "_check_activity", lambda *_: None)
    return {}


def grams_for_kilograms(dataset: Path, patch: Patch) -> dict[str, Any]:
    dose = {"InjectedRadioactivity": 2e8, "InjectedRadioactivityUnits": "Bq"}
    decay = {"ImageDecayCorrected": True, "ImageDecayCorrectionTime": 0, "InjectionStart": 0}
    mend_sidecars(dataset, Units="Bq/mL", **dose, **decay)
    weights = (f"sub-{n:02d}\t{70e3 if n == 2 else 70}\n" for n in range(1, 5))
    (dataset / "participants.tsv").write_text("participant_id\tweight\n" + "".join(weights))
    patch(ganbert.data.units, "_WEIGHT_KG", (1.0, 1e6))
    return {"recast": RecastOptions(unit="SUV")}


def far_away(dataset: Path, patch: Patch) -> dict[str, Any]:
    there = affine()
    there[:3, 3] += 2e5
    for path in (pet_of(dataset, "02"), dataset / "sub-02/anat/sub-02_T1w.nii.gz"):
        image = nib.load(path)
        nib.Nifti1Image(np.asarray(image.dataobj), there).to_filename(path)
    patch(ganbert.data.nifti_header, "check_extent", lambda *_: None)
    return {}


def of_another_person(dataset: Path, patch: Patch) -> dict[str, Any]:
    for path in (dataset / "sub-02/pet").iterdir():
        path.rename(path.with_name(path.name.replace("sub-02", "sub-09")))
    patch(ganbert.data.layout_bids, "contradiction", lambda *_: None)
    return {}


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (milliseconds, "frames in the"),
        (grams_for_kilograms, "1 to 500 kg"),
        (far_away, "near the scanner's centre"),
        (of_another_person, "its folder"),
    ],
)
def test_what_needs_no_voxel_is_asked_of_kept_rows_too(
    make: Callable[[Path, Patch], dict[str, Any]], found: str, tmp_path: Path
) -> None:
    dataset = write_tree(tmp_path / "bids", 4)
    with pytest.MonkeyPatch.context() as earlier:
        options = make(dataset, earlier.setattr)
        assert len(run(dataset, **options).index.rows) == 4
    with pytest.MonkeyPatch.context() as now:
        now.setattr("ganbert.data.cache.conform_pair", None)  # no image is read
        again = run(dataset, **options)
    (refusal,) = again.refusals
    assert found in str(refusal.error)
    assert [row.subject for row in again.index.rows] == ["01", "03", "04"]


def test_what_needs_the_voxels_is_asked_of_rows_of_earlier_versions(tmp_path: Path) -> None:
    dataset = write_tree(tmp_path / "bids", 4)
    write_image(pet_of(dataset, "02"), np.stack([head(2), 0 * head(2)], axis=-1))
    with pytest.MonkeyPatch.context() as earlier:
        # The last version of the cache that took a frame without contrast.
        earlier.setattr(ganbert.data.row_record, "_CACHE_VERSION", 1)
        earlier.setattr(ganbert.data.row_images, "_without_contrast", lambda _: [])
        before = run(dataset)
        assert len(before.index.rows) == 4
    again = run(dataset)
    (refusal,) = again.refusals
    assert "a PET with contrast" in str(refusal.error)
    # The others are made again, to the same bytes.
    assert again.index.rows == tuple(row for row in before.index.rows if row.subject != "02")
