"""A download from LONI's Image and Data Archive (ADNI): its folders and the CSV of the search.

    ROOT/*.csv                                              as "CSV Download" of a collection gives
    ROOT/[ADNI/]<subject>/<description>/<date>/<image id>/*.nii[.gz]

What is from documents:

* The columns of the CSV (Image Data ID, Subject, Group, Sex, Age, Visit, Modality, Description,
  Type, Acq Date, Format, Downloaded), its dates (month first), and the folders, as published code
  that reads them shows (Clinica, `adni_to_bids`; many others).
* The names of the processed PET series (`SERIES`): Clinica, `ADNIPETPreprocessingStep`. FDG's have
  no tracer in front, those of all others have.
* The protocol (`PROTOCOL`): adni.loni.usc.edu, "PET Acquisition", ADNI 3. For florbetapir that page
  has "20 min (4x5 min frames) acquisition at 50-90 min": 50 to 70 min are taken.

What is assumed, since a NIfTI of the archive has no sidecar:

* A series has the frames of the protocol; `prepare` refuses an image with another number. Scans of
  earlier phases that began at another time are not told apart.
* The unit of every series is "arbitrary": the archive states none. The averaged and standardised
  ones are scaled for each subject, so two series must not be mixed: of several in one download, the
  user names one.
* A T1w is what `_T1W` matches. Of several on one date the first by image id that is no repeat is
  taken: the original before what was made from it.

ADNI's PETs are not registered to the MRI and `prepare` does not register: register them, under the
same names, before.
"""

import dataclasses
import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ganbert.data.columns import find_columns
from ganbert.data.index import Split
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
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError
from ganbert.tables import read_table
from ganbert.tracers import TRACERS, get_tracer

COLUMNS = ("Image Data ID", "Subject", "Modality", "Description", "Acq Date")
# --series -> what the archive calls it, in order of processing.
SERIES: dict[str, str] = {
    "dynamic": "co-registered dynamic",
    "averaged": "co-registered, averaged",
    "standard": "coreg, avg, standardized image and voxel size",
    "uniform": "coreg, avg, std img and vox siz, uniform resolution",
    "uniform-6mm": "coreg, avg, std img and vox siz, uniform 6mm res",
}
# Tracer -> (start after injection, s; number of frames of 5 min).
PROTOCOL: dict[str, tuple[float, int]] = {
    "AV45": (3000.0, 4),
    "AV1451": (4500.0, 6),
    "FDG": (1800.0, 6),
}
FRAME_S = 300.0
UNIT = "arbitrary"
_T1W = re.compile(r"mp[-_ ]?rage|\bmpr\b|ir[-_ ]?f?spgr|\bmt1\b", re.IGNORECASE)
_NO_T1W = re.compile(r"mask|localizer|localiser|scout|calibration", re.IGNORECASE)
_REPEAT = re.compile(r"repeat", re.IGNORECASE)
_IMAGE_ID = re.compile(r"I?(\d+)$")


@dataclass(frozen=True)
class _Item:
    """A line of the CSV with its image.

    `number` is the image's in the archive; `path` is None where it was not downloaded.
    """

    number: int
    subject: str
    modality: str
    description: str
    date: datetime.date | None
    path: str | None
    diagnosis: str | None
    side: Split | None

    @property
    def name(self) -> str:
        """What an error calls it."""
        return self.path or f"I{self.number} ({self.description})"


@dataclass(frozen=True)
class _Pet:
    item: _Item
    tracer: str
    series: str
    date: datetime.date


