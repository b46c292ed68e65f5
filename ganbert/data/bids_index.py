"""The door to pybids: a dataset is indexed, or what stops it is named.

pybids stops at the first JSON file that it cannot read, and follows links to folders, which may go
in a circle. Here the sidecar of a single image is left out, so that only that image suffers; links
to folders are not followed, and a folder that may not be read stops nobody.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ganbert.data.refusals import check_inside
from ganbert.errors import DatasetError, ImageError

_NIFTI_ENDS = (".nii", ".nii.gz")
# What pybids leaves out by itself, and derivatives, which are indexed one by one.
_LEFT_OUT = re.compile(r"^(code|models|sourcedata|stimuli|derivatives)")


def open_bids(root: Path, derivative: Path) -> tuple[Any, dict[Path, DatasetError]]:
    """Index a dataset with its metadata.

    Parameters
    ----------
    derivative : relative to `root`; indexed too where it is a dataset

    Returns
    -------
    layout : `bids.BIDSLayout`
    broken : sidecars of single images that cannot be used, and why; the layout is without them

    Raises
    ------
    DatasetError
        If there is no such folder, or pybids cannot read it.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(root, expected="a BIDS folder", found=found, remedy="check the path")
    folder = root / derivative
    derivatives = [folder] if (folder / "dataset_description.json").is_file() else []
    broken = {path: why for top in (root, *derivatives) for path, why in _broken_json(top, root)}
    single = {path: why for path, why in broken.items() if is_sidecar(path)}
    try:
        return index_bids(root, ignore=single, derivatives=derivatives), single
    except (OSError, ValueError, RecursionError) as error:
        # By inheritance these belong to many images.
        for path in broken.keys() - single.keys():
            raise broken[path] from error
        found = " ".join(str(error).split())
        remedy = "run the BIDS validator on it"
        raise DatasetError(root, expected="a BIDS dataset", found=found, remedy=remedy) from error


def sidecar_of(image: str | Path) -> Path:
    """Return the place of the JSON of one image.

    >>> sidecar_of("sub-01_pet.nii.gz").name
    'sub-01_pet.json'
    """
    return Path(re.sub(r"\.nii(\.gz)?$", ".json", str(image)))


def is_sidecar(path: Path) -> bool:
    """Whether a JSON lies beside the image that it is named after."""
    return any(path.with_suffix(end).exists() for end in _NIFTI_ENDS)


def index_bids(
    root: Path,
    *,
    ignore: Iterable[Path] = (),
    derivatives: Iterable[Path] = (),
    index_metadata: bool = True,
) -> Any:
    """Return the `BIDSLayout` of a dataset, without its closed folders.

    Parameters
    ----------
    ignore : further files to leave out
    derivatives : datasets to index with it

    Raises
    ------
    OSError, ValueError, RecursionError
        As pybids.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer  # slow to import

    tops = [top.absolute() for top in (root, *derivatives)]
    patterns = [re.compile(r"^/(code|models|sourcedata|stimuli)")]  # pybids' own default
    for path in (*(folder for top in tops for folder in closed_folders(top)), *ignore):
        for top in tops:
            if top in path.absolute().parents:
                name = path.absolute().relative_to(top).as_posix()
                patterns.append(re.compile(rf"^/{re.escape(name)}(/|$)"))
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=index_metadata, ignore=patterns)
    return BIDSLayout(
        root, validate=False, indexer=indexer, derivatives=[str(top) for top in tops[1:]] or False
    )


def closed_folders(root: Path, pattern: str = "*") -> dict[Path, str]:
    """Return the folders of a dataset that are not looked into, and what is found instead.

    Parameters
    ----------
    pattern : of the first part of their names relative to `root`

    Returns
    -------
    Links to folders, and folders that may not be read.
    """
    closed = {}
    for place, names, _ in _walk(root):
        for folder in (place / name for name in names):
            if folder.is_symlink():
                closed[folder] = "a link to one, which is not followed"
            elif not os.access(folder, os.R_OK | os.X_OK):
                closed[folder] = "one that may not be read"
    return {
        folder: found
        for folder, found in closed.items()
        if Path(folder.relative_to(root).parts[0]).match(pattern)
    }


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through what is indexed of a dataset, as `os.walk`."""
    for place, folders, files in os.walk(root):
        folder = Path(place)
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and not (folder == root and _LEFT_OUT.match(name))
        ]
        yield folder, folders, files


def _broken_json(top: Path, root: Path) -> Iterator[tuple[Path, DatasetError]]:
    """Find the JSON files that would stop pybids, which does not name them in every case."""
    for folder, _, files in _walk(top):
        for path in (folder / name for name in sorted(files) if name.endswith(".json")):
            problem = _problem_of(path, root)
            if problem:
                yield path, problem


def _contradicted(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the keys whose values contradict the file's name, at which pybids would stop."""
    # Keys of BIDS sidecars are in CamelCase, entities are not.
    keys = [key for key, value in content.items() if key.islower() and value is not None]
    if not keys or not is_sidecar(path):
        return []
    from bids.layout import parse_file_entities  # slow to import

    said = parse_file_entities(str(path.absolute()))
    return sorted(key for key in keys if key in said and str(content[key]) != str(said[key]))


def _problem_of(path: Path, root: Path) -> DatasetError | None:
    expected, remedy = "JSON with an object", "mend or remove the file"
    try:
        check_inside(str(path), root)
        if not path.is_file():
            found = "a link to nothing" if path.is_symlink() else "no regular file"
        elif not isinstance(content := json.loads(path.read_bytes()), dict):
            found = "something else"
        elif contradicted := _contradicted(path, content):
            expected = "what the name of the file says"
            found = f"another value in {', '.join(contradicted)}"
        else:
            # Text that JSON can spell and no database takes: half of a surrogate pair.
            json.dumps(content, ensure_ascii=False).encode()
            return None
    except ImageError as error:
        expected, found, remedy = error.expected, error.found, error.remedy
    except (ValueError, OSError, RecursionError) as error:
        # `strerror` alone: the system's whole text repeats the path.
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DatasetError(path, expected=expected, found=found, remedy=remedy)
