"""From a folder on disk to pairs of T1w and PET.

To add a layout, add a class and a row of `LAYOUTS`, and name it in `cli.Layout`.

BIDS is read with pybids (`bids_index.py`), which knows inheritance of sidecars and the entities of
file names. What is decided here:

* A PET is paired with a T1w of its own session, else with one without a session, else with the
  first of another session; among several of one place the first by name.
* Subjects with only one of the two are left out, which is said and no error, since real cohorts
  have them; a dataset without any pair is an error that says where was looked and what came near.
* Unit and frames come from the sidecar and are never guessed.
* The names of regions come from the nearest `_dseg.tsv` by inheritance.
* What is wrong with one pair (its sidecar, another PET of the same name) is a `Refusal` in its
  place; what concerns more than one is an error.
"""

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ganbert.config import NUM_FRAMES
from ganbert.data.bids_index import closed_folders, open_bids, sidecar_of
from ganbert.data.refusals import Refusal
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, ImageError
from ganbert.tracers import Tracer, get_tracer

_log = logging.getLogger(__name__)
_NIFTI = [".nii", ".nii.gz"]
_TRUTH_FOLDER = Path("derivatives") / "phantom"
_T1W_PATTERN = "sub-*/[ses-*/]anat/*_T1w.nii[.gz]"
_PET_PATTERN = "sub-*/[ses-*/]pet/*_pet.nii[.gz]"
_MAX_NEAR_MISSES = 3
_LONGEST_S = 1e7


class Layout(Protocol):
    """A way in which datasets lie on disk."""

    def find_pairs(self, root: Path) -> Sequence[Pair | Refusal]:
        """Return all pairs below `root`, or why one is none, by subject, session and tracer.

        Raises
        ------
        DatasetError
            If there are none, or the dataset as a whole cannot be used.
        """
        ...


class BidsLayout:
    """A BIDS dataset; ground truth of the phantom in `derivatives/phantom` is picked up."""

    def find_pairs(self, root: Path) -> list[Pair | Refusal]:
        """Return all pairs below `root`, or why one is none, by subject, session and tracer.

        Refused are pairs whose sidecar is not JSON, lacks Units, FrameTimesStart or FrameDuration,
        has not `NUM_FRAMES` frames or an unknown tracer; and PETs of one session and tracer, all.

        Raises
        ------
        DatasetError
            If there is no T1w, no PET or no subject with both, or a JSON file that is not that of
            one image cannot be read.
        """
        layout, broken = open_bids(root, _TRUTH_FOLDER)
        mris = _by_subject(layout.get(scope="raw", suffix="T1w", extension=_NIFTI))
        pets = layout.get(scope="raw", suffix="pet", extension=_NIFTI)
        if not mris:
            raise _nothing_found(root, "T1w", _T1W_PATTERN)
        if not pets:
            raise _nothing_found(root, "pet", _PET_PATTERN)
        with_pet = {_entity(pet, "subject") for pet in pets}
        closed = [
            _refuse_folder(root, *item) for item in sorted(closed_folders(root, "sub-*").items())
        ]
        # What lies in a closed folder cannot be said to be missing.
        known = {refusal.subject for refusal in closed}
        left_out = [
            *_leave_out(root, "T1w", with_pet - set(mris) - known),
            *_leave_out(root, "PET", set(mris) - with_pet - known),
        ]
        found = [
            _pair_or_refusal(layout, pet, mris[_entity(pet, "subject")], broken)
            for pet in pets
            if _entity(pet, "subject") in mris
        ]
        if not found:
            raise _nothing_found(root, "T1w", f"a subject with {_T1W_PATTERN} and {_PET_PATTERN}")
        found = _refuse_duplicates(sorted(found, key=_identity))
        return [*found, *closed, *left_out]


LAYOUTS: dict[str, Layout] = {"bids": BidsLayout()}


def find_pairs(root: Path, layout: str = "bids") -> list[Pair]:
    """Return all pairs of T1w and PET below `root`; raise if there is anything to refuse.

    Parameters
    ----------
    layout : key of `LAYOUTS`

    Raises
    ------
    ConfigError
        If there is no such layout.
    DatasetError, ImageError
        See `Layout.find_pairs`; or the first refusal.
    """
    pairs, refusals = survey(root, layout)
    for refusal in refusals:
        if refusal.status == "refused":
            raise refusal.error
    return pairs


