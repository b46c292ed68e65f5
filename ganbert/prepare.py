"""`ganbert prepare`: a dataset becomes a streaming cache and its index.

The layout finds pairs, and a plan for frames and unit of each PET is made from its sidecar. For
each pair, `data/cache.py` conforms and writes the images. Then: split by subject (`data/split.py`),
suggest an intensity ratio per tracer from the training rows, and write `index.json` last, so that a
folder with an index is a whole one. What lies in the folder: `prepared_folder.py`.

Interrupting loses at most the rows at work: finished ones are not made again. Left-over `*.tmp` are
removed by the next run. A pair with an unusable image or sidecar is refused and listed, and the
others go on; with `strict` the first one stops the run (`pair_checks.py`). What was finished stays
for the next one.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
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
from ganbert.data.cache import CachePlace, MadeRow, make_row
from ganbert.data.conform import suggest_intensity_ratio
from ganbert.data.index import SCHEMA_VERSION, Index, Row, Split, save_index
from ganbert.data.layouts import get_layout, survey
from ganbert.data.pairing import DEFAULT_PAIRING, LayoutOptions
from ganbert.data.recast import NO_RECAST, RecastOptions, plan_recasts, reference_names
from ganbert.data.refusals import Refusal
from ganbert.data.regions import merge_region_names
from ganbert.data.split import (
    SPLIT_FRACTIONS,
    check_can_train,
    describe_doubles,
    describe_gaps,
    describe_split,
    find_strata,
    split_subjects,
)
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, ImageError, OutputError, PlatformError
from ganbert.pair_checks import (
    RefusalLog,
    check_any_left,
    check_headers,
    check_places,
    check_sides,
    check_units,
    describe_timings,
    refusal_of,
    report,
    show,
)
from ganbert.prepared_folder import Plan, claimed, describe_unused, read_split, write_split
from ganbert.workers import own_workers

_PACKAGES = ("nibabel", "numpy", "scipy")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made: `out/index.json`, and the pairs that are not in it."""

    index: Index
    refusals: tuple[Refusal, ...]


def prepare(
    bids: Path,
    out: Path,
    *,
    mri_grid: Grid,
    pet_grid: Grid,
    seed: int = 0,
    fractions: tuple[float, float, float] = SPLIT_FRACTIONS,
    layout: str = "bids",
    pairing: LayoutOptions = DEFAULT_PAIRING,
    recast: RecastOptions = NO_RECAST,
    split_from: Path | None = None,
    cached: bool = True,
    jobs: int | None = None,
    strict: bool = False,
    verify_inputs: bool = False,
    console: Console | None = None,
) -> Prepared:
    """Prepare a dataset for training.

    Parameters
    ----------
    bids : dataset with T1w and PET, as `layout` says
    out : new or empty folder, or one that a previous run with the same options has begun
    seed : of the split
    fractions : of subjects in train, val and test; they add up to 1
    layout : how the dataset lies on disk, a key of `ganbert.data.layouts.LAYOUTS`
    pairing : which MRI belongs to a PET; which columns say diagnosis and side of the split
    recast : what becomes of the frames and the unit of the PETs
    split_from : `split.tsv`, index or prepared folder, whose subjects keep their side; what it says
        is copied into `out`, so a second run can do without
    cached : keep the conformed images; without them training reads the dataset, slowly
    jobs : processes; None for one per core
    strict : raise at the first pair that cannot be used, instead of leaving it out
    verify_inputs : compare the content of all inputs with the last run's, not size and time alone
    console : for the progress bar and what was refused; None for standard error

    Raises
    ------
    ConfigError
        If `fractions`, `jobs` or the split's options make no sense, or there is no such layout.
    DatasetError, ImageError
        If the dataset as a whole, a table of regions or (`strict`: any) every pair is not usable.
        Finished rows stay for the next run. So too if a given split is torn, of other subjects,
        contradicts itself or a previous run, or leaves nobody to train on.
    OutputError
        If `out` lies among the subjects, is in use for something else, or not writable.
    """
    _check_options(fractions, jobs)
    _check_place(bids, out, layout)
    given = _read_given(split_from, pairing.split_column)
    console, log, dataset = console or Console(stderr=True), RefusalLog(strict), _root_of(bids)
    found = survey(bids, layout, pairing)
    log.add(*found.refusals)
    _check_given(split_from, given, found.pairs)
    options = {"layout": layout, **dataclasses.asdict(pairing), **dataclasses.asdict(recast)}
    options |= {"mri_grid": mri_grid, "pet_grid": pet_grid, "cached": cached, "seed": seed}
    plan = Plan(dataset=str(bids.resolve()), fractions=fractions, **options)
    pairs, sides = check_sides(found.pairs, pairing.split_column, given, log)
    pairs = check_places(dataset, pairs, log)
    names = merge_region_names(Path(pair.dseg_table) for pair in pairs if pair.dseg_table)
    # From the sidecars alone, before the first image is opened.
    pairs, unfit = plan_recasts(pairs, recast, names, dataset)
    log.add(*unfit)
    pairs, notes = check_headers(dataset, pairs, log)
    check_units(bids, pairs)
    check_any_left(dataset, pairs, log, console)
    with claimed(out, plan, sides) as known:
        place = CachePlace(dataset, out, mri_grid, pet_grid, cached, verify_inputs)
        rows = _make_rows(pairs, place, jobs, log, console)
        check_any_left(dataset, rows, log, console)
        rows = _split(rows, found.pairs, plan, known, console)
        _say(console, describe_unused(out, rows))
        index = _make_index(rows, pairs, plan, recast, names)
        report(dataset, out, rows, log, notes)
        write_split(out, known | {row.subject: row.split for row in rows})
        save_index(index, out)
    show(dataset, log, notes, console)
    return Prepared(index, tuple(log.refused))


