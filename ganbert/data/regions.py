"""Names of the regions of a segmentation, from the table that BIDS puts beside or above it.

A `_dseg.tsv` has the columns `index` and `name`. Within one dataset a label has one meaning: all
tables together make one, a contradiction is an error, and a segmentation without a table is read
with the table of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ganbert.errors import DatasetError
from ganbert.strict import nearest
from ganbert.tables import read_tsv
from ganbert.tracers import REFERENCE_REGIONS

_COLUMNS = ("index", "name")
_UNKNOWN = ("", "n/a")
# What tables call 0, which is no region: Background (BIDS), Unknown (FreeSurfer's table of colours,
# MRtrix3), ??? (MRtrix3), Clear Label (ITK-SNAP), and like words. With any other name the table may
# count from 0 and the image from 1.
_BACKGROUND = (
    *_UNKNOWN, "unknown", "background", "bg", "clear label", "unlabeled", "unlabelled", "none",
    "???", "outside", "exterior",
)  # fmt: skip
_MAX_NAMES = 12


def read_region_names(file: Path) -> dict[int, str]:
    """Read one table of regions.

    Parameters
    ----------
    file : `_dseg.tsv`; further columns (mapping, colour, ...) are not read

    Returns
    -------
    label -> name; without 0, which is background, and those whose name is "n/a"

    Raises
    ------
    DatasetError
        If it cannot be read, lacks a column, an index is negative, no whole number or stands there
        twice, or 0 is the name of a region.

    Source
    ------
    BIDS 1.10, "Common image-derived labels" of the derivatives.
    """
    remedy = "mend the table; BIDS wants the columns index and name"
    try:
        lines = read_tsv(file)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        raise DatasetError(file, expected="a TSV", found=found, remedy=remedy) from error
    missing = [name for name in _COLUMNS if not lines or name not in lines[0]]
    if missing:
        found = f"none called {' or '.join(missing)}" if lines else "no line"
        raise DatasetError(file, expected="columns index and name", found=found, remedy=remedy)
    names: dict[int, str] = {}
    seen: set[int] = set()
    for number, line in enumerate(lines, start=2):
        index, name = _entry(file, number, line)
        if index in seen:
            raise DatasetError(
                file, expected="each index once", found=f"{index} again in line {number}",
                remedy=remedy,
            )  # fmt: skip
        seen.add(index)
        if index and name not in _UNKNOWN:
            names[index] = name
    return names


def _entry(file: Path, number: int, line: dict[str, str]) -> tuple[int, str]:
    # A short line has None in its last columns.
    index, name = ((line[column] or "").strip() for column in _COLUMNS)
    try:
        label = int(index)
    except ValueError:
        label = -1
    if label < 0:
        raise DatasetError(
            file,
            expected=f"a whole number from 0 on as index in line {number}",
            found=repr(index),
            remedy="mend the table",
        )
    if label == 0 and _plain(name) not in _BACKGROUND:
        raise DatasetError(
            file,
            expected=f"0 to be background in line {number} (Background, Unknown, ...)",
            found=repr(name),
            remedy="check that table and image count from the same number, and mend the table",
        )
    return label, name


def merge_region_names(files: Iterable[Path]) -> dict[int, str]:
    """Read all tables of a dataset into one, in the order of the labels.

    Raises
    ------
    DatasetError
        If one is broken (see `read_region_names`), or two give a label two names. The one that is
        named is of those that fewer tables agree with.
    """
    by_label: dict[int, dict[str, list[Path]]] = {}
    for file in dict.fromkeys(files):
        for label, name in read_region_names(file).items():
            by_label.setdefault(label, {}).setdefault(name, []).append(file)
    for label, by_name in by_label.items():
        if len(by_name) > 1:
            raise _contradiction(label, by_name)
    return {label: next(iter(by_name)) for label, by_name in sorted(by_label.items())}


def _contradiction(label: int, by_name: Mapping[str, Sequence[Path]]) -> DatasetError:
    # The first stays first where as many say so.
    (usual, agreeing), *others = sorted(by_name.items(), key=lambda item: -len(item[1]))
    name, files = others[-1]
    more = f" and {len(agreeing) - 1} more" if len(agreeing) > 1 else ""
    return DatasetError(
        files[0],
        expected=f"{label} to be {usual!r}, as in {agreeing[0]}{more}",
        found=repr(name),
        remedy="give all subjects one segmentation with one table",
    )


def name_regions(names: Sequence[str]) -> str:
    """List names for people; of very many, the first.

    >>> name_regions(["pons", "insula"])
    'pons, insula'
    """
    text = ", ".join(names[:_MAX_NAMES])
    return text if len(names) <= _MAX_NAMES else f"{text} and {len(names) - _MAX_NAMES} more"


def find_region(names: Mapping[int, str], region: str) -> tuple[int, ...]:
    """Return the labels that make up a region, in the order of its parts; none if it is not there.

    The one place that compares names of regions: case does not count, and a space is as good as
    `_` or `-`.

    Parameters
    ----------
    names : label -> name
    region : name in the table; or of `ganbert.tracers.REFERENCE_REGIONS`
    """
    by_name: dict[str, list[int]] = {}
    for label, name in names.items():
        by_name.setdefault(_plain(name), []).append(label)
    for way in _ways(region):
        parts = [_plain(part) for part in way]
        if all(part in by_name for part in parts):
            return tuple(label for part in parts for label in by_name[part])
    return ()


def _ways(region: str) -> tuple[tuple[str, ...], ...]:
    return ((region,), *REFERENCE_REGIONS.get(_plain(region), ()))


def reference_labels(names: Mapping[int, str], regions: Sequence[str]) -> tuple[int, ...]:
    """Return the labels that make up a reference region.

    Parameters
    ----------
    names : label -> name
    regions : see `find_region`; several make one region

    Raises
    ------
    DatasetError
        If one is neither in the table nor made up of regions that are.
    """
    labels: set[int] = set()
    for region in regions:
        found = find_region(names, region)
        if not found:
            known = sorted(set(names.values()))
            near = nearest(region, known)
            remedy = "name the region with --reference-region, or give a --reference-mask"
            raise DatasetError(
                "reference region",
                expected=" or ".join(" + ".join(way) for way in _ways(region)),
                found=name_regions(known) or "no table of regions",
                remedy=f"did you mean '{near}'? {remedy}" if near else remedy,
            )
        labels.update(found)
    return tuple(sorted(labels))


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