def survey(root: Path, layout: str = "bids") -> tuple[list[Pair], list[Refusal]]:
    """Return all pairs of T1w and PET below `root`, and those that cannot be used or lack one.

    Parameters
    ----------
    layout : key of `LAYOUTS`

    Raises
    ------
    ConfigError
        If there is no such layout.
    DatasetError
        See `Layout.find_pairs`.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            "layout", expected=f"one of {', '.join(LAYOUTS)}", found=layout, remedy="choose one"
        )
    found = LAYOUTS[layout].find_pairs(root)
    return (
        [pair for pair in found if isinstance(pair, Pair)],
        [refusal for refusal in found if isinstance(refusal, Refusal)],
    )


def _entity(file: Any, name: str) -> str:
    """Return an entity's value; empty where the name has none."""
    return str(file.entities.get(name, ""))


def _by_subject(files: Iterable[Any]) -> dict[str, list[Any]]:
    grouped = defaultdict(list)
    for file in sorted(files, key=lambda file: file.path):
        grouped[_entity(file, "subject")].append(file)
    return dict(grouped)


def _choose_mri(pet: Any, mris: Sequence[Any]) -> Any:
    """Prefer the PET's session, then none, then any; `mris` are sorted by path."""
    rank = {_entity(pet, "session"): 0, "": 1}
    return min(mris, key=lambda mri: min(rank.get(_entity(mri, "session"), 2), 2))


def _pair_or_refusal(
    layout: Any, pet: Any, mris: Sequence[Any], broken: dict[Path, DatasetError]
) -> Pair | Refusal:
    try:
        for file in (pet, _choose_mri(pet, mris)):
            if sidecar_of(file.path) in broken:
                raise broken[sidecar_of(file.path)]
        return _to_pair(layout, pet, mris)
    except DatasetError as error:
        return Refusal(
            subject=_entity(pet, "subject"),
            session=_entity(pet, "session") or None,
            tracer=_tracer_label(pet),
            error=error,
        )


def _tracer_label(pet: Any) -> str | None:
    label = _entity(pet, "tracer")
    try:
        return get_tracer(label).name
    except ConfigError:
        return label or None


def _refuse_folder(root: Path, folder: Path, found: str) -> Refusal:
    subject = re.match(r"sub-([^/]+)", folder.relative_to(root).as_posix())
    remedy = "check its permissions, or move it into the dataset"
    error = ImageError(folder, expected="a folder of the dataset", found=found, remedy=remedy)
    return Refusal(subject[1] if subject else "n/a", None, None, error)


def _to_pair(layout: Any, pet: Any, mris: Sequence[Any]) -> Pair:
    sidecar = pet.get_metadata()
    start, duration = _frames(pet.path, sidecar)
    dseg = _truth(layout, pet, suffix="dseg")
    return Pair(
        subject=_entity(pet, "subject"),
        session=_entity(pet, "session") or None,
        tracer=_tracer(pet, sidecar).name,
        mri=str(_choose_mri(pet, mris).path),
        pet=str(pet.path),
        unit=str(_required(pet.path, sidecar, "Units")),
        frame_start_s=start,
        frame_duration_s=duration,
        truth=_truth(layout, pet, suffix="pet", tracer=_entity(pet, "tracer"), desc="truth"),
        dseg=dseg,
        dseg_table=_table(layout, dseg) if dseg else None,
    )


def _required(path: str, sidecar: dict[str, Any], key: str) -> Any:
    value = sidecar.get(key)
    if value in (None, "", []):
        raise DatasetError(
            path,
            expected=f"'{key}' in its JSON sidecar",
            found="none",
            remedy="add it; BIDS-PET requires it",
        )
    return value


