"""What `infer` takes from a BIDS dataset: which T1w, and what else it has of the same subject.

One T1w per subject and session. Labels, sessions and a filter file narrow the choice, after the
conventions of fMRIPrep.
"""

import difflib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ganbert.data.bids_index import contradiction, index_bids
from ganbert.data.sidecar import entities_of
from ganbert.errors import ConfigError, DatasetError, ImageError
from ganbert.strict import nearest_remedy

log = logging.getLogger(__name__)

_NIFTI = (".nii", ".nii.gz")
_FILTER_OPTION = "--bids-filter-file"
# As pybids and fMRIPrep write "has it" and "has it not"; null in JSON is the latter.
_QUERIES = {"*": "ANY", "Query.ANY": "ANY", "Query.NONE": "NONE", "Query.OPTIONAL": "OPTIONAL"}


@dataclass(frozen=True)
class Scan:
    """One T1w to synthesise from.

    Attributes
    ----------
    path : relative to the dataset
    problem : why nobody knows whose it is; the labels are then what the folders say
    """

    subject: str
    session: str | None
    path: PurePosixPath
    problem: ImageError | None = None

    @property
    def label(self) -> str:
        """BIDS labels, for progress and messages."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")

    @property
    def stem(self) -> str:
        """BIDS labels, for names of files."""
        return self.label.replace(" ", "_")


def check_dataset(bids_dir: Path) -> None:
    """Refuse what is no folder.

    Raises
    ------
    DatasetError
        If it is so.
    """
    if not bids_dir.is_dir():
        found = "a file" if bids_dir.exists() else "nothing"
        remedy = "check the path"
        raise DatasetError(bids_dir, expected="a BIDS folder", found=found, remedy=remedy)


def find_scans(
    bids_dir: Path,
    participant_labels: Sequence[str] | None = None,
    session_labels: Sequence[str] | None = None,
    filter_file: Path | None = None,
) -> list[Scan]:
    """Find the T1w images of a BIDS dataset, one per subject and session.

    Parameters
    ----------
    bids_dir : the dataset; needs no `dataset_description.json`
    participant_labels, session_labels : with or without `sub-` and `ses-`; none: all
    filter_file : JSON, `{"t1w": {"acquisition": "mprage", ...}}`: pybids entities that the T1w has

    Raises
    ------
    DatasetError
        If the folder is missing, holds no T1w, or lacks one of a subject or a session that was
        asked for.
    ConfigError
        If the filter file cannot be read, or names an entity that there is not.
    """
    check_dataset(bids_dir)
    filters = read_filters(filter_file) if filter_file is not None else {}
    scans = _query_t1w(bids_dir, filters, filter_file)
    if not scans:
        raise DatasetError(
            bids_dir,
            expected="sub-*/[ses-*/]anat/sub-*_T1w.nii[.gz]",
            found="none that passes the filter" if filters else _near_misses(bids_dir),
            remedy=f"mend {_FILTER_OPTION}" if filters else
            "name the images as BIDS does, or point to the top folder of the dataset",
        )  # fmt: skip
    if participant_labels:
        wanted = _plain(participant_labels, "sub-")
        _check_there(wanted, {scan.subject for scan in scans}, "sub-", bids_dir)
        scans = [scan for scan in scans if scan.subject in wanted]
    if session_labels:
        wanted = _plain(session_labels, "ses-")
        _check_there(wanted, {scan.session for scan in scans if scan.session}, "ses-", bids_dir)
        scans = [scan for scan in scans if scan.session in wanted]
    if not (participant_labels or session_labels or filters):
        folders = {path.name for path in bids_dir.glob("sub-*") if path.is_dir()}
        without = sorted(folders - {f"sub-{scan.subject}" for scan in scans})
        if without:
            log.warning("no T1w, left out: %s", ", ".join(without))
    return _choose_one_each(scans)


def _plain(labels: Iterable[str], prefix: str) -> list[str]:
    return [label.removeprefix(prefix) for label in labels]


def _check_there(wanted: Sequence[str], there: set[str], prefix: str, bids_dir: Path) -> None:
    for label in wanted:
        if label not in there:
            near = difflib.get_close_matches(label, sorted(there), n=3, cutoff=0.5)
            options = ", ".join(f"{prefix}{name}" for name in near or sorted(there)[:3])
            raise DatasetError(
                bids_dir,
                expected=f"a T1w of {prefix}{label}",
                found="none",
                remedy=f"choose from those that have one, such as {options}"
                if options
                else "leave the option out: no T1w has such a label",
            )


def read_filters(file: Path) -> dict[str, Any]:
    """Read the entities that a T1w must have from a filter file.

    Returns
    -------
    entity -> value, list of values or, as `_QUERIES`, text; without other modalities' filters

    Raises
    ------
    ConfigError
        If it cannot be read, is no JSON object of objects, or has none for "t1w".
    """
    expected = 'a JSON object such as {"t1w": {"acquisition": "mprage"}}'
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = getattr(error, "strerror", None) or "no JSON"
        remedy = f"mend the file or leave out {_FILTER_OPTION}"
        raise ConfigError(file, expected=expected, found=found, remedy=remedy) from error
    filters = content.get("t1w") if isinstance(content, dict) else None
    if not isinstance(filters, dict):
        if isinstance(content, dict):
            found, remedy = "no filter for t1w", 'add the key "t1w"'
            if "t1w" in content:
                found, remedy = (
                    f"a {_kind_of(content['t1w'])} as t1w",
                    "give it an object of entities",
                )
        else:
            found, remedy = (
                f"a {_kind_of(content)}",
                'write an object, in braces, with the key "t1w"',
            )
        raise ConfigError(file, expected=expected, found=found, remedy=remedy)
    for name, value in filters.items():
        values = value if isinstance(value, list) else [value]
        if not all(each is None or isinstance(each, str | int) for each in values):
            remedy = "give a text, a number, null or a list of them"
            raise ConfigError(file, expected=f"a value of {name}", found=repr(value), remedy=remedy)
    return filters


def _kind_of(value: Any) -> str:
    """Name a JSON value as the format does."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {list: "list", str: "text", int: "number", float: "number"}
    return kinds[type(value)]


