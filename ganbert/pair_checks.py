"""What `prepare` asks of a pair before work, and how it says what became of all of them.

Each check takes pairs and returns those that pass; the others go to the log, whose lines are the
report beside the cache (`data/refusals.py`).
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ganbert.data.index import Row, Split, describe_odd_timing
from ganbert.data.nifti import check_header
from ganbert.data.pairing import no_pairs
from ganbert.data.recast import describe_assumption
from ganbert.data.refusals import (
    REPORT_NAME,
    Refusal,
    check_inside,
    prepared_line,
    reason_in,
    refusal_line,
    relative_name,
    write_report,
)
from ganbert.data.row_record import images_of, input_files
from ganbert.data.sidecar import sidecar_of
from ganbert.data.split import check_can_train, put_side
from ganbert.data.volume import Pair
from ganbert.errors import DatasetError, GanbertError, ImageError

_MAX_SHOWN = 10
_MAX_NAMED = 3


class RefusalLog:
    """What cannot be used; with `strict` there is no second one, since the first stops the run.

    Attributes
    ----------
    refused : what is wrong
    left_out : nothing is wrong with these; no matter to `strict`
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.refused: list[Refusal] = []
        self.left_out: list[Refusal] = []

    def add(self, *refusals: Refusal) -> None:
        """List further ones.

        Raises
        ------
        GanbertError
            The first that is refused, if `strict`.
        """
        for refusal in refusals:
            if refusal.status == "left out":
                self.left_out.append(refusal)
                continue
            if self.strict:
                raise refusal.error
            self.refused.append(refusal)


def refusal_of(pair: Pair, error: GanbertError) -> Refusal:
    """Refuse a pair for an error."""
    return Refusal(pair.subject, pair.session, pair.tracer, error)


def check_places(dataset: Path, pairs: Sequence[Pair], log: RefusalLog) -> list[Pair]:
    """Refuse pairs of which any file leaves the dataset, before one is opened."""
    usable = []
    for pair in pairs:
        images = images_of(pair)
        tables = [pair.dseg_table] if pair.dseg_table else []
        try:
            for path in (*images, *(str(sidecar_of(image)) for image in images), *tables):
                check_inside(path, dataset)
            # Of header and voxels in two files, the one that is not named.
            for file in input_files(pair):
                check_inside(str(file), dataset)
            for table in tables:
                _check_is_file(table)
        except ImageError as error:
            log.add(refusal_of(pair, error))
        else:
            usable.append(pair)
    return usable


def _check_is_file(table: str) -> None:
    """Refuse what would keep a reader waiting, such as a pipe."""
    if not Path(table).is_file():
        raise ImageError(
            table, expected="a table of regions", found="no regular file", remedy="check the path"
        )


def check_sides(
    pairs: Sequence[Pair], column: str | None, given: Mapping[str, Split], log: RefusalLog
) -> tuple[list[Pair], dict[str, Split]]:
    """Leave out the subjects that have no side of the split where a column gives it.

    Parameters
    ----------
    column : its name; None: there is none, and all pairs pass
    given : sides from elsewhere

    Returns
    -------
    usable : pairs
    sides : of each subject, as column and `given` say

    Raises
    ------
    DatasetError
        If a subject has two sides, or nobody can be in train.
    """
    where = "the split that is given" if column is None else f"column {column!r}"
    sides = dict(given)
    for pair in pairs:
        if pair.side is not None:
            put_side(sides, pair.subject, pair.side, where)
    usable = [pair for pair in pairs if column is None or pair.subject in sides]
    if all(pair.subject in sides for pair in usable) and (usable or column is not None):
        check_can_train(where, [sides[pair.subject] for pair in usable])
    for pair in pairs:
        if column is not None and pair.subject not in sides:
            expected, remedy = f"a side of the split in {where}", "fill it in"
            error = DatasetError(pair.pet, expected=expected, found="none", remedy=remedy)
            log.add(dataclasses.replace(refusal_of(pair, error), status="left out"))
    return usable, sides


