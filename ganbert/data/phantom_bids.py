"""How the phantom is written as BIDS: names, images, sidecars, tables.

The keys are those that BIDS demands of raw PET (schema `rules/sidecars/pet.yaml`), of an MRI that
shares a dataset with PET, and of derivatives. No scanner is invented: what was simulated says so.

Design decisions. The sidecar's unit is "SUVR": BIDS defines none for a ratio and takes any string
(the validator accepts this one), and a reader that knows the word needs no reference region. The
labels lie on the T1w grid, because BIDS allows a `_dseg` beside anat, func and dwi, not beside pet.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel import orientations

import ganbert
from ganbert.data.phantom_anatomy import Anatomy, Person
from ganbert.data.phantom_scanner import PetScan
from ganbert.data.phantom_template import REGIONS
from ganbert.data.phantom_uptake import UPTAKE
from ganbert.data.volume import Affine
from ganbert.tracers import Tracer

UNIT = "SUVR"
DERIVATIVE_FOLDER = Path("derivatives") / "phantom"
_BIDS_VERSION = "1.10.0"
_LICENSE = "CC0"
# Axes as scanners store them: a sagittal T1w, a PET in radiological order.
_MRI_AXES, _PET_AXES = "PSR", "LAS"
_README = """\
# GANBERT phantom

A synthetic cohort: {num_subjects} simulated subjects, {tracer} ({long_name}), seed {seed}, size
"{size}". No person was scanned. The anatomy is the MNI152 template (ICBM 2009a), deformed and
atrophied at random; uptake, blur and noise are simulated. Good for demonstrations, tests and
benchmarks; no evidence about patients or scanners.

