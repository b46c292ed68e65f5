"""What happens between two steps of the service that look like one."""

import asyncio
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

pytest.importorskip("fastapi", reason="no fastapi (pip install .[serve])")

from ganbert.serve.folder import private_folder
from ganbert.serve.jobs import Job, JobTable
from ganbert.serve.measures import Measures
from ganbert.serve.pool import Pool
from ganbert.serve.settings import Settings
from ganbert.serve.worker_process import WorkerProcess


def test_a_folder_that_another_service_deletes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, deleted = fcntl.flock, []

    def lose_the_first(file: IO[str], operation: int) -> None:
        if not deleted:
            deleted.append(Path(file.name).parent)
            shutil.rmtree(deleted[0])
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lose_the_first)
    with private_folder(tmp_path) as folder:
        assert folder not in deleted
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        with (folder / ".lock").open() as other, pytest.raises(BlockingIOError):
            lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not list(tmp_path.iterdir())


def test_a_job_that_is_deleted_as_it_leaves_the_queue_is_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    async def run(self: WorkerProcess, request: Any, on_progress: Callable) -> dict[str, Any]:
        computed.append(Path(request["folder"]).name)
        return {"flags": []}

    monkeypatch.setattr(WorkerProcess, "run", run)

    async def work() -> None:
        pool, jobs = Pool(Settings(tmp_path), Measures()), JobTable(60)
        two = [Job(tmp_path / name, tmp_path / name / "t1w.nii") for name in ("gone", "kept")]
        for job in two:
            job.folder.mkdir()
            jobs.add(job)
        queue: list[Job | None] = [*two, None]

        async def take(_: WorkerProcess) -> Job | None:
            job = queue.pop(0)
            if job is two[0]:
                jobs.forget(job)
            return job

        monkeypatch.setattr(pool, "_next_while_alive", take)
        await pool._work(pool.workers[0])
        assert two[1].is_final
        assert not two[0].folder.exists()

    asyncio.run(work())
    assert computed == ["kept"]


def test_a_bug_costs_the_job_that_met_it_and_not_its_worker_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    async def run(self: WorkerProcess, request: Any, on_progress: Callable) -> dict[str, Any]:
        computed.append(Path(request["folder"]).name)
        return {"flags": []} if computed[-1] == "second" else {}  # no flags: KeyError

    async def work() -> None:
        pool, starts = Pool(Settings(tmp_path), Measures()), []

        async def start(self: WorkerProcess) -> None:
            starts.append(self.device)

        async def wait(self: WorkerProcess) -> None:
            await asyncio.Event().wait()

        for name, stand_in in (("run", run), ("start", start), ("wait", wait)):
            monkeypatch.setattr(WorkerProcess, name, stand_in)
        jobs = [Job(tmp_path / name, tmp_path / name / "t1w.nii") for name in ("first", "second")]
        pool.start()
        for job in jobs:
            with pool.place():
                pool.put(job)
        async with asyncio.timeout(30):
            while not all(job.is_final for job in jobs):
                await asyncio.sleep(0.01)
        await pool.stop()
        assert jobs[0].failure is not None
        assert jobs[0].failure.kind == "crash"
        assert jobs[1].failure is None
        assert len(starts) == 2

    asyncio.run(work())
    assert computed == ["first", "second"]