def _as_query(value: Any) -> Any:
    from bids.layout import Query  # slow to import

    if isinstance(value, list):
        return [_as_query(each) for each in value]
    if value is None:
        return Query.NONE
    return getattr(Query, _QUERIES[value]) if value in _QUERIES else value


def _has(found: str | None, asked: Any, kind: Callable[[Any], Any]) -> bool:
    """Whether an entity is what is asked for, as pybids means it.

    Parameters
    ----------
    found : None: there is none
    asked : see `_as_query`; of a list, one is enough, and an empty one asks for nothing
    kind : makes of a label what is compared: run 2 is `run-02`
    """
    from bids.layout import Query  # slow to import

    values = asked if isinstance(asked, list) else [asked]
    if not values or Query.OPTIONAL in values:
        return True
    if found is None:
        return Query.NONE in values
    try:
        labels = [kind(value) for value in values if not isinstance(value, Query)]
    except ValueError:  # a word for a number
        labels = []
    return Query.ANY in values or kind(found) in labels


def _query_t1w(bids_dir: Path, filters: Mapping[str, Any], file: Path | None) -> list[Scan]:
    layout = index_bids(bids_dir)
    known = layout.get_entities()
    for name in filters:
        if name not in known:
            remedy = nearest_remedy(name, sorted(known))
            raise ConfigError(file, expected="entities of BIDS", found=repr(name), remedy=remedy)
    asked = {name: _as_query(value) for name, value in filters.items()}
    wanted: dict[str, Any] = {"suffix": "T1w", "extension": list(_NIFTI)}
    # These stand in the name; whatever else pybids finds, it finds above the dataset, too.
    wanted |= {name: asked.pop(name) for name in tuple(wanted) if name in asked}
    root = Path(layout.root)
    scans = []
    for path in (Path(file) for file in layout.get(return_type="filename", **wanted)):
        entities, below = entities_of(path, root), path.relative_to(root)
        if "datatype" not in filters and entities.get("datatype") != "anat":
            continue
        if not all(_has(entities.get(n), value, known[n].dtype) for n, value in asked.items()):
            continue
        if (both := contradiction(path, root)) is not None:
            scans.append(_nobodys(bids_dir, below, *both))
        elif "subject" in entities:
            posix = PurePosixPath(below.as_posix())
            scans.append(Scan(entities["subject"], entities.get("session"), posix))
    return scans


