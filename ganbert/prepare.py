"""`ganbert prepare`: a dataset becomes a streaming cache and its index.

The layout finds pairs, and a plan for frames and unit of each PET is made from its sidecar; what
is not usable by then is left out with a warning. For each pair, `data/cache.py` conforms and writes
the images. Then: split by subject, suggest an intensity ratio per tracer from the training rows,
and write `index.json` last, so that a folder with an index is a whole one.

    out/prepare.json        what this folder is made from, written first
    out/cache/...           images and one JSON per finished row
    out/index.json          written last

Interrupting loses at most the rows at work: finished ones are not made again. Left-over `*.tmp` are
removed by the next run. An unusable image stops the run; what was finished stays for the next one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from pydantic import BaseModel, ConfigDict, ValidationError
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
from ganbert.atomic import SUFFIX as TEMPORARY
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import Grid
from ganbert.data.cache import CACHE_NAME, CachePlace, images_of, make_row
from ganbert.data.conform import suggest_intensity_ratio
from ganbert.data.frames import AS_IS
from ganbert.data.index import (
    INDEX_NAME,
    SCHEMA_VERSION,
    Index,
    Row,
    Split,
    save_index,
)
from ganbert.data.layouts import find_pairs
from ganbert.data.nifti import check_header
from ganbert.data.pairing import DEFAULT_PAIRING, MAX_DAYS, LayoutOptions, Rejected, no_pairs
from ganbert.data.recast import NO_RECAST, RecastOptions, plan_recasts, reference_names
from ganbert.data.regions import merge_region_names
from ganbert.data.volume import Pair
from ganbert.errors import ConfigError, DatasetError, OutputError, PlatformError

_log = logging.getLogger(__name__)
SPLIT_FRACTIONS = (0.7, 0.1, 0.2)
_PLAN_NAME = "prepare.json"
_MAX_NAMED = 3
_PACKAGES = ("nibabel", "numpy", "scipy")


class Plan(BaseModel):
    """What an output folder is made from (`prepare.json`).

    Attributes
    ----------
    dataset : absolute path of the input
    layout : key of `LAYOUTS`
    fractions : of subjects in train, val and test
    max_days, series : of `LayoutOptions`
    frames, unit, reference_regions, reference_mask : of `RecastOptions`
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
    frames: str = AS_IS
    unit: str | None = None
    reference_regions: tuple[str, ...] = ()
    reference_mask: str | None = None


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
    jobs: int | None = None,
    console: Console | None = None,
) -> Index:
    """Prepare a dataset for training.

    Parameters
    ----------
    bids : dataset with T1w and PET, as `layout` says
    out : new or empty folder, or one that a previous run with the same options has begun
    seed : of the split
    fractions : of subjects in train, val and test; they add up to 1
    layout : how the dataset lies on disk, a key of `ganbert.data.layouts.LAYOUTS`
    pairing : which MRI belongs to a PET
    recast : what becomes of the frames and the unit of the PETs
    jobs : processes; None for one per core
    console : for the progress bar; None for standard error

    Returns
    -------
    Index
        As written to `out/index.json`.

    Raises
    ------
    ConfigError
        If `fractions` or `jobs` make no sense, or there is no such layout.
    DatasetError, ImageError
        If the dataset, one of its images or a table of regions is not usable, or no pair is left.
        Finished rows stay for the next run. A PET whose sidecar alone shows that it is not usable
        is left out with a warning.
    OutputError
        If `out` is not empty and not a previous run on the same inputs with the same options, or
        cannot be written.
    """
    _check_options(fractions, jobs)
    # What is named in a table of pairs lies beside that table.
    dataset = bids.parent if bids.is_file() else bids
    found = find_pairs(bids, layout, pairing)
    tables = (Path(pair.dseg_table) for pair in found.pairs if pair.dseg_table)
    names = merge_region_names(tables)
    pairs, unfit = plan_recasts(found.pairs, recast, names, dataset)
    _log_rejected([*found.rejected, *unfit])
    if not pairs:
        raise no_pairs(bids, unfit)
    _check_units(bids, pairs)
    options = {"layout": layout, **dataclasses.asdict(pairing), **dataclasses.asdict(recast)}
    grids = {"mri_grid": mri_grid, "pet_grid": pet_grid}
    plan = Plan(dataset=str(bids.resolve()), seed=seed, fractions=fractions, **grids, **options)
    # All headers before the first conforming: a 2D image should not show after an hour.
    for path in dict.fromkeys(path for pair in pairs for path in images_of(pair)):
        check_header(path)
    splits = split_subjects([pair.subject for pair in pairs], seed, fractions)
    with _claimed(out, plan):
        place = CachePlace(dataset, out, mri_grid, pet_grid)
        rows = _make_rows(pairs, place, jobs, console or Console(stderr=True))
        rows = [row.model_copy(update={"split": splits[row.subject]}) for row in rows]
        index = Index(
            schema_version=SCHEMA_VERSION,
            **grids,
            intensity_ratio=_suggest_ratios(rows),
            rows=tuple(rows),
            versions=_versions(),
            region_names=names,
            frames=recast.frames,
            reference=reference_names(pairs, recast),
        )
        save_index(index, out)
    return index


