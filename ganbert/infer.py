"""`ganbert infer`: a BIDS-App that writes a synthetic PET for every T1w of a dataset.

A T1w alone is enough. A run that was stopped is continued: what one earlier run with the same model
and the same input has finished is kept, anything else in the output folder is refused. What goes
wrong with one image does not cost the others their result; it is listed at the end. Several
processes may share one output folder, and none does a subject that another has at the time. The
weights are loaded once, and while the network is at one T1w the next are read.
"""

import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ganbert import derivatives
from ganbert.atomic import make_folder
from ganbert.data.conform import ConformedMri, conform_mri
from ganbert.data.nifti import check_header, read_volume, write_volume
from ganbert.data.volume import Volume
from ganbert.errors import ConfigError, DatasetError, GanbertError, ImageError, OutputError
from ganbert.infer_group import infer_group
from ganbert.infer_inputs import (
    Scan,
    acquired_tracers,
    check_dataset,
    check_names,
    find_scans,
)
from ganbert.infer_log import RunLog
from ganbert.infer_outcome import Failure, Outcome, sum_up
from ganbert.infer_output import (
    check_output,
    claimed,
    is_finished,
    start_dataset,
    write_image,
)
from ganbert.predict import Predictor, find_export, load_predictor
from ganbert.report.inference import write_subject
from ganbert.synthesis import Synthesis, check_passes, synthesise

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class InferOptions:
    """What the user may decide besides dataset, output and model.

    Attributes
    ----------
    participant_labels, session_labels : with or without `sub-` and `ses-`; none: all
    filter_file : see `infer_inputs.read_filters`
    device : "auto", "cpu", "cuda", ...
    passes : with a changed T1w, for the map of uncertainty; 0: none
    overwrite : compute again what is finished
    work_dir : gets the T1w of each subject as the network saw it; None: it is not kept
    nprocs : cores in use at once; None: all
    omp_nthreads : of those for the network; None: all
    check_names : say where the dataset departs from BIDS
    stop_on_first_crash : end at the first image that goes wrong
    segmentations : derivatives with `_dseg` images, besides those in the dataset (group)
    """

    participant_labels: Sequence[str] | None = None
    session_labels: Sequence[str] | None = None
    filter_file: Path | None = None
    device: str = "auto"
    passes: int = 0
    overwrite: bool = False
    work_dir: Path | None = None
    nprocs: int | None = None
    omp_nthreads: int | None = None
    check_names: bool = True
    stop_on_first_crash: bool = False
    segmentations: Sequence[Path] = ()


@dataclass(frozen=True)
class _Job:
    """What all images of one run have in common."""

    bids_dir: Path
    out_dir: Path
    predictor: Predictor
    options: InferOptions
    description: dict[str, Any]
    log: RunLog
    console: Console

    def image_of(self, scan: Scan) -> Path:
        tracer = self.predictor.card.tracer
        return self.out_dir / derivatives.pet_path(scan.subject, scan.session, tracer)

    @property
    def facts(self) -> dict[str, str]:
        facts = derivatives.model_facts(self.description)
        return facts | {"Device": self.predictor.device.type}

    def is_finished(self, scan: Scan) -> bool:
        return is_finished(self.image_of(scan), with_std=self.options.passes > 0)

    def has_page(self, scan: Scan) -> bool:
        return (self.out_dir / f"sub-{scan.subject}.html").is_file()

    def say(self, line: str) -> None:
        _say(self.console, line)
        self.log.add(line)


