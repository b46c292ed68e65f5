"""Raw BIDS with BIDS-PET: sessions, runs, several tracers, inherited sidecars.

pybids (`bids_index.py`) finds the files and knows their entities; the sidecars of the PETs are read
here, by the inheritance principle. What is decided here:

* A PET is paired with the T1w of its subject that is nearest by the `acq_time` of `scans.tsv`;
  without these, with one of its own session, else without a session, else of another; among several
  of one place with the first by name, one without contrast agent (`ce-`) before one with it.
* Of several PETs of one subject, session and tracer (runs, reconstructions) the first by name is
  taken, one that is corrected for attenuation before one that is not (`rec-nac...`); the others
  are refused.
* Subjects with only one of the two images are left out, which is no fault.
* An image whose name says another person or session than its folder is refused.
* Unit and frames come from the sidecar and are never guessed.
* Body weight, diagnosis and side of the split come from `participants.tsv` (`bids_tables.py`).
* What is wrong with one image or its own sidecar costs that pair; a sidecar that many images
  inherit and nobody can read is an error.
* Segmentation and ground truth are those of `derivatives/phantom`; the names of regions come from
  the nearest `_dseg.tsv` by inheritance.
"""

import datetime
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from ganbert.data.bids_index import contradiction, open_bids
from ganbert.data.bids_tables import Participant, read_participants, read_scans
from ganbert.data.pairing import (
    Candidate,
    Found,
    LayoutOptions,
    choose_mri,
    collect,
    left_out,
    parse_date,
)
from ganbert.data.refusals import Refusal
from ganbert.data.sidecar import (
    entities_of,
    find_frames,
    find_tracer,
    find_unit,
    is_sidecar,
    read_json,
    sidecar_of,
)
from ganbert.data.split import known_value
from ganbert.data.units import read_facts
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, ImageError
from ganbert.tracers import get_tracer

_NIFTI = [".nii", ".nii.gz"]
_TRUTH_FOLDER = Path("derivatives") / "phantom"
_T1W_PATTERN = "sub-*/[ses-*/]anat/*_T1w.nii[.gz]"
_PET_PATTERN = "sub-*/[ses-*/]pet/*_pet.nii[.gz]"
_MAX_NEAR_MISSES = 3
# What pybids reads off a name or a folder that does not belong to what the file is about.
_NO_ENTITIES = {"suffix", "extension", "datatype"}


class BidsLayout:
    """A BIDS dataset; ground truth of the phantom in `derivatives/phantom` is picked up."""

    place_for_results = "a folder outside of the dataset, or below its derivatives/"

    def searches(self, folder: PurePath) -> bool:
        """All but what lies below `derivatives/`."""
        return PurePath("derivatives") not in folder.parents

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return all pairs below `root`; a PET whose sidecar lacks what it needs is refused.

        Raises
        ------
        ConfigError
            If `participants.tsv` lacks a column that `options` names.
        DatasetError
            If it is a subject's folder; if there is no T1w, no PET or no subject with both; if
            `dataset_description.json`, `participants.tsv` or a JSON file that is not that of one
            image cannot be read.
        """
        if root.name.startswith("sub-") and not (root / "dataset_description.json").exists():
            raise DatasetError(
                root,
                expected="a dataset in BIDS",
                found="the folder of one subject",
                remedy="give the folder above it",
            )
        dataset = _Dataset(root, options)
        if not dataset.mris:
            raise _nothing_found(root, "T1w", _T1W_PATTERN)
        if not dataset.pets:
            raise _nothing_found(root, "pet", _PET_PATTERN)
        if not {pet.entity("subject") for pet in dataset.pets} & set(dataset.mris):
            raise _nothing_found(root, "T1w", f"a subject with {_T1W_PATTERN} and {_PET_PATTERN}")
        pairs, others = [], [*dataset.closed, *dataset.misplaced, *dataset.left_out()]
        for pet in dataset.pets:
            if pet.entity("subject") not in dataset.mris:
                continue
            try:
                pairs.append(dataset.to_pair(pet))
            except DatasetError as error:
                subject, session = pet.entity("subject"), pet.entity("session") or None
                others.append(Refusal(subject, session, _tracer_label(pet), error))
        return collect(pairs, others)


class _File:
    """A file of the dataset, with what its name and folders say about it."""

    def __init__(self, file: Any, root: Path, known: list[Any]) -> None:
        self.path, self.root = str(file.path), root
        # Not `file.entities`, for which pybids asks its database once for each file.
        self.entities = entities_of(self.path, root, known)

    def entity(self, name: str) -> str:
        """Return an entity's value; empty where the name has none."""
        return self.entities.get(name, "")

    def about(self) -> dict[str, str]:
        """Return the entities that say what the file is about."""
        return {name: value for name, value in self.entities.items() if name not in _NO_ENTITIES}


