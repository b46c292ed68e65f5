"""The output folder of `ganbert prepare`: whose it is, and that no half of it stays.

out/prepare.json            what this folder is made from, written first
out/cache/...               images and one JSON per finished row (`data/cache.py`)
out/split.tsv               the side of each subject, now and for ever
out/prepare-report.tsv      what became of each pair
out/index.json              written last
out/.lock                   empty; held while `prepare` works
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import SUFFIX as TEMPORARY
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import GRIDS, Grid
from ganbert.data.cache import CACHE_NAME
from ganbert.data.frames import AS_IS
from ganbert.data.index import INDEX_NAME, Row, Split, load_index
from ganbert.data.pairing import MAX_DAYS
from ganbert.data.refusals import REPORT_NAME
from ganbert.data.split import known_value, parse_side, put_side
from ganbert.errors import DatasetError, OutputError
from ganbert.folder_lock import LOCK_NAME, held
from ganbert.tables import read_tsv

SPLIT_NAME = "split.tsv"
_PLAN_NAME = "prepare.json"
_MAX_NAMED = 3
_COLUMNS = ("participant_id", "split")
_NO_SPLIT = "give a prepared folder, its index.json, or a split.tsv"


class Plan(BaseModel):
    """What an output folder is made from (`prepare.json`).

    Attributes
    ----------
    dataset : absolute path of the input
    layout : key of `LAYOUTS`
    fractions : of subjects in train, val and test
    max_days, series, diagnosis_column, split_column : of `LayoutOptions`
    frames, unit, reference_regions, reference_mask : of `RecastOptions`
    cached : whether images are kept
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    mri_grid: Grid
    pet_grid: Grid
    seed: int
    fractions: tuple[float, float, float]
    layout: str = "bids"
    max_days: int = MAX_DAYS
    series: str | None = None
    diagnosis_column: str | None = None
    split_column: str | None = None
    frames: str = AS_IS
    unit: str | None = None
    reference_regions: tuple[str, ...] = ()
    reference_mask: str | None = None
    cached: bool = True


def read_split(path: Path) -> dict[str, Split]:
    """Return the side of each subject, from a `split.tsv`, an index or a prepared folder.

    Raises
    ------
    DatasetError
        If it is none of these, torn, or has a subject on two sides.
    """
    file = path
    if os.path.isdir(path):
        file = path / SPLIT_NAME if os.path.exists(path / SPLIT_NAME) else path / INDEX_NAME
    sides: dict[str, Split] = {}
    entries = _index_sides(file) if file.suffix == ".json" else _table_sides(file)
    for where, subject, side in entries:
        put_side(sides, subject, side, where)
    return sides


def _index_sides(file: Path) -> Iterable[tuple[str, str, Split]]:
    return ((str(file), row.subject, row.split) for row in load_index(file).rows)


def _table_sides(file: Path) -> Iterator[tuple[str, str, Split]]:
    expected = f"a table with columns {' and '.join(_COLUMNS)}"
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError("no regular file")
        lines = read_tsv(file)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or "something else"
        raise DatasetError(file, expected=expected, found=found, remedy=_NO_SPLIT) from error
    if not lines or any(name not in lines[0] for name in _COLUMNS):
        found = "others" if lines else "no line"
        raise DatasetError(file, expected=expected, found=found, remedy=_NO_SPLIT)
    for number, line in enumerate(lines, start=2):
        where = f"{file}:{number}"
        # A BIDS label has no other characters, and one of the archive becomes a label so.
        subject = re.sub(r"[^A-Za-z0-9]", "", (line["participant_id"] or "").removeprefix("sub-"))
        if not subject or line["split"] is None or None in line:
            raise DatasetError(
                where, expected="a subject and its side", found="half a line", remedy="mend it"
            )
        # A table of persons may leave some of them out.
        if known_value(line["split"]) is not None:
            yield where, subject, parse_side(where, line["split"])