def infer(
    bids_dir: Path,
    out_dir: Path,
    *,
    model: Path | None = None,
    level: str = "participant",
    options: InferOptions | None = None,
    console: Console | None = None,
) -> Outcome:
    """Write a synthetic PET, as a BIDS derivative, for every T1w of a dataset.

    Parameters
    ----------
    bids_dir : dataset with T1w images; nothing else is needed
    out_dir : new, empty, or the output of an earlier run with this model and dataset: what that
        run has finished is kept and not computed again
    model : a run, its export, or a file of the export; not needed for the group
    level : "participant", or "group": report and tables of what is there
    console : where progress and the summary go; default: standard output

    Raises
    ------
    CheckpointError, ConfigError, DatasetError, OutputError
        Before anything is written.
    ImageError
        If no T1w could be used, with `stop_on_first_crash` if the first one could not.
    """
    options, console = options or InferOptions(), console or Console()
    if level == "group":
        labels = options.participant_labels
        infer_group(bids_dir, out_dir, labels, options.segmentations, console)
        return Outcome()
    if level != "participant":
        remedy = "say participant, or group for the report about all of them"
        expected = "participant or group"
        raise ConfigError("analysis level", expected=expected, found=repr(level), remedy=remedy)
    if model is None:
        remedy = "give the folder of a run, or an exported generator.safetensors"
        raise ConfigError("--model", expected="a model", found="none", remedy=remedy)
    check_passes(options.passes, "--uncertainty")
    _check_places(bids_dir, model)
    predictor = load_predictor(model, options.device)
    scans = find_scans(
        bids_dir, options.participant_labels, options.session_labels, options.filter_file
    )
    description = derivatives.dataset_description(predictor.card, bids_dir, out_dir)
    check_output(out_dir, description)
    log = RunLog(out_dir, derivatives.model_facts(description) | {"T1w images": str(len(scans))})
    job = _Job(bids_dir, out_dir, predictor, options, description, log, console)
    if options.check_names:
        for remark in check_names(bids_dir, scans):
            job.say(f"note: {remark}; --skip-bids-validation leaves this out")
    return _run(job, scans)


def _check_places(bids_dir: Path, model: Path) -> None:
    """Look at both before either is read, which takes a while; say both where both are missing."""
    problems = []
    for check, path in ((check_dataset, bids_dir), (find_export, model)):
        try:
            check(path)
        except GanbertError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        first, second = problems
        remedy = f"{first.remedy}; besides, {second}"
        raise DatasetError(first.where, expected=first.expected, found=first.found, remedy=remedy)


def _run(job: _Job, scans: Sequence[Scan]) -> Outcome:
    num_readers = _share_cores(job)
    outcome = Outcome()
    todo = []
    new_folders = [path for path in (job.out_dir, *job.out_dir.parents) if not path.exists()]
    try:
        for scan in scans:
            if scan.problem is not None:
                outcome.failures.append(_failure(job, scan, scan.problem))
            elif job.options.overwrite or not job.is_finished(scan) or not job.has_page(scan):
                todo.append(scan)
            else:
                outcome.keep(job.image_of(scan))
        if todo and (job.out_dir / derivatives.DESCRIPTION_NAME).exists():
            _open(job)
        with _progress(job.console) as progress:
            task = progress.add_task("infer", total=len(scans), completed=len(scans) - len(todo))
            advance = functools.partial(progress.advance, task)
            elsewhere = _go_through(job, todo, outcome, advance, num_readers, wait=False)
            # Whoever had them may have been stopped: what is asked for is there at the end.
            _go_through(job, elsewhere, outcome, advance, num_readers, wait=True)
    finally:
        # Nothing came of it, and a lock alone has made them.
        for folder in new_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
    outcome.images.sort()
    sum_up(outcome, len(scans), job.out_dir, job.say)
    return outcome


def _go_through(
    job: _Job,
    scans: Sequence[Scan],
    outcome: Outcome,
    advance: Callable[[], None],
    num_readers: int,
    *,
    wait: bool,
) -> list[Scan]:
    """Make images; return those whose subjects another process has, unless they are waited for."""
    elsewhere: list[Scan] = []
    pairs = read_ahead(lambda scan: _read(job, scan), scans, num_readers)
    with contextlib.closing(pairs):
        for scan, read in pairs:
            if outcome.failures and job.options.stop_on_first_crash:
                break
            with claimed(job.out_dir, f"sub-{scan.subject}", wait=wait) as is_ours:
                if not is_ours:
                    if not elsewhere:
                        job.say(f"another process works in {job.out_dir}: its subjects come last")
                    job.log.add(f"{scan.label}: another process has it")
                    elsewhere.append(scan)
                    continue
                if job.options.overwrite or not job.is_finished(scan):
                    _one(job, scan, read, outcome)
                else:
                    outcome.keep(job.image_of(scan), at_once=job.has_page(scan))
                    _write_page(job, scan)
            advance()
    return elsewhere