def _nobodys(bids_dir: Path, path: Path, expected: str, found: str) -> Scan:
    """Return a T1w of which folder and name do not say whose it is."""
    remedy = "find out whose image it is, and move or rename it"
    problem = ImageError(bids_dir / path, expected=expected, found=found, remedy=remedy)
    folders = (*path.parts, "")
    session = folders[1].removeprefix("ses-") if folders[1].startswith("ses-") else None
    posix = PurePosixPath(path.as_posix())
    return Scan(folders[0].removeprefix("sub-"), session, posix, problem)


def _choose_one_each(scans: Sequence[Scan]) -> list[Scan]:
    """Keep one T1w per subject and session.

    One without contrast agent, which changes its intensities; with the fewest entities; by name.
    """

    def preference(scan: Scan) -> tuple[bool, int, str]:
        name = scan.path.name
        return ("_ce-" in name, name.count("_"), name)

    groups: dict[tuple[str, str], list[Scan]] = defaultdict(list)
    chosen = [scan for scan in scans if scan.problem is not None]
    for scan in scans:
        if scan.problem is None:
            groups[scan.subject, scan.session or ""].append(scan)
    for _, group in sorted(groups.items()):
        group.sort(key=preference)
        chosen.append(group[0])
        if len(group) > 1:
            first = group[0]
            log.warning("%s: %d T1w, %s is used", first.label, len(group), first.path.name)
    return chosen


def _near_misses(bids_dir: Path) -> str:
    """Name what is there instead of a T1w, at most three files."""
    images = sorted(path for path in bids_dir.rglob("*.nii*") if path.is_file())
    if not images:
        return "no NIfTI file at all"
    names = ", ".join(path.relative_to(bids_dir).as_posix() for path in images[:3])
    return f"{len(images)} NIfTI files and no T1w among them, for example {names}"


def acquired_tracers(bids_dir: Path, scan: Scan) -> tuple[str, ...]:
    """Return the `trc-` labels of PETs that the dataset has of the subject (and session)."""
    folder = bids_dir / f"sub-{scan.subject}"
    folder = folder / f"ses-{scan.session}" if scan.session else folder
    labels = {
        part.removeprefix("trc-")
        for path in folder.glob("pet/*_pet.nii*")
        for part in path.name.split("_")
        if part.startswith("trc-")
    }
    return tuple(sorted(labels))


def check_names(bids_dir: Path, scans: Sequence[Scan]) -> list[str]:
    """Say where a dataset departs from BIDS in what inference depends on; it goes on all the same.

    The official validator checks a whole dataset; here it is the description and the names of the
    images that are used.
    """
    from bids_validator import BIDSValidator  # comes with pybids

    is_bids = BIDSValidator().is_bids
    remarks = []
    if not (bids_dir / "dataset_description.json").is_file():
        remarks.append("the dataset has no dataset_description.json")
    names = [scan.path.as_posix() for scan in scans if scan.problem is None]
    odd = [name for name in names if not is_bids(f"/{name}")]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        remarks.append(f"not named as BIDS names a T1w: {', '.join(odd[:3])}{more}")
    return remarks
