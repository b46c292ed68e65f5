"""Tables: a line maps column to value, a file is TSV as BIDS writes it ("n/a": unknown)."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A quotation mark in a TSV is a character like any other (BIDS, "Tabular files").
_NO_QUOTES: Any = {"quoting": csv.QUOTE_NONE, "quotechar": None}
# Of fewer no interval is stated (design decision, as of a correlation no value): Student's t of two
# subjects is 6.4 times the one difference between them, which chance makes as narrow as it likes.
MIN_SUBJECTS = 3
Line = dict[str, Any]  # of a table: column name to value


def write_tsv(file: Path, lines: Sequence[Line]) -> None:
    """Write lines that all have the columns of the first; numbers with six digits.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(
            stream, list(lines[0]), delimiter="\t", lineterminator="\n", **_NO_QUOTES
        )
        writer.writeheader()
        writer.writerows({key: _as_text(value) for key, value in line.items()} for line in lines)


def read_tsv(file: Path) -> list[dict[str, str]]:
    """Read the lines of a table with a heading, all values as text.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not UTF-8, two columns have one name, or a value is too long to be one.
    """
    with file.open(newline="", encoding="utf-8-sig") as stream:
        try:
            reader = csv.DictReader(stream, delimiter="\t", **_NO_QUOTES)
            _check_heading(reader.fieldnames)
            return list(reader)
        except csv.Error as error:
            raise ValueError(str(error)) from error


def read_table(file: Path) -> list[dict[str, str]]:
    """Read the lines of a CSV (`.csv`) or TSV (any other name) with a heading, all values as text.

    Returns
    -------
    Without blanks around names and values; "" where a line is too short.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no regular file or not UTF-8, no table, two columns have one name, or a line has
        more values than the heading has names.
    """
    if file.exists() and not file.is_file():
        raise ValueError("no regular file")
    delimiter = "," if file.suffix.lower() == ".csv" else "\t"
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, restval="", skipinitialspace=True)
        lines = []
        try:
            _check_heading(reader.fieldnames)
            for line in reader:
                if None in line:
                    raise ValueError(f"more values than columns in line {reader.line_num}")
                lines.append({name.strip(): value.strip() for name, value in line.items()})
        except csv.Error as error:
            raise ValueError(str(error)) from error
    return lines


def _check_heading(names: Sequence[str] | None) -> None:
    """Refuse two columns of one name: the last would count, without a word."""
    counts = Counter(name.strip() for name in names or ())
    twice = [name for name, count in counts.items() if name and count > 1]
    if twice:
        raise ValueError(f"two columns called {twice[0]}")


def finite(line: Line) -> Line:
    """Return the line for JSON, which knows neither NaN nor infinity: they become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }


def _as_text(value: Any) -> Any:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.6g}"
    # What separates values and lines cannot stand within one.
    return " ".join(value.split()) if isinstance(value, str) else value
