"""The phantom as a BIDS dataset: what the official validator says, and what is in the files."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ganbert.data.layouts import find_pairs
from ganbert.data.phantom import make_cohort
from ganbert.data.phantom_template import REGIONS
from ganbert.data.phantom_uptake import UPTAKE
from ganbert.tracers import TRACERS, get_tracer

NAME = "bids-validator-deno"
VALIDATOR = shutil.which(NAME, path=str(Path(sys.executable).parent)) or shutil.which(NAME)


@pytest.fixture(scope="module", params=TRACERS)
def cohort(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny subjects of each tracer."""
    out = tmp_path_factory.mktemp("phantom") / request.param
    make_cohort(out, num_subjects=3, tracer=request.param, seed=1, size="tiny", jobs=1)
    return out


def label_of(cohort: Path) -> str:
    return get_tracer(cohort.name).bids_label


def read_tsv(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.skipif(VALIDATOR is None, reason=f"no {NAME} (pip install bids-validator-deno)")
@pytest.mark.parametrize("folder", [".", "derivatives/phantom"])
def test_the_official_validator_reports_no_error(cohort: Path, folder: str) -> None:
    command = [str(VALIDATOR), "--format", "json", str(cohort / folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    issues = json.loads(run.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert not errors
    assert run.returncode == 0


def test_exactly_these_files(cohort: Path) -> None:
    subject = [
        "anat/{s}_T1w.json",
        "anat/{s}_T1w.nii.gz",
        "pet/{s}_trc-{t}_pet.json",
        "pet/{s}_trc-{t}_pet.nii.gz",
    ]
    truth = [
        "anat/{s}_dseg.json",
        "anat/{s}_dseg.nii.gz",
        "anat/{s}_dseg.tsv",
        "pet/{s}_trc-{t}_desc-truth_pet.json",
        "pet/{s}_trc-{t}_desc-truth_pet.nii.gz",
    ]
    root = ["README.md", "dataset_description.json", "participants.json", "participants.tsv"]
    expected = set()
    for prefix, files in (("", subject), ("derivatives/phantom/", truth)):
        expected |= {prefix + name for name in root}
        for s in ("sub-001", "sub-002", "sub-003"):
            names = (name.format(s=s, t=label_of(cohort)) for name in files)
            expected |= {f"{prefix}{s}/{name}" for name in names}
    found = {str(path.relative_to(cohort)) for path in cohort.rglob("*") if path.is_file()}
    assert found == expected


def test_truth_is_the_pet_without_its_noise_on_the_same_voxels(cohort: Path) -> None:
    name = f"sub-002_trc-{label_of(cohort)}"
    pet = nibabel.load(cohort / "sub-002" / "pet" / f"{name}_pet.nii.gz")
    folder = cohort / "derivatives" / "phantom" / "sub-002" / "pet"
    truth = nibabel.load(folder / f"{name}_desc-truth_pet.nii.gz")
    np.testing.assert_array_equal(pet.affine, truth.affine)
    assert pet.shape == truth.shape
    assert pet.shape[3] == 2
    difference = pet.get_fdata() - truth.get_fdata()
    assert 0.005 < difference.std() < 0.1
    assert abs(difference.mean()) < 0.01


def test_images_are_stored_as_scanners_store_them(cohort: Path) -> None:
    folder = cohort / "sub-001"
    t1w = nibabel.load(folder / "anat" / "sub-001_T1w.nii.gz")
    pet = nibabel.load(folder / "pet" / f"sub-001_trc-{label_of(cohort)}_pet.nii.gz")
    assert nibabel.aff2axcodes(t1w.affine) == ("P", "S", "R")
    assert nibabel.aff2axcodes(pet.affine) == ("L", "A", "S")
    assert t1w.get_data_dtype() == np.int16
    assert pet.get_data_dtype() == np.float32
    for image in (t1w, pet):
        # Oblique, yet both headers say the same thing twice.
        assert np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-3) > 3
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert not image.header["descrip"].item()


def test_t1w_and_pet_overlap_where_their_headers_say(cohort: Path) -> None:
    """Centres of mass agree to a few mm: both headers speak of the same head."""

    def centre(path: Path) -> np.ndarray:
        image = nibabel.load(path)
        data = image.get_fdata()
        data = data.mean(axis=3) if data.ndim == 4 else data
        weight = np.where(data > 0.3 * np.percentile(data, 99), 1.0, 0.0)
        index = [(g * weight).sum() / weight.sum() for g in np.indices(weight.shape)]
        return nibabel.affines.apply_affine(image.affine, index)

    for subject in ("sub-001", "sub-002", "sub-003"):
        t1w = centre(cohort / subject / "anat" / f"{subject}_T1w.nii.gz")
        pet = centre(cohort / subject / "pet" / f"{subject}_trc-{label_of(cohort)}_pet.nii.gz")
        assert np.linalg.norm(t1w - pet) < 8


def test_sidecar_tells_unit_frames_and_tracer(cohort: Path) -> None:
    tracer = get_tracer(cohort.name)
    name = f"sub-003_trc-{tracer.bids_label}_pet.json"
    sidecar = json.loads((cohort / "sub-003" / "pet" / name).read_text())
    assert sidecar["Units"] == "SUVR"
    assert sidecar["TracerName"] == tracer.long_name
    assert sidecar["FrameTimesStart"] == list(UPTAKE[tracer.name].frame_start_s)
    assert sidecar["FrameDuration"] == list(UPTAKE[tracer.name].frame_duration_s)


def test_labels_are_named_and_lie_on_the_t1w(cohort: Path) -> None:
    folder = cohort / "derivatives" / "phantom" / "sub-001" / "anat"
    dseg = nibabel.load(folder / "sub-001_dseg.nii.gz")
    t1w = nibabel.load(cohort / "sub-001" / "anat" / "sub-001_T1w.nii.gz")
    np.testing.assert_array_equal(dseg.affine, t1w.affine)
    assert dseg.shape == t1w.shape
    table = {row["name"]: int(row["index"]) for row in read_tsv(folder / "sub-001_dseg.tsv")}
    assert table == REGIONS
    assert set(np.unique(np.asarray(dseg.dataobj))) <= {0, *REGIONS.values()}


def test_participants_have_what_the_phantom_knows(cohort: Path) -> None:
    people = read_tsv(cohort / "participants.tsv")
    truths = read_tsv(cohort / "derivatives" / "phantom" / "participants.tsv")
    assert {person["simulated_diagnosis"] for person in people} == {"CN", "MCI", "AD"}
    # Published cohorts were split without: nothing there that the split would follow.
    assert {pair.diagnosis for pair in find_pairs(cohort).pairs} == {None}
    for person, truth in zip(people, truths, strict=True):
        assert person["participant_id"] == truth["participant_id"]
        assert person["severity"] == truth["severity"]
    for root in (cohort, cohort / "derivatives" / "phantom"):
        described = json.loads((root / "participants.json").read_text())
        assert {"participant_id", *described} == set(read_tsv(root / "participants.tsv")[0])
