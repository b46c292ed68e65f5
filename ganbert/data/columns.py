"""What a table says of a person besides images: the diagnosis, and the side of the split.

Tables differ by layout (participants.tsv, a table of pairs, the CSV of a search); the columns are
found here for all of them. A diagnosis only makes strata (`data/split.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ganbert.data.index import Split
from ganbert.data.split import known_value, parse_side
from ganbert.errors import ConfigError

DIAGNOSIS_COLUMNS = ("diagnosis", "group", "dx")
_MAX_NAMED = 12


@dataclass(frozen=True)
class PersonColumns:
    """Names of the columns of one table, None where it has none.

    Attributes
    ----------
    table : its path
    """

    table: str
    diagnosis: str | None
    split: str | None

    def diagnosis_in(self, line: Mapping[str, str]) -> str | None:
        """Return the diagnosis of a line, where it has one."""
        return known_value(line.get(self.diagnosis)) if self.diagnosis else None

    def side_in(self, line: Mapping[str, str], number: int) -> Split | None:
        """Return the side of the split of a line, where it has one.

        Parameters
        ----------
        number : of the line in the file, for the error

        Raises
        ------
        DatasetError
            If it is no side.
        """
        text = known_value(line.get(self.split)) if self.split else None
        return None if text is None else parse_side(f"{self.table}:{number}", text)


def find_columns(
    table: object, names: Iterable[str], *, diagnosis: str | None, split: str | None
) -> PersonColumns:
    """Find the columns of a table.

    Parameters
    ----------
    table : its path
    names : of all its columns
    diagnosis, split : what the user asks for; without, the diagnosis is looked for by the names of
        `DIAGNOSIS_COLUMNS`, in either case, and there is no split

    Raises
    ------
    ConfigError
        If there is no column of a name that the user gave.
    """
    names = [name for name in names if name]
    for option, wanted in (("--diagnosis-column", diagnosis), ("--split-column", split)):
        if wanted is not None and wanted not in names:
            listed = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
            expected = f"a column of {table} ({listed or 'there is none'})"
            raise ConfigError(option, expected=expected, found=wanted, remedy="name one of them")
    if diagnosis is None:
        by_name = {name.lower(): name for name in reversed(names)}
        diagnosis = next((by_name[name] for name in DIAGNOSIS_COLUMNS if name in by_name), None)
    return PersonColumns(str(table), diagnosis, split)
