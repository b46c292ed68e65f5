"""The service's end of a worker process: start it, hand it a job, notice that it died."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganbert.cores import passive_waiting
from ganbert.errors import CheckpointError

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 20


class WorkerDied(Exception):
    """The process is gone; the text says how."""


class WorkerProcess:
    """A running worker.

    Parameters
    ----------
    model, device : what it loads, and where to
    """

    def __init__(self, model: Path, device: str) -> None:
        self.model, self.device = model, device
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, for tests and logs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises
        ------
        GanbertError
            If the model or the device cannot be used.
        WorkerDied
            If it ends before it is ready.
        """
        # -P: the folder that the service was started in must not hide a package.
        command = [sys.executable, "-P", "-m", "ganbert.serve.worker"]
        command += ["--model", str(self.model), "--device", self.device]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            env=os.environ | passive_waiting(),
        )
        reply = await self._receive()
        if "refused" in reply:
            where, expected, found, remedy = reply["refused"]
            await self.stop()
            raise CheckpointError(where, expected=expected, found=found, remedy=remedy)

    async def run(
        self, request: dict[str, Any], on_progress: Callable[[str, float], None]
    ) -> dict[str, Any]:
        """Hand over a request and return the final reply.

        Raises
        ------
        WorkerDied
            If the process ends meanwhile.
        """
        requests, _ = self._pipes()
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            await requests.drain()
        except ConnectionError as error:
            raise await self._died() from error
        while True:
            reply = await self._receive()
            if "progress" not in reply:
                return reply
            on_progress(reply["stage"], reply["progress"])

    def _pipes(self) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerDied("was never started")
        return process.stdin, process.stdout

    async def _receive(self) -> dict[str, Any]:
        _, replies = self._pipes()
        line = await replies.readline()
        if not line.endswith(b"\n"):
            raise await self._died()
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def _died(self) -> WorkerDied:
        code = await self._process.wait() if self._process else 0
        if code >= 0:
            return WorkerDied(f"ended with code {code}")
        with contextlib.suppress(ValueError):
            return WorkerDied(f"was killed by {signal.Signals(-code).name}")
        return WorkerDied(f"was killed by signal {-code}")

    async def wait(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
