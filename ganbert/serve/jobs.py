"""Jobs: one upload each, from its place in the queue to the day when its files are deleted.

All of this runs in one event loop, so nothing here is locked.
"""

import asyncio
import contextlib
import secrets
import shutil
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ganbert.quality import Flag

PET_NAME = "pet.nii.gz"
SIDECAR_NAME = "pet.json"
STD_NAME = "std.nii.gz"
STD_SIDECAR_NAME = "std.json"


class State(StrEnum):
    """Of a job; the last two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes
    ----------
    kind : "image" (it cannot be used), "timeout", "crash" (the worker died), "internal" (a bug)
    reason : one line for whoever sent the image
    """

    kind: str
    reason: str


@dataclass
class Job:
    """One upload.

    Attributes
    ----------
    id : 128 random bits; who knows it may see the result
    folder : of its files, another random name
    t1w : the upload, under a name of ours; gone when the job has ended
    passes : augmented ones, for the map of uncertainty; 0: none is wanted
    progress : 0 to 1
    stage : what is being done, in a word
    notes : what the user should know of the upload although it was taken
    tracers : names of those that are wanted
    flags : what the user should know of the result
    is_failure_seen : whether a client has been told that it failed
    fetched : files of the result that a client has got
    """

    folder: Path
    t1w: Path
    passes: int = 0
    notes: tuple[str, ...] = ()
    tracers: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = State.QUEUED
    stage: str = "waiting"
    progress: float = 0.0
    failure: Failure | None = None
    flags: tuple[Flag, ...] = ()
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    is_failure_seen: bool = False
    fetched: set[str] = field(default_factory=set)
    is_forgotten: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in (State.DONE, State.FAILED)

    @property
    def files(self) -> frozenset[str]:
        """Names of the files of its result."""
        more = (STD_NAME, STD_SIDECAR_NAME) if self.passes else ()
        return frozenset((PET_NAME, SIDECAR_NAME, *more))

    @property
    def is_fetched(self) -> bool:
        """Whether its owner has all there is: every file, or the word that it failed."""
        return self.is_failure_seen or self.fetched >= self.files

    def change(self, **values: Any) -> None:
        """Set attributes and wake up whoever waits."""
        for name, value in values.items():
            setattr(self, name, value)
        self._changed.set()
        self._changed = asyncio.Event()

    def start(self) -> None:
        """A worker has taken it."""
        self.change(state=State.RUNNING, stage="starting", started=time.time())

    def finish(self, failure: Failure | None, flags: tuple[Flag, ...] = ()) -> None:
        """End it; the upload is of no more use, and is deleted."""
        self.t1w.unlink(missing_ok=True)
        if failure is None:
            state, stage, progress = State.DONE, "done", 1.0
        else:
            state, stage, progress = State.FAILED, "failed", self.progress
        self.change(
            state=state, stage=stage, progress=progress, failure=failure, ended=time.time(),
            flags=flags,
        )  # fmt: skip

    async def wait_for_change(self, seconds: float) -> bool:
        """Return whether something changed within so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
            return True
        return False


class JobTable:
    """The jobs that can be asked for, by id.

    Parameters
    ----------
    keep_seconds : after its end a job and its files are deleted
    """

    def __init__(self, keep_seconds: float) -> None:
        self.keep_seconds = keep_seconds
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Make a job known."""
        self._jobs[job.id] = job

    def get(self, job_id: str) -> Job | None:
        """Return a job; None if there is none of that id, or no longer."""
        return self._jobs.get(job_id)

    def forget(self, job: Job) -> None:
        """Delete a job and its files; those of one that runs when its worker is done with them."""
        self._jobs.pop(job.id, None)
        job.change(is_forgotten=True)
        if job.state is not State.RUNNING:
            remove_files(job)

    def expires(self, job: Job) -> float | None:
        """Return when a job that has ended will be deleted, s since 1970."""
        return None if job.ended is None else job.ended + self.keep_seconds

    def count_unfinished(self) -> int:
        """Return how many jobs wait or run."""
        return sum(not job.is_final for job in self._jobs.values())

    def are_fetched(self) -> bool:
        """Whether the end of every job has been seen."""
        return all(job.is_fetched for job in self._jobs.values())

    def forget_expired(self) -> None:
        """Delete what has been kept long enough."""
        now = time.time()
        for job in list(self._jobs.values()):
            if job.ended is not None and job.ended + self.keep_seconds <= now:
                self.forget(job)

    async def keep_clean(self) -> None:
        """Delete what expires, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self.keep_seconds))
            self.forget_expired()


def remove_files(job: Job) -> None:
    """Delete the folder of a job."""
    shutil.rmtree(job.folder, ignore_errors=True)
