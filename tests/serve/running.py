"""A real `ganbert serve` as a process of its own, and a client that speaks plain HTTP."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningService(AbstractContextManager["RunningService"]):
    """`ganbert serve` on a free port."""

    def __init__(
        self, model: Path, work_dir: Path, *options: str, env: dict[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "ganbert.cli", "serve", "--model", model, "--port", "0"]
        command += ["--work-dir", work_dir, "--device", "cpu", *options]
        self.model = model
        self.work_dir, self.log = work_dir, work_dir.with_name(work_dir.name + ".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
            )  # fmt: skip
        self.port = self._wait_for_port()

    def _wait_for_port(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"http://\S+:(\d+)", self.log.read_text()):
                return int(found[1])
            time.sleep(0.05)
        raise AssertionError(f"the service did not start: {self.log.read_text()}")

    def wait_until(self, what: Any, seconds: float = 60) -> Any:
        """Return the first true value of `what()`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := what():
                return value
            time.sleep(0.05)
        raise AssertionError(f"it did not come true within {seconds} s: {self.log.read_text()}")

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            try:
                return self.ask("GET", "/readyz").status == 200
            except OSError:
                return False

        self.wait_until(is_ready)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        *, heard: Callable[[], object] = lambda: None, **options: Any,
    ) -> Answer:  # fmt: skip
        """Send one request over a connection of its own; call `heard` when its answer begins."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            try:
                connection.request(method, path, body, headers or {}, **options)
            except BrokenPipeError:
                pass  # refused before all was sent; the answer is there
            answer = connection.getresponse()
            heard()
            return Answer(
                answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            )
        finally:
            connection.close()

    def upload(
        self, content: bytes, headers: dict[str, str] | None = None, query: str = ""
    ) -> Answer:
        return self.ask("POST", f"/v1/jobs{query}", content, OCTETS | (headers or {}))

    def finish(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """Poll a job until its end."""

        def final() -> dict[str, Any] | None:
            job = self.ask("GET", f"/v1/jobs/{job_id}").json
            return job if job["state"] in ("done", "failed") else None

        return self.wait_until(final, seconds)

    def metric(self, name: str) -> float:
        """Return one sample of /metrics by its full name with labels."""
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def memory(self) -> int:
        """Resident bytes of the service and its workers."""
        family = [psutil.Process(self.process.pid), *self.workers]
        return sum(process.memory_info().rss for process in family)

    def files(self) -> list[Path]:
        """Whatever lies in the private folder."""
        found = [p for p in self.work_dir.rglob("*") if p.is_file() and p.name != ".lock"]
        return sorted(found)

    def stop(self, sig: int = signal.SIGTERM, seconds: float = 40) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(seconds)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            family = [psutil.Process(self.process.pid), *self.workers]
            for process in family:
                process.kill()
            self.process.wait(20)