def _log_rejected(left_out: Sequence[Rejected]) -> None:
    """Log one line a reason: a download may hold thousands of images of another series."""
    paths: dict[str, list[str]] = {}
    for entry in left_out:
        paths.setdefault(entry.reason, []).append(entry.path)
    for reason, named in paths.items():
        others = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        _log.warning("left out: %s%s: %s", ", ".join(named[:_MAX_NAMED]), others, reason)


def _check_units(bids: Path, pairs: Sequence[Pair]) -> None:
    """Refuse a tracer in two units before hours of work: training could not tell them apart."""
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


@contextlib.contextmanager
def _claimed(out: Path, plan: Plan) -> Iterator[None]:
    """Make or take over the output folder; leave no empty shell behind on failure."""
    cache = out / CACHE_NAME
    try:
        is_new = _check_out(out, plan)
        existed = out.exists()
        make_folder(cache)
        _remove_half_done(out)
        # Rows may change, and an index must not outlive them.
        (out / INDEX_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    try:
        write_text(out / _PLAN_NAME, plan.model_dump_json(indent=1) + "\n")
        yield
    except BaseException:
        _remove_half_done(out)
        if is_new and not any(cache.glob("*.json")):
            _remove_shell(out, cache, keep=existed)
        raise


def _remove_half_done(out: Path) -> None:
    """Remove what a process that was ended in the middle of a file has left."""
    for folder in (out, out / CACHE_NAME):
        for leftover in folder.glob(f"*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def _check_out(out: Path, plan: Plan) -> bool:
    """Return whether `out` is new or empty; raise if it holds anything but the same plan."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    remedy = "choose another folder or remove it"
    try:
        previous = Plan.model_validate_json((out / _PLAN_NAME).read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        found = "a folder that is not empty" if out.is_dir() else "a file"
        expected = "an empty folder, or one that `ganbert prepare` has begun"
        raise OutputError(out, expected=expected, found=found, remedy=remedy) from error
    changed = [name for name in Plan.model_fields if getattr(previous, name) != getattr(plan, name)]
    if changed:
        found = f"a cache made with {_describe(previous, changed)}"
        raise OutputError(out, expected=_describe(plan, changed), found=found, remedy=remedy)
    return False


def _describe(plan: Plan, names: Sequence[str]) -> str:
    def text(value: object) -> str:
        if not isinstance(value, Grid):
            return str(value)
        shape = "x".join(map(str, value.shape))
        return f"{shape} at {'x'.join(f'{edge:g}' for edge in value.spacing_mm)} mm"

    return ", ".join(f"{name} {text(getattr(plan, name))}" for name in names)


def _remove_shell(out: Path, cache: Path, *, keep: bool) -> None:
    for file in [*cache.iterdir(), out / _PLAN_NAME]:
        file.unlink(missing_ok=True)
    cache.rmdir()
    if not keep:
        out.rmdir()


def _make_rows(
    pairs: Sequence[Pair], place: CachePlace, jobs: int | None, console: Console
) -> list[Row]:
    """Make the rows in parallel; sorted by subject, session and tracer."""
    jobs = min(jobs or joblib.cpu_count(), len(pairs))
    make = joblib.delayed(functools.partial(make_row, place=place))
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
            for row in results:
                rows.append(row)
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