def write_split(out: Path, sides: Mapping[str, Split]) -> None:
    """Write `split.tsv`, whole or not at all: labels and sides, and nothing else of a person.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    lines = [_COLUMNS, *((f"sub-{subject}", sides[subject]) for subject in sorted(sides))]
    write_text(out / SPLIT_NAME, "".join("\t".join(line) + "\n" for line in lines))


def _add_earlier(out: Path, sides: Mapping[str, Split]) -> dict[str, Split]:
    """Return the sides that a folder knows, and those that are asked for now."""
    known: dict[str, Split] = {}
    if (out / SPLIT_NAME).exists():
        known = read_split(out / SPLIT_NAME)
    elif (out / INDEX_NAME).exists():
        # From before there was a split.tsv. A torn one is made again, as ever.
        with contextlib.suppress(DatasetError):
            known = read_split(out / INDEX_NAME)
    for subject, side in sides.items():
        remedy = "leave the subject where it is, or choose another folder"
        put_side(known, subject, side, out / SPLIT_NAME, remedy)
    return known


@contextlib.contextmanager
def claimed(out: Path, plan: Plan, sides: Mapping[str, Split]) -> Iterator[dict[str, Split]]:
    """Make or take over the output folder; leave no empty shell behind on failure.

    Parameters
    ----------
    sides : of subjects, as the user gives them

    Yields
    ------
    dict
        All sides that are known: those, and what a previous run has decided.

    Raises
    ------
    DatasetError
        If `split.tsv` in `out` is torn, or contradicts `sides`.
    OutputError
        If `out` is not empty and was not begun with the same plan, is being prepared by another
        process, or cannot be written.
    """
    # Before the lock, which puts a file there: nothing goes into a folder that is not ours.
    _check_out(out, plan)
    existed = out.exists()
    remedy = "wait for it or stop it, and run the same command again"
    with held(out, expected="a folder that no other `ganbert prepare` works in", remedy=remedy):
        # And behind it: another process may have filled what was empty.
        is_new = _check_out(out, plan)
        try:
            yield _begin(out, plan, sides)
        except BaseException:
            # Its cause is what the user must see, not that of what cannot be removed.
            with contextlib.suppress(OSError):
                _remove_half_done(out)
                if is_new and not any((out / CACHE_NAME).glob("*.json")):
                    _remove_shell(out, keep=existed)
            raise


def _begin(out: Path, plan: Plan, sides: Mapping[str, Split]) -> dict[str, Split]:
    """Write the plan, and return all sides that are known."""
    try:
        known = _add_earlier(out, sides)
        make_folder(out / CACHE_NAME)
        _remove_half_done(out)
    except OSError as error:
        raise output_error(out, error) from error
    write_text(out / _PLAN_NAME, plan.model_dump_json(indent=1) + "\n")
    # Before the index goes, which may be the only place where they stand.
    if known:
        write_split(out, known)
    # Rows may change, and what is said of them must not outlive them.
    for name in (INDEX_NAME, REPORT_NAME):
        _remove(out / name)
    return known


def describe_unused(out: Path, rows: Sequence[Row]) -> str | None:
    """Say in one line whose images lie in the cache, but not in the index; None if there are none.

    They are kept, since a pair may come back (a disk that was not there, a sidecar to mend). Who
    has withdrawn must be removed by hand, and would not be missed.
    """
    used = {Path(row.mri.path).stem.removesuffix("_T1w") for row in rows}
    records = (path.stem for path in (out / CACHE_NAME).glob("*.json"))
    unused = sorted(name for name in records if name.removesuffix("_source") not in used)
    names = list(dict.fromkeys(name.removesuffix("_source") for name in unused))
    if not names:
        return None
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return (
        f"cache: kept {', '.join(names[:_MAX_NAMED])}{more}, which the index no longer has; if "
        f"they are not to come back, remove the files of these names in {out / CACHE_NAME}"
    )


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(file, error) from error


def _remove_half_done(out: Path) -> None:
    """Remove what a process that was ended in the middle of a file has left."""
    for folder in (out, out / CACHE_NAME):
        for leftover in folder.glob(f"*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def _check_out(out: Path, plan: Plan) -> bool:
    """Return whether `out` is new or empty; raise if it holds anything but the same plan."""
    try:
        if not out.exists() or (out.is_dir() and _is_shell(out)):
            return True
    except OSError as error:
        raise output_error(out, error) from error
    remedy = "choose another folder or remove it"
    try:
        previous = Plan.model_validate_json((out / _PLAN_NAME).read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        found = "a folder that is not empty" if out.is_dir() else "a file"
        expected = "an empty folder, or one that `ganbert prepare` has begun"
        raise OutputError(out, expected=expected, found=found, remedy=remedy) from error
    changed = [name for name in Plan.model_fields if getattr(previous, name) != getattr(plan, name)]
    if changed:
        found = f"one made with {_describe(previous, changed)}"
        expected = f"a folder made with {_describe(plan, changed)}"
        raise OutputError(out, expected=expected, found=found, remedy=remedy)
    return False


def _is_shell(out: Path) -> bool:
    """Whether it is empty, or all that a run has left that was killed before its plan stood."""
    cache = out / CACHE_NAME
    ours = {CACHE_NAME, LOCK_NAME, _PLAN_NAME + TEMPORARY}
    left = {path.name for path in out.iterdir()} - ours
    return not left and not (cache.exists() and (cache.is_file() or any(cache.iterdir())))


def _describe(plan: Plan, names: Sequence[str]) -> str:
    # Both grids are one option.
    return ", ".join(dict.fromkeys(_in_words(plan, name) for name in names))


def _in_words(plan: Plan, name: str) -> str:
    """Say a part of the plan as the user types it."""
    value = getattr(plan, name)
    if isinstance(value, Grid):
        grids = (plan.mri_grid, plan.pet_grid)
        size = next((size for size, of_size in GRIDS.items() if of_size == grids), None)
        shape, edges = "x".join(map(str, value.shape)), "x".join(f"{e:g}" for e in value.spacing_mm)
        return f"--size {size}" if size else f"{name} {shape} at {edges} mm"
    if name in ("dataset", "fractions"):
        return f"{name} {value}"
    if name == "cached":
        return "--cache" if value else "--no-cache"
    option = f"--{name.removesuffix('s') if isinstance(value, tuple) else name}".replace("_", "-")
    if value is None or value == ():
        return f"no {option}"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{option} {each}" for each in values)


def _remove_shell(out: Path, *, keep: bool) -> None:
    cache = out / CACHE_NAME
    # The lock is still held, and the next one who wants it looks whether the file is still there.
    for file in [*cache.glob("*"), out / _PLAN_NAME, out / SPLIT_NAME, out / LOCK_NAME]:
        file.unlink(missing_ok=True)
    if cache.exists():
        cache.rmdir()
    if not keep:
        out.rmdir()