PET is in SUVR; the reference region ({reference_region}) has the mean 1 in each of the two frames.
Ground truth (labels, noise-free PET, what each scan was made with) is in `derivatives/phantom`.
"""
_PARTICIPANTS = {
    "age": {"Description": "age at the scans", "Units": "year"},
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    # Not "diagnosis": the split would follow it, and published cohorts were split without.
    "simulated_diagnosis": {
        "Description": "diagnosis of the simulated disease",
        "Levels": {
            "CN": "cognitively normal",
            "MCI": "mild cognitive impairment",
            "AD": "Alzheimer's disease",
        },
    },
    "severity": {"Description": "true severity of the simulated disease, 0 to 1"},
}
_TRUTH = {
    "severity": {"Description": "true severity of the simulated disease, 0 to 1"},
    "load": {"Description": "true burden as the tracer sees it, 0 to 1.3"},
    "cortical_atrophy": {"Description": "share of grey matter lost, mean over cortical regions"},
    "psf_fwhm": {"Description": "point spread of the PET scanner, FWHM", "Units": "mm"},
    "noise_cv": {"Description": "coefficient of variation of the PET at 1 SUVR in 10 min"},
    "misregistration_shift": {"Description": "between PET header and content", "Units": "mm"},
    "misregistration_rotation": {"Description": "between PET header and content", "Units": "deg"},
}


@dataclass(frozen=True)
class Subject:
    """One simulated subject.

    Attributes
    ----------
    person : who was scanned
    anatomy : on the T1w grid
    mri : (X, Y, Z) int16, arbitrary unit
    scan : the PET
    load : true burden as the tracer sees it
    world : where the scanners' table stood: person's mm to header's mm
    """

    person: Person
    anatomy: Anatomy
    mri: npt.NDArray[np.int16]
    scan: PetScan
    load: float
    world: Affine


@dataclass(frozen=True)
class SubjectRecord:
    """What the tables of the dataset say about a subject."""

    person: Person
    truth: dict[str, str]


def write_subject(folder: Path, subject: Subject, tracer: Tracer) -> None:
    """Write the images and sidecars of one subject into the raw dataset and its derivative."""
    label = f"sub-{subject.person.label}"
    derivative = folder / DERIVATIVE_FOLDER
    for root in (folder, derivative):
        (root / label).mkdir()
        (root / label / "anat").mkdir()
        (root / label / "pet").mkdir()
    _write_anat(folder / label / "anat", derivative / label / "anat", label, subject)
    affine = subject.world @ subject.scan.affine
    name = f"{label}_trc-{tracer.bids_label}"
    raw = folder / label / "pet" / f"{name}_pet"
    truth = derivative / label / "pet" / f"{name}_desc-truth_pet"
    _write_nifti(raw.with_suffix(".nii.gz"), subject.scan.image, affine, _PET_AXES)
    _write_nifti(truth.with_suffix(".nii.gz"), subject.scan.truth, affine, _PET_AXES)
    sidecar = _pet_sidecar(tracer)
    source = f"bids:raw:{label}/pet/{name}_pet.nii.gz"
    _write_json(raw.with_suffix(".json"), sidecar)
    _write_json(truth.with_suffix(".json"), sidecar | _truth_keys(source))


def _write_anat(raw: Path, derivative: Path, label: str, subject: Subject) -> None:
    affine = subject.world @ subject.anatomy.affine
    _write_nifti(raw / f"{label}_T1w.nii.gz", subject.mri, affine, _MRI_AXES)
    _write_json(raw / f"{label}_T1w.json", _mri_sidecar())
    _write_nifti(derivative / f"{label}_dseg.nii.gz", subject.anatomy.dseg, affine, _MRI_AXES)
    source = f"bids:raw:{label}/anat/{label}_T1w.nii.gz"
    keys = {"Description": "true regions", "Sources": [source], "SpatialReference": source}
    _write_json(derivative / f"{label}_dseg.json", keys)
    rows = [["index", "name"], *([str(index), name] for name, index in REGIONS.items())]
    _write_tsv(derivative / f"{label}_dseg.tsv", rows)


def write_dataset(
    folder: Path, records: list[SubjectRecord], tracer: Tracer, *, seed: int, size: str
) -> None:
    """Write descriptions and tables of the raw dataset and its derivative."""
    derivative = folder / DERIVATIVE_FOLDER
    generated = {
        "Name": "phantom",
        "Version": ganbert.__version__,
        "Description": f"ganbert phantom, tracer {tracer.name}, seed {seed}, size {size}",
    }
    common = {"BIDSVersion": _BIDS_VERSION, "License": _LICENSE, "Authors": ["GANBERT phantom"]}
    description = {"Name": f"GANBERT phantom, {tracer.name}", "DatasetType": "raw"}
    truth_description = {
        "Name": f"Ground truth of the GANBERT phantom, {tracer.name}",
        "DatasetType": "derivative",
        "DatasetLinks": {"raw": "../.."},
    }
    for root, keys in ((folder, description), (derivative, truth_description)):
        content = keys | common | {"GeneratedBy": [generated]}
        _write_json(root / "dataset_description.json", content)
        text = _README.format(
            num_subjects=len(records),
            tracer=tracer.name,
            long_name=tracer.long_name,
            reference_region=tracer.reference_region,
            seed=seed,
            size=size,
        )
        (root / "README.md").write_text(text)
    _write_participants(folder, derivative, records)


def _write_participants(raw: Path, derivative: Path, records: list[SubjectRecord]) -> None:
    people = [["participant_id", *_PARTICIPANTS]]
    truths = [["participant_id", *_TRUTH]]
    for record in records:
        person = record.person
        label = f"sub-{person.label}"
        severity = f"{person.severity:.4f}"
        people.append([label, f"{person.age_years:.1f}", person.sex, person.diagnosis, severity])
        truths.append([label, *(record.truth[key] for key in _TRUTH)])
    for root, rows, columns in ((raw, people, _PARTICIPANTS), (derivative, truths, _TRUTH)):
        _write_tsv(root / "participants.tsv", rows)
        _write_json(root / "participants.json", columns)


def _mri_sidecar() -> dict[str, Any]:
    return {
        "Manufacturer": "GANBERT phantom",
        "ManufacturersModelName": "simulated",
        "MagneticFieldStrength": 3,
        "NonlinearGradientCorrection": True,
        "BodyPart": "BRAIN",
    }


def _pet_sidecar(tracer: Tracer) -> dict[str, Any]:
    pattern = UPTAKE[tracer.name]
    return {
        "Manufacturer": "GANBERT phantom",
        "ManufacturersModelName": "simulated",
        "Units": UNIT,
        "BodyPart": "BRAIN",
        "TracerName": tracer.long_name,
        "TracerRadionuclide": tracer.radionuclide,
        "InjectedRadioactivity": pattern.injected_mbq,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "ScanStart": pattern.frame_start_s[0],
        "InjectionStart": 0,
        "FrameTimesStart": list(pattern.frame_start_s),
        "FrameDuration": list(pattern.frame_duration_s),
        "AcquisitionMode": "simulated",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated",
        "ReconMethodParameterLabels": ["none"],
        "ReconFilterType": "none",
        "AttenuationCorrection": "none",
    }


def _truth_keys(source: str) -> dict[str, Any]:
    return {
        "Description": "the source without its noise: same grid, blur and misregistration",
        "SkullStripped": True,
        "Sources": [source],
        "SpatialReference": source,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tsv(path: Path, rows: list[list[str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def _write_nifti(path: Path, array: npt.NDArray[Any], affine: Affine, axes: str) -> None:
    """Write an RAS array (X, Y, Z[, T]) with its axes stored as `axes`, always the same bytes.

    Not `nifti.write_volume`, which writes RAS only: the phantom's images lie on disk as scanners
    leave them, so that whoever reads them has to reorient. The whole dataset appears at once, so
    no file needs to.
    """
    image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    ras, stored = (orientations.axcodes2ornt(tuple(codes)) for codes in ("RAS", axes))
    image = image.as_reoriented(orientations.ornt_transform(ras, stored))
    with path.open("wb") as stream, gzip.GzipFile("", "wb", 1, stream, mtime=0) as packed:
        packed.write(image.to_bytes())
