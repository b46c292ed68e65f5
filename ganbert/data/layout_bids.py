"""Raw BIDS with BIDS-PET: sessions, runs, several tracers, inherited sidecars.

pybids finds the files and knows their entities. It is asked not to read all the sidecars of the
dataset into its database (`index_metadata=False`), which took most of its time and memory
(docs/data.md); those of the PETs are read here, by the inheritance principle. What is decided
here:

* A PET is paired with the T1w of its subject that is nearest by the `acq_time` of `scans.tsv`;
  without these, with one of its own session, else without a session, else of another; among several
  of one place with the first by name.
* Of several PETs of one subject, session and tracer (runs, reconstructions) the first by name is
  taken, one that is corrected for attenuation before one that is not (`rec-nac...`).
* Unit and frames come from the sidecar and are never guessed.
* Body weight is the column `weight` of `participants.tsv`. BIDS has no key for it; its unit is kg
  unless `participants.json` says otherwise, since BIDS asks for SI units.
* Segmentation and ground truth are those of `derivatives/phantom`; the names of regions come from
  the nearest `_dseg.tsv` by inheritance.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ganbert.data.pairing import (
    Candidate,
    Found,
    LayoutOptions,
    Rejected,
    choose_mri,
    collect,
    parse_date,
    rejected,
)
from ganbert.data.sidecar import find_frames, find_tracer, find_unit, read_json
from ganbert.data.units import WEIGHT, read_facts
from ganbert.data.volume import Pair
from ganbert.errors import DatasetError
from ganbert.tables import read_tsv

_NIFTI = [".nii", ".nii.gz"]
_TRUTH_FOLDER = Path("derivatives") / "phantom"
_T1W_PATTERN = "sub-*/[ses-*/]anat/*_T1w.nii[.gz]"
_PET_PATTERN = "sub-*/[ses-*/]pet/*_pet.nii[.gz]"
_MAX_NEAR_MISSES = 3
# What pybids reads off a name or a folder that does not belong to what the file is about.
_NO_ENTITIES = {"suffix", "extension", "datatype"}


class BidsLayout:
    """A BIDS dataset; ground truth of the phantom in `derivatives/phantom` is picked up."""

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return all pairs below `root`; a PET whose sidecar lacks what it needs is rejected.

        Raises
        ------
        DatasetError
            If there is no T1w, no PET or no pair; if `dataset_description.json` is broken.
        """
        dataset = _Dataset(root)
        if not dataset.mris:
            raise _nothing_found(root, "T1w", _T1W_PATTERN)
        if not dataset.pets:
            raise _nothing_found(root, "pet", _PET_PATTERN)
        if not {pet.entity("subject") for pet in dataset.pets} & set(dataset.mris):
            raise _nothing_found(root, "T1w", f"a subject with {_T1W_PATTERN} and {_PET_PATTERN}")
        pairs, others = [], list(dataset.mris_alone())
        for pet in dataset.pets:
            try:
                pairs.append(dataset.to_pair(pet, options))
            except DatasetError as error:
                others.append(
                    rejected(
                        error,
                        path=pet.path,
                        subject=pet.entity("subject"),
                        session=pet.entity("session") or None,
                        tracer=pet.entity("tracer") or "n/a",
                    )
                )
        return collect(root, pairs, others)


class _File:
    """A file of the dataset, with what its name and folders say about it."""

    def __init__(self, file: Any, known: list[Any]) -> None:
        from bids.layout import parse_file_entities

        self.path = str(file.path)
        # The same as `file.entities`, for which pybids asks its database once for each file.
        found = parse_file_entities(self.path, entities=known)
        self.entities = {name: str(value) for name, value in found.items()}

    def entity(self, name: str) -> str:
        """Return an entity's value; empty where the name has none."""
        return self.entities.get(name, "")

    def about(self) -> dict[str, str]:
        """Return the entities that say what the file is about."""
        return {name: value for name, value in self.entities.items() if name not in _NO_ENTITIES}


