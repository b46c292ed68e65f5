"""Puts the service together: routes, pages, workers, and what happens while it lives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI

from ganbert import __version__
from ganbert.config import ModelCard
from ganbert.serve.measures import Measures
from ganbert.serve.pages import add_pages
from ganbert.serve.pool import Pool
from ganbert.serve.problems import add_handlers
from ganbert.serve.routes import Service, data_routes, operator_routes
from ganbert.serve.settings import Settings
from ganbert.serve.wire import Wire

_DESCRIPTION = """\
Upload a T1w MRI, follow its job, download the synthetic PET.

**Synthetic images, for research use only, not for diagnosis.**

Whatever is refused, an unknown path (404), method (405) or parameter (422) too, is answered in one
form: `{"detail": "expected ..., found ...; what to do"}` (`Problem`).
"""


def make_service(settings: Settings, card: ModelCard, folder: Path) -> Service:
    """Return what all requests share; no worker is started yet.

    Parameters
    ----------
    card : of the model in `settings`
    folder : the private folder
    """
    measures = Measures()
    return Service(settings, card, folder, Pool(settings, measures), measures)


def make_application(service: Service) -> Wire:
    """Return the application; its workers start and stop with its lifespan."""

    @contextlib.asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start()
        cleaning = asyncio.create_task(service.jobs.keep_clean())
        try:
            yield
        finally:
            cleaning.cancel()
            await service.pool.stop()

    app = FastAPI(
        title="GANBERT", description=_DESCRIPTION, version=__version__, lifespan=live,
        docs_url=None, redoc_url=None,
        redirect_slashes=False,  # to wherever the client's Host header says
    )  # fmt: skip
    add_handlers(app)
    app.include_router(data_routes(service))
    app.include_router(operator_routes(service))
    add_pages(app)
    return Wire(app, service.measures)