def _open(job: _Job) -> None:
    """Make the output folder a dataset, and begin its log, if that is still to be done."""
    if not job.log.is_open:
        start_dataset(job.out_dir, job.description, job.predictor.card, job.options.passes)
        job.log.open()


def _one(
    job: _Job, scan: Scan, read: "Future[tuple[Volume, ConformedMri]]", outcome: Outcome
) -> None:
    """Make one image; what goes wrong with it alone is kept for the end."""
    started = time.perf_counter()
    try:
        note = check_header(job.bids_dir / scan.path)
        if note:
            job.say(f"{scan.label}: {note}")
        made = _synthesise(job, scan, read)
        _open(job)
        _write(job, scan, made)
        _write_page(job, scan)
    except OutputError:
        raise  # what cannot be written for one cannot be written for the next
    except Exception as error:  # noqa: BLE001 - a bug or a lack of memory: the others go on
        outcome.failures.append(_failure(job, scan, error))
        return
    seconds = time.perf_counter() - started
    warned = f", {made.quality.num_warnings} warnings" if made.quality.num_warnings else ""
    job.log.add(f"{scan.label}: done in {seconds:.1f} s{warned}")
    for flag in made.quality.flags:
        if flag.severity == "warning":
            job.say(f"{scan.label}: {flag.name}: {flag.text}")
    outcome.images.append(job.image_of(scan))


def _failure(job: _Job, scan: Scan, error: Exception) -> Failure:
    is_known = isinstance(error, GanbertError)
    if job.options.stop_on_first_crash and not is_known:
        raise error
    is_started = (job.out_dir / derivatives.DESCRIPTION_NAME).exists()
    # No traceback of a mistake that the line explains, and no folder for a traceback alone.
    file = None if is_known or not is_started else job.log.crash(scan.stem, error)
    failure = Failure(scan, error, file)
    job.say(str(failure))
    return failure


def _read(job: _Job, scan: Scan) -> tuple[Volume, ConformedMri]:
    """Read a T1w and bring it onto the grid of the network; in another thread than the network."""
    path = job.bids_dir / scan.path
    try:
        mri = read_volume(path)
        return mri, conform_mri(mri, job.predictor.card.mri_grid)
    except ImageError as error:
        # What only sees voxels cannot name the file.
        where = error.where if str(path) in str(error.where) else path
        raise ImageError(
            where, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def _synthesise(job: _Job, scan: Scan, read: "Future[tuple[Volume, ConformedMri]]") -> Synthesis:
    mri, conformed = read.result()
    return synthesise(
        job.predictor,
        mri,
        conformed=conformed,
        passes=job.options.passes,
        tracers=acquired_tracers(job.bids_dir, scan),
    )


def read_ahead(
    read: Callable[[_Item], _Result], items: Sequence[_Item], num_readers: int
) -> Generator[tuple[_Item, "Future[_Result]"]]:
    """Yield each item with its result to come, while the next ones are read.

    Parameters
    ----------
    read : called in threads
    num_readers : items that are read, or wait to be taken, at once besides the one that was
        yielded; bounds the memory
    """
    with ThreadPoolExecutor(num_readers, thread_name_prefix="read") as pool:
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > num_readers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _share_cores(job: _Job) -> int:
    """Give the network its threads, and return how many T1w are read at once."""
    num_cores = job.options.nprocs or len(os.sched_getaffinity(0))
    num_threads = min(job.options.omp_nthreads or num_cores, num_cores)
    torch.set_num_threads(num_threads)
    return max(1, num_cores - num_threads)


def _write(job: _Job, scan: Scan, made: Synthesis) -> None:
    write_image(job.image_of(scan), job.predictor.card, scan.path, made, job.options.passes)
    if job.options.work_dir is not None:
        folder = make_folder(job.options.work_dir / f"sub-{scan.subject}")
        file = folder / f"{scan.stem}_desc-conformed_T1w.nii.gz"
        write_volume(file, made.conformed.volume, dtype="uint8")


def _write_page(job: _Job, scan: Scan) -> None:
    write_subject(job.out_dir, f"sub-{scan.subject}", job.facts)


def _say(console: Console, text: str) -> None:
    """Print one line as it is: a path is neither markup nor broken at the edge of a terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