class AdniLayout:
    """A LONI/ADNI download with its search CSV."""

    place_for_results = "a folder outside of the dataset"

    def searches(self, folder: PurePath) -> bool:
        """All: collections are unpacked wherever somebody likes."""
        return True

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return a pair for each PET on disk with a T1w within the limit.

        Raises
        ------
        ConfigError
            If a tracer has several series and `options.series` names none, or none of these; if the
            CSV lacks a column that `options` names.
        DatasetError
            If there is no CSV with the columns, or it has no side of the split where it should.
        """
        if options.series is not None and options.series not in SERIES:
            raise _wrong_series(f"one of {', '.join(SERIES)}", options.series)
        files, others = _find_images(root)
        items = list(_read_items(root, files, options, others))
        listed = {item.number for item in items}
        for number in files.keys() - listed:
            remedy = "download the CSV of all collections, or remove the folder"
            others.append(_stray(files[number], "its image id in the search CSV", "none", remedy))
        pets = []
        for item in items:
            if item.modality == "PET":
                try:
                    pets.append(_to_pet(item))
                except DatasetError as error:
                    others.append(_refuse(error, item))
        pets = _choose_series(pets, options.series, others)
        mris = _by_subject(items)
        for subject in mris.keys() - {item.subject for item in items if item.modality == "PET"}:
            others.append(left_out("PET", mris[subject][0].path, _label(subject)))
        pairs = []
        for pet in pets:
            if pet.item.subject not in mris:
                label, session = _label(pet.item.subject), _session(pet.date)
                others.append(left_out("T1w", pet.item.name, label, session))
                continue
            try:
                pairs.append(_to_pair(pet, mris[pet.item.subject], options.max_days))
            except DatasetError as error:
                others.append(_refuse(error, pet.item, pet))
        return collect(pairs, others)


def _refuse(error: DatasetError, item: _Item, pet: _Pet | None = None) -> Refusal:
    session = _session(item.date) if item.date else None
    return Refusal(_label(item.subject), session, pet.tracer if pet else None, error)


def _stray(where: str, expected: str, found: str, remedy: str) -> Refusal:
    """Refuse what cannot be said to be anybody's."""
    error = DatasetError(where, expected=expected, found=found, remedy=remedy)
    return Refusal(None, None, None, error)


def _label(subject: str) -> str:
    """Return a subject as BIDS can write it: 002_S_0413 is 002S0413."""
    return re.sub(r"[^A-Za-z0-9]", "", subject)


def _session(date: datetime.date) -> str:
    return f"{date:%Y%m%d}"


