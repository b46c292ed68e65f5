"""`ganbert serve`: listen, serve until told to stop, and then finish what was begun.

The first SIGTERM or Ctrl-C drains: new uploads are refused, those that were taken are computed, and
results can be fetched for a while. The second one ends at once.
"""

import asyncio
import logging
import signal
import socket
from types import FrameType

import torch
import uvicorn
from rich.console import Console

from ganbert.errors import PlatformError
from ganbert.model_card import read_card
from ganbert.predict import choose_device, find_export
from ganbert.serve.application import make_application, make_service
from ganbert.serve.folder import private_folder
from ganbert.serve.pages import NOT_BUILT, is_built
from ganbert.serve.routes import Service
from ganbert.serve.settings import Settings

_LOOK_SECONDS = 0.1
# Results of the last jobs wait so long for whoever polls, within the time of the drain.
_FETCH_SECONDS = 15.0


def choose_devices(device: str) -> tuple[str, ...]:
    """Return the devices that get a worker: every GPU if there is any, unless one is named.

    Raises
    ------
    PlatformError
        If there is no such device here.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return tuple(f"cuda:{k}" for k in range(torch.cuda.device_count()))
    return (str(choose_device(device)),)


def serve(settings: Settings, console: Console | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    console : where the address is said; default: standard output

    Raises
    ------
    CheckpointError
        If the model cannot be read.
    OutputError
        If the private folder cannot be made.
    PlatformError
        If the address cannot be listened on.
    """
    console = console or Console()
    card = read_card(find_export(settings.model))
    listener = _listen(settings)
    with listener, private_folder(settings.work_dir) as folder:
        service = make_service(settings, card, folder)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        devices = ", ".join(settings.devices)
        _say(console, f"serving synthetic {card.tracer} PET ({devices}) on {address}")
        if not is_built():
            _say(console, NOT_BUILT)
        logging.basicConfig(format="ganbert: %(message)s")
        config = uvicorn.Config(
            make_application(service),
            loop="asyncio", http="h11", ws="none", lifespan="on", access_log=False,
            log_level="warning", server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=5, limit_concurrency=512,
        )  # fmt: skip
        server = _Server(config, service, console)
        service.pool.on_fatal = server.end
        server.run(sockets=[listener])
        if service.pool.fatal is not None:
            raise service.pool.fatal
    _say(console, "stopped; all images are deleted")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise PlatformError(
            f"{settings.host}:{settings.port}",
            expected="an address that can be listened on",
            found=getattr(error, "strerror", None) or str(error),
            remedy="choose another --port or --host",
        ) from error


class _Server(uvicorn.Server):
    """Drains before it ends."""

    def __init__(self, config: uvicorn.Config, service: Service, console: Console) -> None:
        super().__init__(config)
        self._service, self._console = service, console
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves out the end of the lifespan, which would die with a traceback.
            await self.lifespan.shutdown()

    def end(self) -> None:
        """Stop without waiting for jobs."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._loop is None or self._service.pool.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._service.pool.is_draining = True
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(self._start_drain, name)

    def _start_drain(self, name: str) -> None:
        num_jobs = self._service.jobs.count_unfinished()
        _say(self._console, f"{name}: finishing {num_jobs} jobs; again to end at once")
        self._drain = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        pool, jobs = self._service.pool, self._service.jobs
        loop = asyncio.get_running_loop()
        end = loop.time() + self._service.settings.limits.drain_seconds
        while loop.time() < end and (pool.length or jobs.count_unfinished()):
            await asyncio.sleep(_LOOK_SECONDS)
        end = min(end, loop.time() + _FETCH_SECONDS)
        while loop.time() < end and not jobs.are_fetched():
            await asyncio.sleep(_LOOK_SECONDS)
        self.should_exit = True
