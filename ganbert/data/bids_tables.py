"""The tables of a BIDS dataset: `participants.tsv` and `scans.tsv`.

Body weight is the column `weight` of `participants.tsv`. BIDS has no key for it; its unit is kg
unless `participants.json` says otherwise, since BIDS asks for SI units. Diagnosis and side of the
split: `data/columns.py`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ganbert.data.columns import find_columns
from ganbert.data.index import Split
from ganbert.data.pairing import LayoutOptions
from ganbert.data.refusals import check_inside
from ganbert.data.sidecar import read_json
from ganbert.data.split import put_side
from ganbert.data.units import WEIGHT
from ganbert.errors import DatasetError, ImageError
from ganbert.tables import read_tsv


@dataclass
class Participant:
    """What `participants.tsv` says of a subject.

    Attributes
    ----------
    weight : of the body, kg, as text
    """

    weight: str | None = None
    diagnosis: str | None = None
    side: Split | None = None


def read_participants(root: Path, options: LayoutOptions) -> dict[str, Participant]:
    """Return what is said of each subject, by its label without `sub-`.

    Raises
    ------
    ConfigError
        If the table lacks a column that `options` names.
    DatasetError
        If it cannot be read, or a subject's side of the split is none, or another in another line.
    """
    file = root / "participants.tsv"
    lines = read_dataset_tsv(file, root) if os.path.lexists(file) else []
    columns = find_columns(
        file,
        lines[0] if lines else (),
        diagnosis=options.diagnosis_column,
        split=options.split_column,
    )
    weight_unit = _weight_unit(file, root) if lines and WEIGHT in lines[0] else ""
    people: dict[str, Participant] = {}
    sides: dict[str, Split] = {}
    for number, line in enumerate(lines, start=2):
        label = (line.get("participant_id") or "").removeprefix("sub-")
        person = people.setdefault(label, Participant())
        if line.get(WEIGHT):
            person.weight = f"{line[WEIGHT]}{weight_unit}"
        person.diagnosis = person.diagnosis or columns.diagnosis_in(line)
        side = columns.side_in(line, number)
        if side is not None:
            put_side(sides, label, side, f"{file}:{number}")
            person.side = side
    return people


def _weight_unit(file: Path, root: Path) -> str:
    """Return what is to stand behind a body weight: nothing if it is in kg."""
    about = file.with_suffix(".json")
    column = read_json(about, root).get(WEIGHT) if os.path.lexists(about) else None
    unit = column.get("Units", "kg") if isinstance(column, dict) else "kg"
    # With its unit it is no number, which whoever needs it will say.
    return "" if str(unit).strip().lower() in ("kg", "kilogram", "kilograms") else f" {unit}"


def read_scans(folder: Path, root: Path) -> dict[str, str]:
    """Return file name -> `acq_time` from `*_scans.tsv` of a subject's or a session's folder.

    Raises
    ------
    DatasetError
        If a table cannot be read.
    """
    times: dict[str, str] = {}
    for file in sorted(folder.glob("*_scans.tsv")):
        for line in read_dataset_tsv(file, root):
            name = Path(line.get("filename") or "").name
            times[name] = line.get("acq_time") or ""
    return times


def read_dataset_tsv(file: Path, root: Path) -> list[dict[str, str]]:
    """Read a table of the dataset in `root`.

    Raises
    ------
    DatasetError
        If it leaves the dataset or cannot be read.
    """
    expected, remedy = "a TSV", "mend or remove the file"
    try:
        check_inside(str(file), root)
        if file.is_file():
            return read_tsv(file)
        found = "no regular file"
    except ImageError as error:
        expected, found, remedy = error.expected, error.found, error.remedy
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error).splitlines()[0]
    raise DatasetError(file, expected=expected, found=found, remedy=remedy)