def _check_options(fractions: tuple[float, float, float], jobs: int | None) -> None:
    if min(fractions) < 0 or abs(sum(fractions) - 1.0) > 1e-6 or fractions[0] == 0:
        expected = "fractions of train (above 0), val and test that add up to 1"
        raise ConfigError("split", expected=expected, found=str(fractions), remedy="mend them")
    if jobs is not None and jobs < 1:
        raise ConfigError("--jobs", expected="at least 1", found=str(jobs), remedy="raise it")


def _check_place(dataset: Path, out: Path, layout: str) -> None:
    """Refuse a folder in which the next search of the dataset would find what this run makes."""
    place, root = out.resolve(), dataset.resolve()
    kind = get_layout(layout)
    if place.is_relative_to(root) and kind.searches(place.relative_to(root)):
        raise OutputError(
            out,
            expected=kind.place_for_results,
            found=f"one inside of {dataset}",
            remedy="choose another folder",
        )


def _root_of(bids: Path) -> Path:
    # What is named in a table of pairs lies beside that table.
    return bids.parent if bids.is_file() else bids


def _read_given(split_from: Path | None, column: str | None) -> dict[str, Split]:
    if split_from is None:
        return {}
    if column is not None:
        expected, found = "one source of the split", "--split-column as well"
        raise ConfigError("--split-from", expected=expected, found=found, remedy="leave one out")
    return read_split(split_from)


def _check_given(
    split_from: Path | None, given: Mapping[str, Split], pairs: Sequence[Pair]
) -> None:
    # Who gives a split wants it kept; a fresh one would mix what was held out with the rest.
    if split_from is not None and not given.keys() & {pair.subject for pair in pairs}:
        raise DatasetError(
            split_from,
            expected="at least one subject of this dataset",
            found=f"{len(given)} others",
            remedy="check the file and the labels, or leave out --split-from",
        )


def _make_or_refuse(pair: Pair, place: CachePlace) -> MadeRow | Refusal:
    try:
        return make_row(pair, place)
    except (ImageError, DatasetError) as error:
        return refusal_of(pair, error)


def _make_rows(
    pairs: Sequence[Pair],
    place: CachePlace,
    jobs: int | None,
    log: RefusalLog,
    console: Console,
) -> list[Row]:
    """Make the rows in parallel, say how many; sorted by subject, session and tracer."""
    jobs = min(jobs or joblib.cpu_count(), len(pairs))
    # Strict: the worker's error ends the others' work as well.
    make_one = make_row if log.strict else _make_or_refuse
    make = joblib.delayed(functools.partial(make_one, place=place))
    columns = (
        TextColumn("prepare"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    made: list[MadeRow] = []
    # One thread per process: the processes already take all cores.
    with Progress(*columns, console=console) as progress, own_workers(), _no_lost_worker(jobs):
        task = progress.add_task("prepare", total=len(pairs))
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        # Closed first when a row fails: no process may still write when what is half done goes.
        with contextlib.closing(parallel(map(make, pairs))) as results:
            for result in results:
                if isinstance(result, Refusal):
                    log.add(result)
                else:
                    made.append(result)
                progress.advance(task)
    num_kept = sum(each.was_kept for each in made)
    kept = f", {num_kept} kept from before" if num_kept else ""
    if made:
        _say(console, f"{len(made) - num_kept} rows made{kept}")
    return sorted(
        (each.row for each in made), key=lambda row: (row.subject, row.session or "", row.tracer)
    )


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


def _split(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    plan: Plan,
    known: Mapping[str, Split],
    console: Console,
) -> list[Row]:
    """Put each row on its side of the split, and say how many are where."""
    strata = find_strata(((row.subject, row.tracer) for row in rows), pairs)
    sides = split_subjects(strata, plan.seed, plan.fractions, known)
    check_can_train(plan.dataset, sides.values())
    num_known = len(strata.keys() & known)
    _say(console, describe_split(sides, strata, num_known=num_known, column=plan.split_column))
    placed = [row.model_copy(update={"split": sides[row.subject]}) for row in rows]
    gaps, doubles = describe_gaps(sides, strata), describe_doubles(placed)
    for warning in (gaps, doubles, describe_timings(placed)):
        _say(console, warning)
    return placed


def _say(console: Console, line: str | None) -> None:
    if line is not None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _make_index(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    plan: Plan,
    recast: RecastOptions,
    names: dict[int, str],
) -> Index:
    tracers = {row.tracer for row in rows}
    return Index(
        schema_version=SCHEMA_VERSION,
        mri_grid=plan.mri_grid,
        pet_grid=plan.pet_grid,
        intensity_ratio=_suggest_ratios(rows),
        rows=tuple(rows),
        versions=_versions(),
        region_names=names,
        frames=recast.frames,
        reference=reference_names([pair for pair in pairs if pair.tracer in tracers], recast),
        cached=plan.cached,
    )


def _suggest_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Suggest a ratio for each tracer that has training rows, from those rows only."""
    ratios = {}
    training = [row for row in rows if row.split == "train"]
    for tracer in sorted({row.tracer for row in training}):
        chosen = [row for row in training if row.tracer == tracer]
        ratio = suggest_intensity_ratio(
            [row.pet.p999 for row in chosen],
            [row.mri.mean for row in chosen],
            [row.mri.std for row in chosen],
        )
        # PETs whose brightest voxels are not above 0 have none, and whoever asks for it is told.
        if ratio > 0:
            ratios[tracer] = ratio
    return ratios


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"ganbert": ganbert.__version__, **versions, "python": platform.python_version()}