def _find_images(root: Path) -> tuple[dict[int, str], list[Refusal]]:
    """Return image number -> path, and the folders that hold several images."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(root, expected="a folder", found=found, remedy="check the path")
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in root.rglob("*.nii*"):
        if path.name.endswith((".nii", ".nii.gz")):
            by_folder[path.parent].append(path)
    images: dict[int, str] = {}
    others = []
    for folder, paths in sorted(by_folder.items()):
        match = _IMAGE_ID.match(folder.name)
        if len(paths) > 1 or not match:
            wanted = "one 4D image in a folder" if match else "a folder called by the image id"
            found = f"{len(paths)} images" if match else folder.name
            remedy = "convert the series to one NIfTI, in the folder of the archive"
            others.append(_stray(str(min(paths)), wanted, found, remedy))
            continue
        number = int(match[1])
        if number in images:
            found = f"also {Path(images[number]).parent.relative_to(root)}, which goes before it"
            remedy = "remove the one that is not of the archive"
            others.append(_stray(str(paths[0]), "one folder of an image id", found, remedy))
            continue
        images[number] = str(paths[0])
    return images, others


def _read_items(
    root: Path, files: dict[int, str], options: LayoutOptions, others: list[Refusal]
) -> Iterator[_Item]:
    """Read the lines of all CSV files of a search; an image that two of them list counts once."""
    seen: set[int] = set()
    lines_of = {file: _read(file) for file in sorted(root.glob("*.csv"))}
    tables = {file: lines for file, lines in lines_of.items() if _is_search(lines)}
    if not tables:
        raise DatasetError(
            root,
            expected=f"a CSV of the search with columns {', '.join(COLUMNS)}",
            found=", ".join(file.name for file in lines_of) or "no CSV",
            remedy="download it with the collection and put it beside the folders",
        )
    for file, lines in tables.items():
        columns = find_columns(
            file, lines[0], diagnosis=options.diagnosis_column, split=options.split_column
        )
        for row, line in enumerate(lines, start=2):
            match = _IMAGE_ID.match(line["Image Data ID"])
            if match is None:
                found = repr(line["Image Data ID"])
                others.append(_stray(f"{file}:{row}", "an Image Data ID", found, "mend the CSV"))
                continue
            number = int(match[1])
            if number in seen:
                continue
            seen.add(number)
            yield _Item(
                number=number,
                subject=line["Subject"],
                modality=line["Modality"],
                description=" ".join(line["Description"].split()),
                date=parse_date(line["Acq Date"]),
                path=files.get(number),
                diagnosis=columns.diagnosis_in(line),
                side=columns.side_in(line, row),
            )


def _is_search(lines: Sequence[Mapping[str, str]]) -> bool:
    return bool(lines) and all(name in lines[0] for name in COLUMNS)


def _read(file: Path) -> list[dict[str, str]]:
    try:
        return read_table(file)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
        remedy = "download it again, or move it elsewhere"
        raise DatasetError(file, expected="a CSV", found=found, remedy=remedy) from error


def _to_pet(item: _Item) -> _Pet:
    """Read tracer and series off the description."""
    tracer, series = _series_of(item)
    if item.path is None:
        remedy = "download it"
        raise DatasetError(item.name, expected="its image", found="none on disk", remedy=remedy)
    if item.date is None:
        remedy = "mend the CSV"
        raise DatasetError(item.name, expected="its Acq Date", found="none", remedy=remedy)
    return _Pet(item, tracer, series, item.date)


def _series_of(item: _Item) -> tuple[str, str]:
    description = item.description.lower()
    series = next((key for key, words in SERIES.items() if words in description), None)
    if series is None:
        raise DatasetError(
            item.name,
            expected="a series whose frames and unit are known",
            found=repr(item.description),
            remedy=f"download one of: {'; '.join(SERIES.values())}",
        )
    prefix = description.partition(SERIES[series])[0].strip()
    try:
        tracer = get_tracer(prefix or "FDG").name
    except ConfigError:
        tracer = ""
    if tracer not in PROTOCOL:
        raise DatasetError(
            item.name,
            expected=f"a tracer of {', '.join(PROTOCOL)}",
            found=repr(item.description),
            remedy="leave it out, or add its protocol to data/layout_adni.py",
        )
    return tracer, series


def _choose_series(pets: Sequence[_Pet], wanted: str | None, others: list[Refusal]) -> list[_Pet]:
    """Keep one series of each tracer; of a scan that was processed again, the latest."""
    for tracer in TRACERS:
        counts = Counter(pet.series for pet in pets if pet.tracer == tracer)
        if wanted is None and len(counts) > 1:
            found = ", ".join(f"{series} ({count})" for series, count in counts.items())
            raise _wrong_series(f"one series of {tracer}", found)
    kept = []
    for pet in sorted(pets, key=lambda pet: -pet.item.number):
        if wanted in (None, pet.series):
            kept.append(pet)
            continue
        error = DatasetError(
            pet.item.name,
            expected=f"the series {wanted}",
            found=pet.series,
            remedy="choose another with --series",
        )
        # The user's own choice, and no fault.
        others.append(dataclasses.replace(_refuse(error, pet.item, pet), status="left out"))
    return kept


def _wrong_series(expected: str, found: str) -> ConfigError:
    remedy = f"choose one with --series: {', '.join(SERIES)}"
    return ConfigError("--series", expected=expected, found=found, remedy=remedy)


def _by_subject(items: Sequence[_Item]) -> dict[str, list[Candidate]]:
    """Return the T1w of each subject, the original of a date first."""
    mris: dict[str, list[Candidate]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.number):
        if item.modality != "MRI" or item.path is None or item.date is None:
            continue
        if _T1W.search(item.description) and not _NO_T1W.search(item.description):
            is_repeat = bool(_REPEAT.search(item.description))
            rank = item.number + is_repeat * 10**12
            mris[item.subject].append(Candidate(item.path, date=item.date, rank=rank))
    return mris


def _to_pair(pet: _Pet, mris: Sequence[Candidate], max_days: int) -> Pair:
    path = pet.item.path or ""
    mri = choose_mri(path, mris, session=None, date=pet.date, max_days=max_days)
    start, num = PROTOCOL[pet.tracer]
    durations = (FRAME_S,) * num
    if pet.series != "dynamic":
        durations = (FRAME_S * num,)
    return Pair(
        subject=_label(pet.item.subject),
        session=_session(pet.date),
        tracer=pet.tracer,
        mri=mri.path,
        pet=path,
        unit=UNIT,
        frame_start_s=tuple(start + sum(durations[:frame]) for frame in range(len(durations))),
        frame_duration_s=durations,
        diagnosis=pet.item.diagnosis,
        side=pet.item.side,
    )
