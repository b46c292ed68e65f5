"""`ganbert prepare`: a BIDS dataset becomes a streaming cache and its index.

For each pair, `data/cache.py` conforms and writes the images. Then: split by subject, suggest an
intensity ratio per tracer from the training rows, and write `index.json` last, so that a folder
with an index is a whole one. What lies in the folder: `prepared_folder.py`.

Interrupting loses at most the rows at work: finished ones are not made again. Left-over `*.tmp` are
removed by the next run. A pair with an unusable image or sidecar is refused and listed, and the
others go on; with `strict` the first one stops the run. What was finished stays for the next one.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import ganbert
from ganbert.config import Grid
from ganbert.data.bids_index import sidecar_of
from ganbert.data.cache import CachePlace, images_of, make_row
from ganbert.data.conform import suggest_intensity_ratio
from ganbert.data.index import SCHEMA_VERSION, Index, Row, Split, save_index
from ganbert.data.layouts import survey
from ganbert.data.nifti import check_header
from ganbert.data.refusals import (
    REPORT_NAME,
    Refusal,
    check_inside,
    prepared_line,
    reason_of,
    refusal_line,
    relative_name,
    write_report,
)
from ganbert.data.regions import merge_region_names
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, GanbertError, ImageError, PlatformError
from ganbert.prepared_folder import Plan, claimed

SPLIT_FRACTIONS = (0.7, 0.1, 0.2)
_MAX_SHOWN = 10
_PACKAGES = ("nibabel", "numpy", "scipy")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made: `out/index.json`, and the pairs that are not in it."""

    index: Index
    refusals: tuple[Refusal, ...]