class _Dataset:
    """The files of a dataset, as far as pairs need them."""

    def __init__(self, root: Path, options: LayoutOptions) -> None:
        self.root = root
        self.max_days = options.max_days
        layout, closed = open_bids(root, _TRUTH_FOLDER)
        self.closed = list(_refuse_folders(root, closed))
        known = list(layout.get_entities().values())

        self.misplaced: list[Refusal] = []

        def get(scope: str, **wanted: Any) -> list[_File]:
            found = (_File(file, root, known) for file in layout.get(scope=scope, **wanted))
            in_order = sorted(found, key=lambda file: file.path)
            if wanted["extension"] is not _NIFTI:
                return in_order
            self.misplaced += filter(None, map(_refuse_misplaced, in_order))
            return [file for file in in_order if not contradiction(file.path, root)]

        pets = get("raw", suffix="pet", extension=_NIFTI)
        self.pets = sorted(pets, key=lambda pet: pet.entity("reconstruction").startswith("nac"))
        self.mris = _by_subject(get("raw", suffix="T1w", extension=_NIFTI))
        sidecars = get("raw", suffix="pet", extension=[".json"])
        self.sidecars = _Inherited(root, sidecars)
        # By inheritance these belong to many images.
        self._shared = {
            file.path: read_json(Path(file.path), root)
            for file in (*sidecars, *get("raw", suffix="T1w", extension=[".json"]))
            if not is_sidecar(Path(file.path))
        }
        self.truths: list[_File] = []
        self.dsegs: list[_File] = []
        tables: list[_File] = []
        if layout.derivatives:
            derived = get("derivatives", suffix="pet", extension=_NIFTI)
            self.truths = [file for file in derived if file.entity("desc") == "truth"]
            self.dsegs = get("derivatives", suffix="dseg", extension=_NIFTI)
            tables = get("derivatives", suffix="dseg", extension=[".tsv"])
        self._truths, self._dsegs = _by_subject(self.truths), _by_subject(self.dsegs)
        self.tables = _Inherited(root / _TRUTH_FOLDER, tables)
        self.people = read_participants(root, options)
        self._dates: dict[Path, dict[str, str]] = {}

    def left_out(self) -> Iterator[Refusal]:
        """List the subjects that have only one of the two images."""
        with_pet = {pet.entity("subject") for pet in self.pets}
        # What lies in a closed folder cannot be said to be missing.
        known = {refusal.subject for refusal in self.closed}
        for lacking, subjects in (
            ("T1w", with_pet - set(self.mris) - known),
            ("PET", set(self.mris) - with_pet - known),
        ):
            for subject in sorted(subjects):
                yield left_out(lacking, self.root / f"sub-{subject}", subject)

    def _read(self, file: Path) -> dict[str, Any]:
        """Read a sidecar, if there is any file of its name."""
        if str(file) in self._shared:
            return self._shared[str(file)]
        return read_json(file, self.root) if os.path.lexists(file) else {}

    def to_pair(self, pet: _File) -> Pair:
        """Make the pair of a PET; a DatasetError says why there is none."""
        subject, session = pet.entity("subject"), pet.entity("session") or None
        mri = choose_mri(
            pet.path,
            [
                Candidate(
                    mri.path,
                    mri.entity("session") or None,
                    self._date(mri),
                    # Contrast agent changes the intensities of a T1w.
                    rank=int(bool(mri.entity("ceagent"))),
                )
                for mri in self.mris[subject]
            ],
            session=session,
            date=self._date(pet),
            max_days=self.max_days,
        )
        sidecar: dict[str, Any] = {}
        # Its own one comes last, whether or not pybids takes it for a file.
        for file in dict.fromkeys([*self.sidecars.files_for(pet), str(sidecar_of(pet.path))]):
            sidecar |= self._read(Path(file))
        self._read(sidecar_of(mri.path))
        start, duration = find_frames(pet.path, sidecar)
        names = (pet.entity("tracer"), str(sidecar.get("TracerName", "")))
        dseg = _nearest(pet, self._dsegs, ("session",))
        person = self.people.get(subject, Participant())
        return Pair(
            subject=subject,
            session=session,
            tracer=find_tracer(pet.path, names),
            mri=mri.path,
            pet=pet.path,
            unit=find_unit(pet.path, sidecar),
            frame_start_s=start,
            frame_duration_s=duration,
            truth=_path(_nearest(pet, self._truths, ("session", "tracer"))),
            dseg=_path(dseg),
            dseg_table=next(reversed(self.tables.files_for(dseg)), None) if dseg else None,
            facts=read_facts(sidecar, person.weight),
            diagnosis=person.diagnosis,
            side=person.side,
        )

    def _date(self, file: _File) -> datetime.date | None:
        """Return the day of a scan from the `scans.tsv` of its subject or session."""
        folder = Path(file.path).parents[1]
        if folder not in self._dates:
            self._dates[folder] = read_scans(folder, self.root)
        text = self._dates[folder].get(Path(file.path).name)
        date = parse_date(text)
        # Without it the limit of days would not hold, and nobody would know.
        if date is None and known_value(text) is not None:
            raise DatasetError(
                file.path,
                expected="YYYY-MM-DDThh:mm:ss as its acq_time in scans.tsv",
                found="something else",
                remedy="mend it, or write n/a",
            )
        return date