class _Dataset:
    """The files of a dataset, as far as pairs need them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        layout = _open_bids(root)
        known = list(layout.get_entities().values())

        def get(scope: str, **wanted: Any) -> list[_File]:
            found = (_File(file, known) for file in layout.get(scope=scope, **wanted))
            return sorted(found, key=lambda file: file.path)

        pets = get("raw", suffix="pet", extension=_NIFTI)
        self.pets = sorted(pets, key=lambda pet: pet.entity("reconstruction").startswith("nac"))
        self.mris = _by_subject(get("raw", suffix="T1w", extension=_NIFTI))
        self.sidecars = _Inherited(root, get("raw", suffix="pet", extension=[".json"]))
        self.truths: list[_File] = []
        self.dsegs: list[_File] = []
        tables: list[_File] = []
        if layout.derivatives:
            self.truths = get("derivatives", suffix="pet", desc="truth", extension=_NIFTI)
            self.dsegs = get("derivatives", suffix="dseg", extension=_NIFTI)
            tables = get("derivatives", suffix="dseg", extension=[".tsv"])
        self._truths, self._dsegs = _by_subject(self.truths), _by_subject(self.dsegs)
        self.tables = _Inherited(root / _TRUTH_FOLDER, tables)
        self.weights = _read_weights(root)
        self._dates: dict[Path, dict[str, str]] = {}

    def mris_alone(self) -> Iterator[Rejected]:
        """List the subjects without a PET by their first T1w."""
        with_pet = {pet.entity("subject") for pet in self.pets}
        for subject, mris in self.mris.items():
            if subject not in with_pet:
                session = mris[0].entity("session") or None
                reason = "expected a PET of the subject, found none"
                yield Rejected(subject, session, None, mris[0].path, reason)

    def to_pair(self, pet: _File, options: LayoutOptions) -> Pair:
        """Make the pair of a PET; a DatasetError says why there is none."""
        subject, session = pet.entity("subject"), pet.entity("session") or None
        mri = choose_mri(
            pet.path,
            [
                Candidate(mri.path, mri.entity("session") or None, self._date(mri))
                for mri in self.mris.get(subject, [])
            ],
            session=session,
            date=self._date(pet),
            max_days=options.max_days,
        )
        sidecar: dict[str, Any] = {}
        for file in self.sidecars.files_for(pet):
            sidecar |= read_json(Path(file))
        start, duration = find_frames(pet.path, sidecar)
        names = (pet.entity("tracer"), str(sidecar.get("TracerName", "")))
        dseg = _nearest(pet, self._dsegs, ("session",))
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
            facts=read_facts(sidecar, self.weights.get(subject)),
        )

    def _date(self, file: _File) -> datetime.date | None:
        """Return the day of a scan from the `scans.tsv` of its subject or session."""
        folder = Path(file.path).parents[1]
        if folder not in self._dates:
            self._dates[folder] = _read_scans(folder)
        return parse_date(self._dates[folder].get(Path(file.path).name))


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


def _open_bids(root: Path) -> Any:
    from bids import BIDSLayout, BIDSLayoutIndexer  # slow to import

    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(root, expected="a BIDS folder", found=found, remedy="check the path")
    truth = root / _TRUTH_FOLDER
    has_truth = (truth / "dataset_description.json").is_file()
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)
    try:
        return BIDSLayout(
            root,
            validate=False,
            indexer=indexer,
            derivatives=[str(truth)] if has_truth else False,
        )
    except (OSError, ValueError) as error:
        # pybids does not name the file in every case.
        for folder in (root, truth):
            if (folder / "dataset_description.json").is_file():
                read_json(folder / "dataset_description.json")
        found = " ".join(str(error).split())
        remedy = "run the BIDS validator on it"
        raise DatasetError(root, expected="a BIDS dataset", found=found, remedy=remedy) from error


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


def _read_scans(folder: Path) -> dict[str, str]:
    """Return file name -> `acq_time` from `*_scans.tsv` of a subject's or a session's folder."""
    times: dict[str, str] = {}
    for file in sorted(folder.glob("*_scans.tsv")):
        for line in _read_tsv(file):
            name = Path(line.get("filename") or "").name
            times[name] = line.get("acq_time") or ""
    return times


def _read_weights(root: Path) -> dict[str, str]:
    """Return the body weight of each subject, kg, as text."""
    file = root / "participants.tsv"
    if not file.is_file():
        return {}
    lines = _read_tsv(file)
    if not lines or WEIGHT not in lines[0]:
        return {}
    about = file.with_suffix(".json")
    column = read_json(about).get(WEIGHT) if about.is_file() else None
    unit = column.get("Units", "kg") if isinstance(column, dict) else "kg"
    # With its unit it is no number, which whoever needs it will say.
    unit = "" if str(unit).strip().lower() in ("kg", "kilogram", "kilograms") else f" {unit}"
    return {
        (line.get("participant_id") or "").removeprefix("sub-"): f"{line[WEIGHT]}{unit}"
        for line in lines
        if line.get(WEIGHT)
    }


def _read_tsv(file: Path) -> list[dict[str, str]]:
    try:
        return read_tsv(file)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        remedy = "mend or remove the file"
        raise DatasetError(file, expected="a TSV", found=found, remedy=remedy) from error


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
