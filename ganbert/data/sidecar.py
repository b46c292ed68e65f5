"""What a PET says about itself in words: the keys of BIDS-PET, read strictly.

Here all JSON files of datasets are read, and nowhere else.

Source: BIDS 1.11, "Positron Emission Tomography". A table of paths may have the same keys as
columns.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from ganbert.data.refusals import check_inside
from ganbert.errors import ConfigError, DatasetError, ImageError
from ganbert.tracers import get_tracer

Times = tuple[float, ...]

_NIFTI_ENDS = (".nii", ".nii.gz")
_LONGEST_S = 1e7


def sidecar_of(image: str | Path) -> Path:
    """Return the place of the JSON of one image.

    >>> sidecar_of("sub-01_pet.nii.gz").name
    'sub-01_pet.json'
    >>> sidecar_of("sub-01_pet.hdr").name
    'sub-01_pet.json'
    """
    return Path(re.sub(r"\.(nii|hdr|img)(\.gz)?$", ".json", str(image)))


def is_sidecar(path: Path) -> bool:
    """Whether a JSON lies beside the image that it is named after."""
    return any(path.with_suffix(end).exists() for end in _NIFTI_ENDS)


def read_json(path: Path, root: Path) -> dict[str, Any]:
    """Read a sidecar or another JSON of a dataset.

    Raises
    ------
    DatasetError
        If it leaves the dataset in `root`, cannot be read, is not a JSON object or contradicts the
        name of its image.
    """
    expected, remedy = "JSON with an object", "mend or remove the file"
    try:
        check_inside(str(path), root)
        if not path.is_file():
            found = "a link to nothing" if path.is_symlink() else "no regular file"
        elif not isinstance(content := json.loads(path.read_bytes()), dict):
            found = "something else"
        elif contradicted := _contradicted(path, root, content):
            expected = "what the name of the file says"
            found = f"another value in {', '.join(contradicted)}"
        else:
            # Text that JSON can spell and no file takes: half of a surrogate pair.
            json.dumps(content, ensure_ascii=False).encode()
            return content
    except ImageError as error:
        expected, found, remedy = error.expected, error.found, error.remedy
    except (ValueError, OSError, RecursionError) as error:
        # `strerror` alone: the system's whole text repeats the path.
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise DatasetError(path, expected=expected, found=found, remedy=remedy)


def _contradicted(path: Path, root: Path, content: dict[str, Any]) -> list[str]:
    """Return the keys whose values contradict the file's name."""
    # Keys of BIDS sidecars are in CamelCase, entities are not.
    keys = [key for key, value in content.items() if key.islower() and value is not None]
    if not keys or not is_sidecar(path):
        return []
    said = entities_of(path, root)
    return sorted(key for key in keys if key in said and str(content[key]) != said[key])


def entities_of(path: str | Path, root: Path, known: list[Any] | None = None) -> dict[str, str]:
    """Return what name and folders of a file say about it, by the entities of pybids.

    Below `root` alone: pybids reads them off the whole path, and a dataset in `/data/sub-study` is
    one of a single subject to it.

    Parameters
    ----------
    known : entities to look for; None: those of raw data and derivatives
    """
    from bids.layout import parse_file_entities  # slow to import

    below = PurePath(os.path.relpath(os.path.abspath(path), os.path.abspath(root))).as_posix()
    found = parse_file_entities(f"/{below}", entities=known)
    return {name: str(value) for name, value in found.items()}


def find_unit(where: str, sidecar: Mapping[str, Any]) -> str:
    """Return the unit of the intensities, as it is written.

    Raises
    ------
    DatasetError
        If there is none.
    """
    (unit,) = _required(where, sidecar, "Units")
    return str(unit)


def find_frames(where: str, sidecar: Mapping[str, Any]) -> tuple[Times, Times]:
    """Return start after injection and duration of each frame, s.

    Raises
    ------
    DatasetError
        If a key is missing, holds anything but numbers, or the two differ in length.
    """
    keys = ("FrameTimesStart", "FrameDuration")
    start, duration = (
        _numbers(where, key, value)
        for key, value in zip(keys, _required(where, sidecar, *keys), strict=True)
    )
    if len(start) != len(duration):
        raise DatasetError(
            where,
            expected="as many frames in FrameTimesStart as in FrameDuration",
            found=f"{len(start)} and {len(duration)}",
            remedy="mend the sidecar",
        )
    # BIDS counts frames from TimeZero, which may be the start of the scan.
    injection = sidecar.get("InjectionStart")
    offset = 0.0
    # A time in quotation marks is refused, not passed over: every frame would start elsewhere.
    if injection not in (None, "", "n/a"):
        (offset,) = _numbers(where, "InjectionStart", [injection])
    return tuple(time - offset for time in start), duration


def find_tracer(where: str, names: Iterable[str]) -> str:
    """Return the tracer's short name by the names that the table knows.

    Parameters
    ----------
    names : from the file's name, from its sidecar, ...; empty ones do not count

    Raises
    ------
    DatasetError
        If there is none, or two mean different tracers.
    """
    given = [name for name in names if name]
    problem: ConfigError | None = None
    known: dict[str, str] = {}
    for name in given:
        try:
            known.setdefault(get_tracer(name).name, name)
        except ConfigError as error:
            problem = error
    if len(known) > 1:
        raise DatasetError(
            where,
            expected="one tracer in its name and its sidecar",
            found=" and ".join(known.values()),
            remedy="mend the one that is wrong",
        )
    if known:
        return next(iter(known))
    raise DatasetError(
        where,
        expected=problem.expected if problem else "a trc- entity or a TracerName in its sidecar",
        found=" and ".join(given) or "neither",
        remedy="name the tracer, or add a row to ganbert/tracers.py",
    ) from problem


def _required(where: str, sidecar: Mapping[str, Any], *keys: str) -> list[Any]:
    missing = [key for key in keys if sidecar.get(key) in (None, "", [])]
    if missing:
        it = "it" if len(missing) == 1 else "them"
        raise DatasetError(
            where,
            expected=f"{', '.join(map(repr, missing))} in its JSON sidecar",
            found="none" if sidecar else "no sidecar, or an empty one",
            remedy=f"add {it}; BIDS-PET requires {it}",
        )
    return [sidecar[key] for key in keys]


def _numbers(where: str, key: str, value: Any) -> Times:
    values = value if isinstance(value, list) else [value]
    if not all(_is_number(number) for number in values):
        raise DatasetError(
            where,
            expected=f"numbers of seconds in '{key}'",
            found="something else",  # which may be anything, and is not repeated
            remedy="mend the sidecar",
        )
    return tuple(float(number) for number in values)


def _is_number(value: Any) -> bool:
    # A comparison, since JSON knows NaN and whole numbers that no float holds.
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= _LONGEST_S
