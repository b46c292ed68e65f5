"""What a PET says about itself in words: the keys of BIDS-PET, read strictly.

Source: BIDS 1.11, "Positron Emission Tomography". A table of paths may have the same keys as
columns.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ganbert.errors import ConfigError, DatasetError
from ganbert.tracers import get_tracer

Times = tuple[float, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Read a sidecar.

    Raises
    ------
    DatasetError
        If it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise _broken(path, found) from error
    if not isinstance(content, dict):
        raise _broken(path, f"a {type(content).__name__}")
    return content


def _broken(path: Path, found: str) -> DatasetError:
    return DatasetError(path, expected="JSON", found=found, remedy="mend or remove the file")


def find_unit(where: str, sidecar: Mapping[str, Any]) -> str:
    """Return the unit of the intensities, as it is written.

    Raises
    ------
    DatasetError
        If there is none.
    """
    return str(_required(where, sidecar, "Units"))


def find_frames(where: str, sidecar: Mapping[str, Any]) -> tuple[Times, Times]:
    """Return start after injection and duration of each frame, s.

    Raises
    ------
    DatasetError
        If a key is missing, holds anything but numbers, or the two differ in length.
    """
    start, duration = (
        _numbers(where, key, _required(where, sidecar, key))
        for key in ("FrameTimesStart", "FrameDuration")
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
    offset = float(injection) if isinstance(injection, int | float) else 0.0
    return tuple(time - offset for time in start), duration


def find_tracer(where: str, names: Iterable[str]) -> str:
    """Return the tracer's short name by the first name that the table knows.

    Parameters
    ----------
    names : from the file's name, from its sidecar, ...; empty ones do not count

    Raises
    ------
    DatasetError
        If there is none.
    """
    given = [name for name in names if name]
    problem = None
    for name in given:
        try:
            return get_tracer(name).name
        except ConfigError as error:
            problem = error
    raise DatasetError(
        where,
        expected=problem.expected if problem else "a trc- entity or a TracerName in its sidecar",
        found=" and ".join(given) or "neither",
        remedy="name the tracer, or add a row to ganbert/tracers.py",
    ) from problem


def _required(where: str, sidecar: Mapping[str, Any], key: str) -> Any:
    value = sidecar.get(key)
    if value in (None, "", []):
        raise DatasetError(
            where,
            expected=f"'{key}' in its JSON sidecar",
            found="none",
            remedy="add it; BIDS-PET requires it",
        )
    return value


def _numbers(where: str, key: str, value: Any) -> Times:
    values = value if isinstance(value, list) else [value]
    if not all(_is_number(number) for number in values):
        raise DatasetError(
            where, expected=f"numbers in '{key}'", found=repr(value), remedy="mend the sidecar"
        )
    return tuple(float(number) for number in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