class _Refusals:
    """Those so far; with `strict` there is no second one, since the first one stops the run."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.all: list[Refusal] = []

    def add(self, *refusals: Refusal) -> None:
        for refusal in refusals:
            if self.strict:
                raise refusal.error
            self.all.append(refusal)


def prepare(
    bids: Path,
    out: Path,
    *,
    mri_grid: Grid,
    pet_grid: Grid,
    seed: int = 0,
    fractions: tuple[float, float, float] = SPLIT_FRACTIONS,
    layout: str = "bids",
    jobs: int | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Prepared:
    """Prepare a dataset for training.

    Parameters
    ----------
    bids : BIDS dataset with T1w and PET
    out : new or empty folder, or one that a previous run with the same options has begun
    seed : of the split
    fractions : of subjects in train, val and test; they add up to 1
    layout : how the dataset lies on disk, a key of `ganbert.data.layouts.LAYOUTS`
    jobs : processes; None for one per core
    strict : raise at the first pair that cannot be used, instead of leaving it out
    console : for the progress bar and what was refused; None for standard error

    Raises
    ------
    ConfigError
        If `fractions` or `jobs` make no sense, or there is no such layout.
    DatasetError, ImageError
        If the dataset as a whole, a table of regions or (`strict`: any) every pair is not usable.
        Finished rows stay for the next run.
    OutputError
        If `out` is not empty and not a previous run on the same inputs with the same options, or
        cannot be written.
    """
    _check_options(fractions, jobs)
    console = console or Console(stderr=True)
    refusals = _Refusals(strict)
    pairs, unusable = survey(bids, layout)
    left_out = [refusal for refusal in unusable if refusal.status == "left out"]
    refusals.add(*(refusal for refusal in unusable if refusal.status == "refused"))
    plan = Plan(
        dataset=str(bids.resolve()),
        mri_grid=mri_grid,
        pet_grid=pet_grid,
        seed=seed,
        fractions=fractions,
        layout=layout,
    )
    pairs, notes = _check_pairs(bids, pairs, refusals)
    _check_units(bids, pairs)
    names = merge_region_names(Path(pair.dseg_table) for pair in pairs if pair.dseg_table)
    _check_any_left(bids, pairs, refusals.all, console)
    with claimed(out, plan):
        place = CachePlace(bids, out, mri_grid, pet_grid)
        rows = _make_rows(pairs, place, jobs, refusals, console)
        _check_any_left(bids, rows, refusals.all, console)
        splits = split_subjects([row.subject for row in rows], seed, fractions)
        rows = [row.model_copy(update={"split": splits[row.subject]}) for row in rows]
        index = Index(
            schema_version=SCHEMA_VERSION,
            mri_grid=mri_grid,
            pet_grid=pet_grid,
            intensity_ratio=_suggest_ratios(rows),
            rows=tuple(rows),
            versions=_versions(),
            region_names=names,
        )
        _report(bids, out, rows, [*refusals.all, *left_out], notes)
        save_index(index, out)
    _show(bids, refusals.all, notes, console)
    return Prepared(index, tuple(refusals.all))


def _check_pairs(
    bids: Path, pairs: Sequence[Pair], refusals: _Refusals
) -> tuple[list[Pair], dict[str, str]]:
    """Look at all headers before the first conforming: a 2D image should not show after an hour.

    Returns
    -------
    usable : pairs
    notes : name of an image, relative to the dataset -> what the user should know about it
    """
    usable, notes = [], {}
    for pair in pairs:
        try:
            for path in images_of(pair):
                check_inside(path, bids)
                check_inside(str(sidecar_of(path)), bids)
                note = check_header(path)
                if note:
                    notes[relative_name(path, bids)] = note
        except ImageError as error:
            refusals.add(_refusal(pair, error))
        else:
            usable.append(pair)
    return usable, notes


def _refusal(pair: Pair, error: GanbertError) -> Refusal:
    return Refusal(pair.subject, pair.session, pair.tracer, error)


def _check_any_left(
    bids: Path, left: Sequence[Pair | Row], refusals: Sequence[Refusal], console: Console
) -> None:
    if left:
        return
    if len(refusals) == 1:
        raise refusals[0].error
    _show(bids, refusals, {}, console)
    raise DatasetError(
        bids,
        expected="at least one pair that can be used",
        found=f"{len(refusals)} that cannot, listed above; the first: {refusals[0].error}",
        remedy="mend them and run the same command again",
    )


def _report(
    bids: Path,
    out: Path,
    rows: Sequence[Row],
    refusals: Sequence[Refusal],
    notes: Mapping[str, str],
) -> None:
    lines = [refusal_line(refusal, bids) for refusal in refusals]
    for row in rows:
        said = [f"{Path(name).name}: {notes[name]}" for name in row.sources if name in notes]
        lines.append(prepared_line(row.subject, row.session, row.tracer, row.sources[1], said))
    write_report(out, lines)


def _show(
    bids: Path, refusals: Sequence[Refusal], notes: Mapping[str, str], console: Console
) -> None:
    """Say in a few lines what was refused, and what the user should know of the others."""
    lines = [f"{name}: {note}" for name, note in notes.items()]
    if refusals:
        lines += [f"refused: {len(refusals)} pairs, all listed in {REPORT_NAME}"]
        for refusal in refusals[:_MAX_SHOWN]:
            file = relative_name(refusal.error.where, bids)
            lines.append(f"  {refusal.label}: {file}: {reason_of(refusal.error, bids)}")
        if len(refusals) > _MAX_SHOWN:
            lines.append(f"  ... and {len(refusals) - _MAX_SHOWN} more")
    for line in lines:
        # As it is: a path is neither markup nor broken at the edge of a terminal.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_units(bids: Path, pairs: Sequence[Pair]) -> None:
    """Refuse a tracer in two units before hours of work: training could not tell them apart."""
    for tracer in dict.fromkeys(pair.tracer for pair in pairs):
        units = Counter(pair.unit for pair in pairs if pair.tracer == tracer)
        (usual, _), *others = units.most_common()
        odd = sorted({f"sub-{p.subject}" for p in pairs if p.tracer == tracer if p.unit != usual})
        if others:
            raise DatasetError(
                bids,
                expected=f"one unit for all {tracer} PET ({usual} in most)",
                found=f"{', '.join(unit for unit, _ in others)} in {', '.join(odd)}",
                remedy="convert these images and their sidecars, or leave the subjects out",
            )


def split_subjects(
    subjects: Sequence[str], seed: int, fractions: tuple[float, float, float] = SPLIT_FRACTIONS
) -> dict[str, Split]:
    """Return the split of each subject.

    Subjects are ordered by a hash of (seed, label) and the order is cut: test first, then val, the
    rest is train. A threshold on the hash alone would never move a subject when others are added,
    but gives a cohort of ten an empty test set now and then; this way the sizes are exact (at least
    one each from three subjects on), and adding subjects moves only those near the two cuts.

    Parameters
    ----------
    subjects : labels; repeated ones (sessions, tracers) stay together
    """

    def key(subject: str) -> str:
        return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()

    ordered = sorted(set(subjects), key=key)
    num_val, num_test = (round(fraction * len(ordered)) for fraction in fractions[1:])
    if len(ordered) >= 3:
        num_val, num_test = max(num_val, 1), max(num_test, 1)
    # With one or two subjects, and whatever the fractions, there must be something to train on.
    num_test = min(num_test, max(len(ordered) - 1, 0))
    num_val = min(num_val, max(len(ordered) - num_test - 1, 0))
    splits: dict[str, Split] = dict.fromkeys(ordered, "train")
    splits |= dict.fromkeys(ordered[:num_test], "test")
    splits |= dict.fromkeys(ordered[num_test : num_test + num_val], "val")
    return splits


def _check_options(fractions: tuple[float, float, float], jobs: int | None) -> None:
    if min(fractions) < 0 or abs(sum(fractions) - 1.0) > 1e-6 or fractions[0] == 0:
        expected = "fractions of train (above 0), val and test that add up to 1"
        raise ConfigError("split", expected=expected, found=str(fractions), remedy="mend them")
    if jobs is not None and jobs < 1:
        raise ConfigError("--jobs", expected="at least 1", found=str(jobs), remedy="raise it")


def _make_or_refuse(pair: Pair, place: CachePlace) -> Row | Refusal:
    try:
        return make_row(pair, place)
    except (ImageError, DatasetError) as error:
        return _refusal(pair, error)


def _make_rows(
    pairs: Sequence[Pair],
    place: CachePlace,
    jobs: int | None,
    refusals: _Refusals,
    console: Console,
) -> list[Row]:
    """Make the rows in parallel; sorted by subject, session and tracer."""
    jobs = min(jobs or joblib.cpu_count(), len(pairs))
    # Strict: the worker's error ends the others' work as well.
    make_one = make_row if refusals.strict else _make_or_refuse
    make = joblib.delayed(functools.partial(make_one, place=place))
    columns = (
        TextColumn("prepare"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rows = []
    # One thread per process: the processes already take all cores.
    backend = joblib.parallel_config(backend="loky", inner_max_num_threads=1)
    with Progress(*columns, console=console) as progress, backend, _no_lost_worker(jobs):
        task = progress.add_task("prepare", total=len(pairs))
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        # Closed first when a row fails: no process may still write when what is half done goes.
        with contextlib.closing(parallel(map(make, pairs))) as results:
            for result in results:
                if isinstance(result, Refusal):
                    refusals.add(result)
                else:
                    rows.append(result)
                progress.advance(task)
    return sorted(rows, key=lambda row: (row.subject, row.session or "", row.tracer))


@contextlib.contextmanager
def _no_lost_worker(jobs: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise PlatformError(
            "prepare",
            expected=f"{jobs} processes at work",
            found="one that was killed, probably for want of memory",
            remedy="use fewer --jobs; finished rows are kept",
        ) from error


def _suggest_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Suggest a ratio for each tracer that has training rows, from those rows only."""
    ratios = {}
    training = [row for row in rows if row.split == "train"]
    for tracer in sorted({row.tracer for row in training}):
        chosen = [row for row in training if row.tracer == tracer]
        ratios[tracer] = suggest_intensity_ratio(
            [row.pet.p999 for row in chosen],
            [row.mri.mean for row in chosen],
            [row.mri.std for row in chosen],
        )
    return ratios


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"ganbert": ganbert.__version__, **versions, "python": platform.python_version()}
