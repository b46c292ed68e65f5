"""The bounded queue, and one worker process a device that takes jobs from it.

A place is taken before the upload is read and given back when a worker takes the job, so that what
cannot be queued is refused before it costs anything. A worker that dies or takes too long costs its
own job alone: it is started again.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator

from ganbert.errors import GanbertError
from ganbert.quality import Flag
from ganbert.serve.jobs import Failure, Job, State, remove_files
from ganbert.serve.measures import Measures
from ganbert.serve.settings import Settings
from ganbert.serve.worker_process import WorkerDied, WorkerProcess

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0
_GUESSED_JOB_SECONDS = 5.0


class Pool:
    """Queue and workers.

    Parameters
    ----------
    settings : model, devices and limits
    measures : is told what happens
    """

    def __init__(self, settings: Settings, measures: Measures) -> None:
        self.settings, self.measures = settings, measures
        self.workers = [WorkerProcess(settings.model, device) for device in settings.devices]
        self.is_draining = False
        self.fatal: GanbertError | None = None
        self.on_fatal = lambda: None
        self._queue: deque[Job] = deque()
        self._has_work = asyncio.Event()
        self._num_uploads = 0
        self._running: dict[str, Job] = {}
        self._ready: set[str] = set()
        self._mean_seconds = _GUESSED_JOB_SECONDS
        self._tasks: list[asyncio.Task[None]] = []
        limit = settings.limits.queue
        measures.watch("queue_length", "Uploads under way or waiting", lambda: self.length)
        measures.watch("queue_limit", "Most of them that are taken", lambda: limit)
        measures.watch("workers_ready", "Workers with a loaded model", lambda: len(self._ready))
        measures.watch("jobs_running", "Jobs being computed", lambda: len(self._running))

    @property
    def length(self) -> int:
        """Uploads that are being received, and jobs that wait."""
        return self._num_uploads + len(self._queue)

    @property
    def is_ready(self) -> bool:
        """Whether a job that comes now would be computed."""
        return bool(self._ready) and not self.is_draining

    @property
    def is_idle(self) -> bool:
        """Whether nothing is received, waits or runs."""
        return self.length == 0 and not self._running

    @property
    def retry_after(self) -> int:
        """Guess after how many seconds there is a place again."""
        return max(1, round(self._mean_seconds / len(self.workers)))

    def start(self) -> None:
        """Start the workers; returns before their models are loaded."""
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self.workers]

    async def stop(self) -> None:
        """End all workers, whatever they do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.workers:
            await worker.stop()

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place in the queue for an upload; yields whether there was one."""
        if self.length >= self.settings.limits.queue:
            yield False
            return
        self._num_uploads += 1
        try:
            yield True
        finally:
            self._num_uploads -= 1

    def put(self, job: Job) -> None:
        """Queue a job whose place is held."""
        self._queue.append(job)
        self._has_work.set()

    def position(self, job: Job) -> int:
        """Return how many jobs are before this one; 0 if it is not waiting."""
        with contextlib.suppress(ValueError):
            return self._queue.index(job) + len(self._running)
        return 0

    def remove(self, job: Job) -> None:
        """Take a job out of the queue, if it is there."""
        with contextlib.suppress(ValueError):
            self._queue.remove(job)

    async def _next(self) -> Job:
        while not self._queue:
            self._has_work.clear()
            await self._has_work.wait()
        return self._queue.popleft()

    async def _serve(self, worker: WorkerProcess) -> None:
        pause = 1.0
        while self.fatal is None:
            try:
                await worker.start()
            except GanbertError as error:
                self.fatal = error
                self.on_fatal()
                return
            except (WorkerDied, OSError) as error:
                log.warning("the worker on %s did not start: it %s", worker.device, error)
                await worker.stop()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = 1.0
            self._ready.add(worker.device)
            self.measures.worker_started()
            try:
                await self._work(worker)
            finally:
                self._ready.discard(worker.device)
                await worker.stop()

    async def _work(self, worker: WorkerProcess) -> None:
        """Compute jobs until the worker has to be started again."""
        while True:
            job = await self._next_while_alive(worker)
            if job is None:
                return
            if job.is_forgotten:  # deleted just as it left the queue
                continue
            self._running[job.id] = job
            try:
                is_alive = await self._compute(worker, job)
            except Exception:
                log.exception("job %s", job.id)
                self._fail(job, "crash", "the service made a mistake of its own; its log has more")
                is_alive = False
            finally:
                del self._running[job.id]
                if job.is_forgotten:
                    remove_files(job)
            if not is_alive:
                return

    async def _next_while_alive(self, worker: WorkerProcess) -> Job | None:
        """Return the next job; None if the worker dies while it waits, which costs no job."""
        waits = [asyncio.create_task(self._next()), asyncio.create_task(worker.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            job = waits[0].result() if waits[0].done() else None
        finally:
            for task in waits:
                task.cancel()
        if job is not None and waits[1].done() and not waits[1].cancelled():
            self._queue.appendleft(job)
            job = None
        if job is None:
            log.warning("the worker on %s died while it was idle; starting another", worker.device)
        return job

    async def _compute(self, worker: WorkerProcess, job: Job) -> bool:
        """Compute one job; return whether the worker can go on."""
        seconds = self.settings.limits.job_seconds
        job.start()
        began = time.monotonic()

        def on_progress(stage: str, progress: float) -> None:
            job.change(stage=stage, progress=progress)

        request = {"t1w": str(job.t1w), "folder": str(job.folder), "passes": job.passes}
        request["tracers"] = job.tracers
        try:
            async with asyncio.timeout(seconds):
                reply = await worker.run(request, on_progress)
        except TimeoutError:
            remedy = "ask for no map of uncertainty" if job.passes else "crop the image"
            reason = f"took longer than {seconds:g} s; {remedy}, or ask for a higher limit"
            self._fail(job, "timeout", reason)
            return False
        except WorkerDied as error:
            log.warning("the worker on %s %s; starting another", worker.device, error)
            if job.progress == 0 and not job.is_forgotten:
                # It never began: it was dead when the job came, and the image is not to blame.
                job.change(state=State.QUEUED, stage="waiting", started=None)
                self._queue.appendleft(job)
                return False
            self._fail(job, "crash", f"the process that computed it {error}; send the image again")
            return False
        if "failed" in reply:
            self._fail(job, reply["failed"]["kind"], reply["failed"]["reason"])
            return True
        took = time.monotonic() - began
        self._mean_seconds += 0.3 * (took - self._mean_seconds)
        self.measures.finished(took)
        job.finish(None, tuple(Flag(**flag) for flag in reply["flags"]))
        return True

    def _fail(self, job: Job, kind: str, reason: str) -> None:
        self.measures.failed(kind)
        job.finish(Failure(kind, reason))