def _frames(path: str, sidecar: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return start after injection and duration of each frame, s."""
    start, duration = (
        _numbers(path, key, _required(path, sidecar, key))
        for key in ("FrameTimesStart", "FrameDuration")
    )
    if len(start) != NUM_FRAMES or len(duration) != NUM_FRAMES:
        raise DatasetError(
            path,
            expected=f"{NUM_FRAMES} frames, which is what is supported now",
            found=f"{len(start)} in FrameTimesStart and {len(duration)} in FrameDuration",
            remedy=f"average the frames of the PET into {NUM_FRAMES}",
        )
    # BIDS counts frames from TimeZero, which may be the start of the scan.
    injection = sidecar.get("InjectionStart")
    offset = 0.0
    if isinstance(injection, int | float):
        (offset,) = _numbers(path, "InjectionStart", injection)
    return tuple(time - offset for time in start), duration


def _numbers(path: str, key: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    # A comparison, since JSON knows NaN and whole numbers that no float holds.
    if not all(isinstance(n, int | float) and abs(n) <= _LONGEST_S for n in values):
        raise DatasetError(
            path,
            expected=f"numbers of seconds in '{key}'",
            found="something else",  # which may be anything, and is not repeated
            remedy="mend the sidecar",
        )
    return tuple(float(number) for number in values)


def _tracer(pet: Any, sidecar: dict[str, Any]) -> Tracer:
    names = [_entity(pet, "tracer"), str(sidecar.get("TracerName", ""))]
    problem = None
    for name in filter(None, names):
        try:
            return get_tracer(name)
        except ConfigError as error:
            problem = error
    raise DatasetError(
        pet.path,
        expected=problem.expected if problem else "a trc- entity or a TracerName in its sidecar",
        found=" and ".join(filter(None, names)) or "neither",
        remedy="name the tracer, or add a row to ganbert/tracers.py",
    ) from problem


def _truth(layout: Any, pet: Any, **wanted: str) -> str | None:
    """Return the path of a file of the phantom's derivative that belongs to the PET."""
    if not layout.derivatives:
        return None
    session = _entity(pet, "session")
    entities = wanted | ({"session": session} if session else {})
    found = layout.get(
        scope="derivatives",
        subject=_entity(pet, "subject"),
        extension=_NIFTI,
        **{name: value for name, value in entities.items() if value},
    )
    return str(min(file.path for file in found)) if found else None


def _table(layout: Any, dseg: str) -> str | None:
    """Return the path of the nearest table of regions, beside the segmentation or above it."""
    own = layout.get_file(dseg).get_entities(metadata=False)
    tables = layout.get_nearest(
        dseg, return_type="object", all_=True, ignore_strict_entities=["extension"],
        scope="derivatives", suffix="dseg", extension=".tsv",
    )  # fmt: skip
    for table in tables:
        # pybids compares what both names have; the table's may not have more than the image's.
        if table.get_entities(metadata=False).keys() <= own.keys():
            return str(table.path)
    return None


def _identity(pair: Pair | Refusal) -> tuple[str, str, str]:
    return (pair.subject, pair.session or "", pair.tracer or "")


def _refuse_duplicates(found: Iterable[Pair | Refusal]) -> list[Pair | Refusal]:
    """Refuse all PETs of one subject, session and tracer: choosing one would be a guess."""
    result: list[Pair | Refusal] = []
    for _, group in itertools.groupby(found, key=_identity):
        members = list(group)
        pairs = [pair for pair in members if isinstance(pair, Pair)]
        if len(pairs) < 2:
            result += members
            continue
        names = [Path(pair.pet).name for pair in pairs]
        for member in members:
            if isinstance(member, Refusal):
                result.append(member)
                continue
            error = DatasetError(
                member.pet,
                expected="one PET per subject, session and tracer",
                found=f"also {', '.join(name for name in names if name != Path(member.pet).name)}",
                remedy="keep one of them in the dataset",
            )
            result.append(Refusal(member.subject, member.session, member.tracer, error))
    return result


def _leave_out(root: Path, lacking: str, subjects: set[str]) -> list[Refusal]:
    if subjects:
        labels = ", ".join(f"sub-{subject}" for subject in sorted(subjects))
        _log.warning("left out, without a %s: %s", lacking, labels)
    problem = {"expected": "a T1w and a PET", "found": f"no {lacking}", "remedy": "add it"}
    return [
        Refusal(subject, None, None, DatasetError(root / f"sub-{subject}", **problem), "left out")
        for subject in sorted(subjects)
    ]


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