def check_headers(
    dataset: Path, pairs: Sequence[Pair], log: RefusalLog
) -> tuple[list[Pair], dict[str, str]]:
    """Look at all headers before the first conforming: a 2D image should not show after an hour.

    Returns
    -------
    usable : pairs
    notes : name of an image, relative to the dataset -> what the user should know about it, its
        recast included
    """
    usable: list[Pair] = []
    notes: dict[str, str] = {}
    for pair in pairs:
        try:
            mask = pair.reference_mask
            # The user may name masks anywhere; one below the dataset may not lead out of it.
            if mask and not _relative_to(mask, dataset).startswith(os.pardir):
                check_inside(mask, dataset)
            for path in images_of(pair):
                assumed = describe_assumption(pair) if path == pair.pet else None
                said = [note for note in (check_header(path), assumed) if note]
                if said:
                    notes[relative_name(path, dataset)] = "; ".join(said)
        except ImageError as error:
            log.add(refusal_of(pair, error))
        else:
            usable.append(pair)
    return usable, notes


def _relative_to(path: str, root: Path) -> str:
    """Return the way from `root` to a path, links not followed."""
    return os.path.relpath(os.path.abspath(path), os.path.abspath(root))


def check_any_left(
    dataset: Path, left: Sequence[Pair | Row], log: RefusalLog, console: Console
) -> None:
    """Raise if there is nothing to do: the only refusal, or the first of several.

    Raises
    ------
    DatasetError, ImageError
        If `left` is empty.
    """
    if left:
        return
    if len(log.refused) > 1:
        show(dataset, log, {}, console)
    raise no_pairs(dataset, [*log.refused, *log.left_out])


def check_units(bids: Path, pairs: Sequence[Pair]) -> None:
    """Refuse a tracer in two units before hours of work: training could not tell them apart.

    Raises
    ------
    DatasetError
        If there is one.
    """
    for tracer in dict.fromkeys(pair.tracer for pair in pairs):
        units = Counter(_unit(pair) for pair in pairs if pair.tracer == tracer)
        (usual, _), *others = units.most_common()
        odd = sorted(
            {f"sub-{p.subject}" for p in pairs if p.tracer == tracer and _unit(p) != usual}
        )
        if others:
            raise DatasetError(
                bids,
                expected=f"one unit for all {tracer} PET ({usual} in most)",
                found=f"{', '.join(unit for unit, _ in others)} in {', '.join(odd)}",
                remedy="choose one with --unit, or leave the subjects out",
            )


def _unit(pair: Pair) -> str:
    return pair.recast.unit if pair.recast else pair.unit


def describe_timings(rows: Sequence[Row]) -> str | None:
    """Say in one line which tracers have rows of other frames; None if none has.

    Training refuses them, which nobody should learn after hours of preparing.
    """
    odd = [
        f"{tracer} has {said}"
        for tracer in dict.fromkeys(row.tracer for row in rows)
        if (said := describe_odd_timing([row for row in rows if row.tracer == tracer]))
    ]
    if not odd:
        return None
    remedy = "training refuses them; mend FrameTimesStart and FrameDuration, or leave them out"
    return f"warning: {'; '.join(odd)}: {remedy}"


def report(
    dataset: Path, out: Path, rows: Sequence[Row], log: RefusalLog, notes: Mapping[str, str]
) -> None:
    """Write a line for each row and each refusal.

    Raises
    ------
    OutputError
        If that is not possible.
    """
    lines = [refusal_line(refusal, dataset) for refusal in (*log.refused, *log.left_out)]
    for row in rows:
        said = [f"{Path(name).name}: {notes[name]}" for name in row.sources if name in notes]
        lines.append(prepared_line(row.subject, row.session, row.tracer, row.sources[1], said))
    write_report(out, lines)


def show(dataset: Path, log: RefusalLog, notes: Mapping[str, str], console: Console) -> None:
    """Say in a few lines what was refused, and what the user should know of the others."""
    # One line a reason: a download may hold thousands of images of one kind.
    noted: dict[str, list[str]] = {}
    for name, note in notes.items():
        noted.setdefault(note, []).append(name)
    lines = [f"{_some_of(names)}: {note}" for note, names in noted.items()]
    if log.refused:
        lines += [f"refused: {len(log.refused)} pairs, all listed in {REPORT_NAME}"]
        named: dict[str, list[str]] = {}
        for refusal in log.refused:
            what = f"{refusal.label}: {relative_name(refusal.path, dataset)}".removeprefix(": ")
            named.setdefault(reason_in(refusal, dataset), []).append(what)
        for reason, entries in list(named.items())[:_MAX_SHOWN]:
            lines.append(f"  {_some_of(entries)}: {reason}")
        if len(named) > _MAX_SHOWN:
            lines.append(f"  ... and for {len(named) - _MAX_SHOWN} more reasons")
    for line in lines:
        # As it is: a path is neither markup nor broken at the edge of a terminal.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _some_of(names: Sequence[str]) -> str:
    others = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{others}"
