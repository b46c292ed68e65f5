"""A synthetic BIDS-PET cohort on real anatomy, for the demo, the tests and the benchmarks.

What it is not: evidence about patients. Anatomy, uptake, scanners and BIDS writing are explained,
with the sources of their numbers, in `phantom_template.py`, `phantom_anatomy.py`,
`phantom_uptake.py`, `phantom_scanner.py` and `phantom_bids.py`; here are the cohort and the grids.

Written for each subject into the raw dataset and into its `derivatives/phantom/`:

    sub-001/anat/sub-001_T1w.nii.gz, .json               brain-extracted, as the MNI152 maps are
    sub-001/pet/sub-001_trc-18FAV45_pet.nii.gz, .json    (x, y, z, 2 frames), SUVR
    sub-001/anat/sub-001_dseg.nii.gz, .tsv, .json        regions on the T1w grid
    sub-001/pet/sub-001_trc-18FAV45_desc-truth_pet.nii.gz, .json

The true PET is the other one without its noise, voxel by voxel: same grid, same blur, same
misregistration. `participants.tsv` has age, sex, simulated diagnosis and true severity; the
derivative's one adds what each scan was made with.

Determinism: subject k of a seed is the same, byte for byte, whatever the size of the cohort and the
number of processes; the same seed gives the same people and the same T1w for every tracer.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ganbert.data.phantom_anatomy import (
    Person,
    build_anatomy,
    centred_affine,
    rigid,
)
from ganbert.data.phantom_bids import (
    DERIVATIVE_FOLDER,
    Subject,
    SubjectRecord,
    write_dataset,
    write_subject,
)
from ganbert.data.phantom_scanner import scan_mri, scan_pet
from ganbert.data.phantom_template import REGIONS, Template, load_template
from ganbert.data.phantom_uptake import UPTAKE, paint_uptake, reference_mask
from ganbert.errors import ConfigError, OutputError
from ganbert.tracers import Tracer, get_tracer
from ganbert.workers import own_workers


@dataclass(frozen=True)
class PhantomSize:
    """Native grids of the phantom's two scanners.

    Attributes
    ----------
    mri_shape, mri_spacing_mm : of the T1w, (x, y, z); isotropic, whole mm
    pet_shape, pet_spacing_mm : of the PET, (x, y, z)
    """

    mri_shape: tuple[int, int, int]
    mri_spacing_mm: int
    pet_shape: tuple[int, int, int]
    pet_spacing_mm: tuple[float, float, float]


# PET a little finer in plane and coarser along the axis than the grids in `config.GRIDS`, as
# scanners have it, over a field of view that holds every head.
SIZES: dict[str, PhantomSize] = {
    "paper": PhantomSize((192, 232, 192), 1, (120, 132, 92), (1.9, 1.9, 2.1)),
    "demo": PhantomSize((96, 116, 96), 2, (60, 66, 46), (3.8, 3.8, 4.2)),
    "small": PhantomSize((48, 58, 48), 4, (30, 33, 23), (7.6, 7.6, 8.4)),
    "tiny": PhantomSize((32, 39, 32), 6, (18, 20, 14), (12.5, 12.5, 13.5)),
}
_SEVERITY_BANDS = {"CN": (0.0, 0.25), "MCI": (0.25, 0.6), "AD": (0.6, 1.0)}


def make_cohort(
    out: Path,
    *,
    num_subjects: int,
    tracer: str,
    seed: int,
    size: str = "demo",
    jobs: int | None = None,
) -> None:
    """Write a cohort as a BIDS dataset, whole or not at all.

    Parameters
    ----------
    out : folder that does not exist or is empty
    num_subjects : at least 1
    tracer : a row of the tracer table
    seed : of everything that is random, 0 or more
    size : "paper" (T1w 1 mm, PET about 2 mm), "demo" (2 mm, about 4 mm), "small" (4 mm, about 8 mm)
        or "tiny" (tests only)
    jobs : processes; None takes one per core

    Raises
    ------
    ConfigError
        If `num_subjects`, `tracer`, `seed`, `size` or `jobs` is out of range.
    OutputError
        If `out` is a file, is not empty, or cannot be written.
    """
    row = get_tracer(tracer)
    _check_options(num_subjects=num_subjects, seed=seed, size=size, jobs=jobs)
    with _new_folder(out) as folder:
        (folder / DERIVATIVE_FOLDER).mkdir(parents=True)
        template = load_template(SIZES[size].mri_spacing_mm)
        tasks = (
            joblib.delayed(_make_subject)(folder, template, number, row, seed, size)
            for number in range(num_subjects)
        )
        # joblib hands the template to its processes as a memory map and gives each one thread.
        parallel = joblib.Parallel(n_jobs=jobs or joblib.cpu_count(), return_as="generator")
        # Closed first when interrupted: no process may write into a folder that is being removed.
        with own_workers(), closing(parallel(tasks)) as results:
            records = list(_with_progress(results, num_subjects, row.name))
        write_dataset(folder, records, row, seed=seed, size=size)


def _check_options(*, num_subjects: int, seed: int, size: str, jobs: int | None) -> None:
    for name, value, low in (
        ("subjects", num_subjects, 1),
        ("seed", seed, 0),
        ("jobs", 1 if jobs is None else jobs, 1),
    ):
        if value < low:
            expected = f"{low} or more"
            raise ConfigError(name, expected=expected, found=str(value), remedy=f"raise '{name}'")
    if size not in SIZES:
        expected = f"one of {', '.join(SIZES)}"
        raise ConfigError("size", expected=expected, found=repr(size), remedy="choose a listed one")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its name at the end, or vanishes."""
    remedy = "choose a new or empty folder"
    if out.exists() and not out.is_dir():
        raise OutputError(out, expected="a folder", found="a file", remedy=remedy)
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(out, expected="an empty folder", found="files in it", remedy=remedy)
    target = out.absolute()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        expected, found = "a folder that can be written", error.strerror or type(error).__name__
        remedy = "check free space and rights"
        raise OutputError(out, expected=expected, found=found, remedy=remedy) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_progress(
    results: Iterator[SubjectRecord], num_subjects: int, tracer: str
) -> Iterator[SubjectRecord]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"phantom {tracer}", total=num_subjects)
        for result in results:
            progress.advance(task)
            yield result


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make_person(seed: int, number: int) -> Person:
    """Draw subject `number` (from 0) of the cohort `seed`.

    Diagnoses come in shuffled triples, so that even a small cohort has all three. Ages and severity
    bands are design decisions.
    """
    triple = _rng(seed, 0, number // 3).permutation(list(_SEVERITY_BANDS))
    diagnosis = str(triple[number % 3])
    rng = _rng(seed, 1, number, 0)
    return Person(
        label=f"{number + 1:03d}",
        age_years=round(float(np.clip(rng.normal(73, 8), 55, 90)), 1),
        sex="F" if rng.random() < 0.5 else "M",
        diagnosis=diagnosis,
        severity=round(float(rng.uniform(*_SEVERITY_BANDS[diagnosis])), 4),
    )


def _make_subject(
    folder: Path, template: Template, number: int, tracer: Tracer, seed: int, size: str
) -> SubjectRecord:
    subject = simulate_subject(
        template, make_person(seed, number), tracer, SIZES[size], seed=seed, number=number
    )
    write_subject(folder, subject, tracer)
    return SubjectRecord(person=subject.person, truth=_truth_row(subject))


def simulate_subject(
    template: Template,
    person: Person,
    tracer: Tracer,
    grids: PhantomSize,
    *,
    seed: int,
    number: int,
) -> Subject:
    """Simulate anatomy, T1w and PET of one subject; each part has a random stream of its own."""
    placement = _rng(seed, 1, number, 1)
    world = rigid((0, 0, 0), placement.uniform(-20, 20, 3))
    oblique = rigid(placement.uniform(-2, 2, 3), (0, 0, 0))
    pet_pose = rigid(placement.uniform(-3, 3, 3), placement.uniform(-4, 4, 3))
    mri_affine = oblique @ centred_affine(grids.mri_shape, (grids.mri_spacing_mm,) * 3)
    pet_affine = pet_pose @ centred_affine(grids.pet_shape, grids.pet_spacing_mm)
    anatomy = build_anatomy(template, person, grids.mri_shape, mri_affine, _rng(seed, 1, number, 2))
    uptake = paint_uptake(tracer.name, anatomy, person, _rng(seed, 1, number, 4))
    scan = scan_pet(
        uptake.activity,
        reference_mask(tracer.name, anatomy),
        mri_affine,
        grid_shape=grids.pet_shape,
        grid_affine=pet_affine,
        durations_s=UPTAKE[tracer.name].frame_duration_s,
        rng=_rng(seed, 1, number, 5),
    )
    mri = scan_mri(anatomy, _rng(seed, 1, number, 3))
    return Subject(person, anatomy, mri, scan, uptake.load, world)


def _truth_row(subject: Subject) -> dict[str, str]:
    cortex = slice(REGIONS["medial_temporal"], None)
    scan = subject.scan
    return {
        "severity": f"{subject.person.severity:.4f}",
        "load": f"{subject.load:.4f}",
        "cortical_atrophy": f"{subject.anatomy.atrophy[cortex].mean():.4f}",
        "psf_fwhm": f"{scan.psf_fwhm_mm:.2f}",
        "noise_cv": f"{scan.noise_cv:.4f}",
        "misregistration_shift": f"{scan.shift_mm:.3f}",
        "misregistration_rotation": f"{scan.rotation_deg:.3f}",
    }
