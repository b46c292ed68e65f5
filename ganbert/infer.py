"""`ganbert infer`: a BIDS-App that writes a synthetic PET for every T1w of a dataset.

A T1w alone is enough. A run that was stopped is continued: what one earlier run with the same model
and the same input has finished is kept, anything else in the output folder is refused. What goes
wrong with one image does not cost the others their result; it is listed at the end. The weights are
loaded once, and while the network is at one T1w the next are read.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
from ganbert.errors import ConfigError, GanbertError, ImageError, OutputError
from ganbert.infer_group import infer_group
from ganbert.infer_inputs import Scan, acquired_tracers, check_names, find_scans
from ganbert.infer_log import RunLog
from ganbert.infer_output import (
    check_output,
    is_finished,
    start_dataset,
    write_citation,
    write_image,
)
from ganbert.predict import Predictor, load_predictor
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
class Failure:
    """An image that there is no PET of.

    Attributes
    ----------
    error : what went wrong
    crash_file : its traceback, where it was no mistake in the image
    """

    scan: Scan
    error: Exception
    crash_file: Path | None = None

    def __str__(self) -> str:
        text = " ".join(str(self.error).split()) or type(self.error).__name__
        more = f" (traceback: {self.crash_file})" if self.crash_file else ""
        return f"{self.scan.label}: {text}{more}"


@dataclass
class Outcome:
    """What came of a run.

    Attributes
    ----------
    images : paths, of this run and of an earlier one
    failures : of this run
    num_kept : of `images`, how many are of an earlier run
    """

    images: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    num_kept: int = 0


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
        If no T1w could be used, or one could not and `stop_on_first_crash` is set.
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


def _run(job: _Job, scans: Sequence[Scan]) -> Outcome:
    num_readers = _share_cores(job)
    outcome = Outcome()
    todo = []
    for scan in scans:
        if job.options.overwrite or not job.is_finished(scan):
            todo.append(scan)
            continue
        outcome.images.append(job.image_of(scan))
        if not (job.out_dir / f"sub-{scan.subject}.html").is_file():
            _write_page(job, scan)
    outcome.num_kept = len(outcome.images)
    if todo and (job.out_dir / derivatives.DESCRIPTION_NAME).exists():
        write_citation(job.out_dir, job.predictor.card, job.options.passes)
        job.log.open()
    with _progress(job.console) as progress:
        task = progress.add_task("infer", total=len(scans), completed=outcome.num_kept)
        for scan, read in read_ahead(lambda scan: _read(job, scan), todo, num_readers):
            _one(job, scan, read, outcome)
            progress.advance(task)
    outcome.images.sort()
    _sum_up(job, outcome, len(scans))
    return outcome


def _one(
    job: _Job, scan: Scan, read: "Future[tuple[Volume, ConformedMri]]", outcome: Outcome
) -> None:
    """Make one image; what goes wrong with it alone is kept for the end."""
    predictor, started = job.predictor, time.perf_counter()
    try:
        note = check_header(job.bids_dir / scan.path)
        if note:
            job.say(f"{scan.label}: {note}")
        made = _synthesise(job, scan, read)
        if not (job.out_dir / derivatives.DESCRIPTION_NAME).exists():
            start_dataset(job.out_dir, job.description, predictor.card, job.options.passes)
            job.log.open()
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
    if job.options.stop_on_first_crash:
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
) -> Iterator[tuple[_Item, "Future[_Result]"]]:
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


def _sum_up(job: _Job, outcome: Outcome, num_scans: int) -> None:
    """Say what came of it, list what failed, and raise if there is nothing else."""
    kept = f" ({outcome.num_kept} from an earlier run)" if outcome.num_kept else ""
    job.say(f"{len(outcome.images)} of {num_scans} synthetic PET in {job.out_dir}{kept}")
    failures = outcome.failures
    if failures and outcome.images:
        job.say(f"failed: {len(failures)} of {num_scans}")
        for failure in failures:
            job.say(f"  {failure}")
        job.say("mend them and run the same command again; what is finished is kept")
        return
    bug = next((f.error for f in failures if not isinstance(f.error, GanbertError)), None)
    if bug is not None:
        raise bug
    if len(failures) == 1:
        raise failures[0].error
    if failures:
        first = failures[0].error
        raise ImageError(
            job.out_dir,
            expected=f"{num_scans} readable T1w",
            found=f"{len(failures)} that are not, listed above; the first is "
            f"{first.where if isinstance(first, GanbertError) else first}",
            remedy="mend them and run the same command again, what is finished is kept",
        )


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