class _Inherited:
    """Files that hold for others below them, by the inheritance principle of BIDS."""

    def __init__(self, root: Path, files: list[_File]) -> None:
        self.root = root.absolute()
        self.by_folder: dict[Path, list[_File]] = defaultdict(list)
        for file in files:
            self.by_folder[Path(file.path).parent].append(file)

    def files_for(self, image: _File) -> list[str]:
        """Return the paths of all that hold for an image, from the furthest to the nearest."""
        own = image.about().items()
        found: list[str] = []
        for folder in Path(image.path).parents:
            fitting = [
                file for file in self.by_folder.get(folder, []) if file.about().items() <= own
            ]
            # Of one folder, the one that says more about the image is nearer to it.
            fitting.sort(key=lambda file: (len(file.about()), file.path), reverse=True)
            found += [file.path for file in fitting]
            if folder == self.root:
                break
        return found[::-1]


def _refuse_misplaced(file: _File) -> Refusal | None:
    """Refuse an image of which folder and name do not say whose it is."""
    if (both := contradiction(file.path, file.root)) is None:
        return None
    error = ImageError(
        file.path,
        expected=both[0],
        found=both[1],
        remedy="find out whose image it is, and move or rename it",
    )
    # Whose it is nobody knows.
    return Refusal(None, None, _tracer_label(file), error)


def _refuse_folders(root: Path, closed: dict[Path, str]) -> Iterator[Refusal]:
    """Refuse folders that are not looked into, of subjects; others are nobody's concern."""
    for folder, found in sorted(closed.items()):
        subject = re.match(r"sub-([^/]+)", folder.relative_to(root).as_posix())
        if subject:
            remedy = "check its permissions, or move it into the dataset"
            error = ImageError(
                folder, expected="a folder of the dataset", found=found, remedy=remedy
            )
            yield Refusal(subject[1], None, None, error)


def _tracer_label(pet: _File) -> str | None:
    label = pet.entity("tracer")
    try:
        return get_tracer(label).name
    except ConfigError:
        return label or None


def _by_subject(files: list[_File]) -> dict[str, list[_File]]:
    grouped = defaultdict(list)
    for file in files:
        grouped[file.entity("subject")].append(file)
    return dict(grouped)


def _nearest(pet: _File, files: dict[str, list[_File]], names: tuple[str, ...]) -> _File | None:
    """Return the first of the PET's subject that does not contradict the PET's own entities."""
    wanted = {name: pet.entity(name) for name in names if pet.entity(name)}
    for file in files.get(pet.entity("subject"), []):
        if wanted.items() <= file.entities.items():
            return file
    return None


def _path(file: _File | None) -> str | None:
    return file.path if file else None


def _nothing_found(root: Path, suffix: str, pattern: str) -> DatasetError:
    """Say where was looked, for what, and which images came near."""
    images = sorted(path.relative_to(root) for path in root.rglob("*.nii*"))
    near = [path for path in images if suffix.lower() in path.name.lower()] or images
    found = "no image at all"
    if near:
        names = ", ".join(str(path) for path in near[:_MAX_NEAR_MISSES])
        found = f"{len(images)} other images, such as {names}"
    remedy = "check the folder and the names of its files"
    return DatasetError(root, expected=pattern, found=found, remedy=remedy)
