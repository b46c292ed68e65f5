"""A plain CSV or TSV of paired paths: whatever lies on disk however it lies.

One line is one pair. Columns, by name and in any order, further ones are not read:

    subject, mri, pet         required; paths absolute or relative to the table
    session, tracer           label; a name that the tracer table knows
    mri_date, pet_date        YYYY-MM-DD or MM/DD/YYYY; too far apart, and the pair is refused
    Units, FrameTimesStart, FrameDuration, TracerName, InjectedRadioactivity, ...
                              keys of the BIDS-PET sidecar; several frames with spaces: 3000 3300
    weight                    of the subject, kg
    dseg, dseg_table          region labels and the table of their names
    truth                     noise-free PET
    diagnosis                 (or group, dx) for the strata of the split

What no column says is read from the JSON of the PET's name beside it, if there is one.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ganbert.data.columns import find_columns
from ganbert.data.pairing import (
    Candidate,
    Found,
    LayoutOptions,
    choose_mri,
    collect,
    parse_date,
)
from ganbert.data.refusals import Refusal
from ganbert.data.sidecar import find_frames, find_tracer, find_unit, read_json, sidecar_of
from ganbert.data.units import FACTS, WEIGHT, read_facts
from ganbert.data.volume import Pair
from ganbert.errors import DatasetError
from ganbert.tables import read_table

NAMES = ("pairs.csv", "pairs.tsv")
_REQUIRED = ("subject", "mri", "pet")
_FRAMES = ("FrameTimesStart", "FrameDuration")
_KEYS = (
    "Units",
    "TracerName",
    *_FRAMES,
    *(key for key in FACTS if key != WEIGHT),
)
_UNKNOWN = ("", "n/a")


class TableLayout:
    """A table of pairs, or a folder that holds one as `pairs.csv` or `pairs.tsv`."""

    place_for_results = "any folder"

    def searches(self, folder: PurePath) -> bool:
        """None: the table names its images one by one."""
        return False

    def find_pairs(self, root: Path, options: LayoutOptions) -> Found:
        """Return the pairs of the table; a line that is not usable is refused.

        Raises
        ------
        ConfigError
            If it lacks a column that `options` names.
        DatasetError
            If there is no table, it lacks a required column, or has no side of the split where it
            should.
        """
        file = _find_table(root)
        lines = _read_lines(file)
        columns = find_columns(
            file, lines[0], diagnosis=options.diagnosis_column, split=options.split_column
        )
        pairs, others = [], []
        for number, line in enumerate(lines, start=2):
            where = f"{file}:{number}"
            side = columns.side_in(line, number)
            try:
                pair = _to_pair(where, file.parent, line, options)
                diagnosis = columns.diagnosis_in(line)
                pairs.append(dataclasses.replace(pair, diagnosis=diagnosis, side=side))
            except DatasetError as error:
                others.append(_refuse(error, where, line))
        return collect(pairs, others)


def _refuse(error: DatasetError, where: str, line: Mapping[str, str]) -> Refusal:
    # What is no label may be a person's name, and is not repeated.
    subject, session = (_plain_label(line, name) for name in ("subject", "session"))
    subject, session = (label if _is_label(label) else None for label in (subject, session))
    return Refusal(subject, session, line.get("tracer") or None, error)


def _find_table(root: Path) -> Path:
    if root.is_file():
        return root
    for name in NAMES:
        if (root / name).is_file():
            return root / name
    raise DatasetError(
        root,
        expected=f"a table of pairs, or a folder with {' or '.join(NAMES)}",
        found="a folder without" if root.is_dir() else "nothing",
        remedy="check the path",
    )


def _read_lines(file: Path) -> list[dict[str, str]]:
    try:
        lines = read_table(file)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
        remedy = "mend the table; a name in .csv has commas, any other has tabs"
        raise DatasetError(file, expected="a CSV or TSV", found=found, remedy=remedy) from error
    missing = [name for name in _REQUIRED if lines and name not in lines[0]]
    if missing or not lines:
        raise DatasetError(
            file,
            expected=f"columns {', '.join(_REQUIRED)}",
            found=f"none called {' or '.join(missing)}" if lines else "no line",
            remedy="mend the heading; a name in .csv has commas, any other has tabs",
        )
    return lines


def _to_pair(where: str, folder: Path, line: Mapping[str, str], options: LayoutOptions) -> Pair:
    mri, pet = (_image(where, folder, line, name) for name in ("mri", "pet"))
    subject, session = (_label(where, line, name) for name in ("subject", "session"))
    if not subject:
        remedy = "fill it in"
        raise DatasetError(where, expected="a subject", found="none", remedy=remedy)
    dates = [_date(where, line, name) for name in ("mri_date", "pet_date")]
    choose_mri(
        where,
        [Candidate(mri, session, dates[0])],
        session=session,
        date=dates[1],
        max_days=options.max_days,
    )
    sidecar = _sidecar(folder, pet, line)
    names = (line.get("tracer", ""), str(sidecar.get("TracerName", "")))
    start, duration = find_frames(where, sidecar)
    return Pair(
        subject=subject,
        session=session,
        tracer=find_tracer(where, [name for name in names if name not in _UNKNOWN]),
        mri=mri,
        pet=pet,
        unit=find_unit(where, sidecar),
        frame_start_s=start,
        frame_duration_s=duration,
        truth=_optional(where, folder, line, "truth"),
        dseg=_optional(where, folder, line, "dseg"),
        dseg_table=_optional(where, folder, line, "dseg_table"),
        facts=read_facts(sidecar, line.get(WEIGHT) or None),
    )


def _image(where: str, folder: Path, line: Mapping[str, str], name: str) -> str:
    path = folder / line[name]
    if not line[name] or not path.is_file():
        found = f"{line[name]}, which is no file" if line[name] else "none"
        raise DatasetError(where, expected=f"a file as {name}", found=found, remedy="mend the path")
    return str(path)


def _optional(where: str, folder: Path, line: Mapping[str, str], name: str) -> str | None:
    if line.get(name, "") in _UNKNOWN:
        return None
    return _image(where, folder, line, name)


def _label(where: str, line: Mapping[str, str], name: str) -> str | None:
    """Return a label as names of files in the cache and in BIDS derivatives can hold it."""
    value = _plain_label(line, name)
    if value is not None and not _is_label(value):
        remedy = "write it without them"
        expected = f"letters and digits as {name}"
        raise DatasetError(where, expected=expected, found="other characters", remedy=remedy)
    return value


def _plain_label(line: Mapping[str, str], name: str) -> str | None:
    value = line.get(name, "").removeprefix("sub-").removeprefix("ses-")
    return None if value in _UNKNOWN else value


def _is_label(value: str | None) -> bool:
    return value is not None and value.isascii() and value.isalnum()


def _date(where: str, line: Mapping[str, str], name: str) -> Any:
    text = line.get(name, "")
    date = parse_date(text)
    if date is None and text not in _UNKNOWN:
        expected = f"YYYY-MM-DD or MM/DD/YYYY as {name}"
        raise DatasetError(where, expected=expected, found="something else", remedy="mend the date")
    return date


def _sidecar(folder: Path, pet: str, line: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JSON beside the PET says, overruled by the columns of the line."""
    beside = sidecar_of(pet)
    content = read_json(beside, folder) if os.path.lexists(beside) else {}
    for key in _KEYS:
        text = line.get(key, "")
        if text in _UNKNOWN:
            continue
        content[key] = [_value(part) for part in text.split()] if key in _FRAMES else _value(text)
    return content


def _value(text: str) -> Any:
    """Read a cell as JSON would: a number or true and false; else it is text."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
