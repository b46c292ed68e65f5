"""The door to pybids: a dataset is indexed, or what stops it is named.

pybids is asked not to read the sidecars of the dataset into its database (`index_metadata=False`):
that took most of its time and memory (docs/data.md), and stopped at the first JSON file that it
could not read. `sidecar.py` reads those that count. pybids also follows links to folders, which may
go in a circle: here they are not followed, and a folder that may not be read stops nobody.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from ganbert.data.sidecar import read_json
from ganbert.errors import DatasetError

_DESCRIPTION = "dataset_description.json"
_LABEL = "[0-9A-Za-z+]+"
# What pybids leaves out by itself, and derivatives, which are indexed one by one.
_LEFT_OUT = re.compile(r"^(code|models|sourcedata|stimuli|derivatives)")


def open_bids(root: Path, derivative: Path) -> tuple[Any, dict[Path, str]]:
    """Index the files of a dataset.

    Parameters
    ----------
    derivative : relative to `root`; indexed too where it is a dataset

    Returns
    -------
    layout : `bids.BIDSLayout`
    closed : folders of `root` that it is without, and what is found instead

    Raises
    ------
    DatasetError
        If there is no such folder, or pybids cannot read it.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(root, expected="a BIDS folder", found=found, remedy="check the path")
    folder = root / derivative
    derivatives = [folder] if (folder / _DESCRIPTION).is_file() else []
    for top in (root, *derivatives):
        # pybids does not name the file in every case.
        if os.path.lexists(top / _DESCRIPTION):
            read_json(top / _DESCRIPTION, root)
    closed = closed_folders(root)
    below = [path for top in derivatives for path in closed_folders(top)]
    try:
        return index_bids(root, closed=[*closed, *below], derivatives=derivatives), closed
    except (OSError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        remedy = "run the BIDS validator on it"
        raise DatasetError(root, expected="a BIDS dataset", found=found, remedy=remedy) from error


def index_bids(
    root: Path, *, closed: Iterable[Path] | None = None, derivatives: Iterable[Path] = ()
) -> Any:
    """Return the `BIDSLayout` of a dataset, without metadata and without its closed folders.

    Parameters
    ----------
    closed : folders to leave out; None: those of `root`
    derivatives : datasets to index with it

    Raises
    ------
    OSError, ValueError, RecursionError
        As pybids.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer  # slow to import

    tops = [top.absolute() for top in (root, *derivatives)]
    patterns = [re.compile(r"^/(code|models|sourcedata|stimuli)")]  # pybids' own default
    for path in closed_folders(root) if closed is None else closed:
        for top in tops:
            if top in path.absolute().parents:
                name = path.absolute().relative_to(top).as_posix()
                patterns.append(re.compile(rf"^/{re.escape(name)}(/|$)"))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=patterns)
    return BIDSLayout(
        root, validate=False, indexer=indexer, derivatives=[str(top) for top in tops[1:]] or False
    )


def contradiction(path: str | Path, root: Path) -> tuple[str, str] | None:
    """Say what keeps a file from being anybody's: labels of folder and name, of person and session.

    pybids goes by the folder and does not look at the name then; and it reads a label only as far
    as its letters and digits go, so that `sub-01 b` would be `sub-01`. Folders above `root`
    say nothing.

    Returns
    -------
    what was expected and what found; None: nothing is wrong
    """
    below = PurePath(os.path.relpath(os.path.abspath(path), os.path.abspath(root)))
    for prefix in ("sub", "ses"):
        folder = next((p.name for p in below.parents if p.name.startswith(f"{prefix}-")), None)
        named = re.search(rf"(?:^|_)({prefix}-[^_.]*)", below.name)
        labels = [label for label in (folder, named and named[1]) if label]
        for label in labels:
            if not re.fullmatch(rf"{prefix}-{_LABEL}", label):
                return f"{prefix}- and a label of letters and digits", label
        if len(set(labels)) > 1:
            return f"a name with {labels[0]}, as its folder has", labels[1]
    return None


def closed_folders(root: Path) -> dict[Path, str]:
    """Return the folders of a dataset that are not looked into, and what is found instead.

    These are links to folders, and folders that may not be read.
    """
    closed = {}
    for place, names in _walk(root):
        for folder in (place / name for name in names):
            if folder.is_symlink():
                closed[folder] = "a link to one, which is not followed"
            elif not os.access(folder, os.R_OK | os.X_OK):
                closed[folder] = "one that may not be read"
    return closed


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Go through the folders that are indexed of a dataset: each, and the names of those in it."""
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and not (folder == root and _LEFT_OUT.match(name))
        ]
        yield folder, folders
