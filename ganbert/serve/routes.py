"""The requests that the service answers, under /v1, and those of a cluster: health, metrics."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from ganbert import __version__, derivatives
from ganbert.config import ModelCard
from ganbert.serve.folder import new_place
from ganbert.serve.jobs import (
    PET_NAME,
    SIDECAR_NAME,
    STD_NAME,
    STD_SIDECAR_NAME,
    Job,
    JobTable,
    State,
    remove_files,
)
from ganbert.serve.measures import Measures
from ganbert.serve.pool import Pool
from ganbert.serve.problems import check_query
from ganbert.serve.schemas import (
    Frame,
    Health,
    JobFailure,
    JobFlag,
    JobStatus,
    Links,
    ModelInfo,
    Problem,
)
from ganbert.serve.settings import Settings
from ganbert.serve.uploads import MEDIA_TYPES, check_announcement, look_through, receive
from ganbert.synthesis import MAX_PASSES
from ganbert.tracers import get_tracer

# Proxies close a connection on which nothing is said.
_HEARTBEAT_SECONDS = 10.0
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {"requestBody": {"required": True, "content": dict.fromkeys(MEDIA_TYPES, _BINARY)}}


Passes = Annotated[
    int,
    Query(
        ge=0, le=MAX_PASSES,
        description="Further passes for a map of uncertainty, each as long as the synthesis; 0: "
        "none. Of the error it tells a small part: docs/inference.md.",
    ),
]  # fmt: skip
WantedTracer = Annotated[
    str | None,
    Query(
        pattern=r"^[0-9A-Za-z+-]{1,40}$",
        description="Tracer of the PET that is wanted, as AV45, 18FAV45 or florbetapir; a result "
        "of another one is flagged.",
    ),
]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


class Service:
    """What all requests share.

    Attributes
    ----------
    settings, card, pool, jobs, measures : as their classes say
    folder : the private folder
    """

    def __init__(
        self, settings: Settings, card: ModelCard, folder: Path, pool: Pool, measures: Measures
    ) -> None:
        self.settings, self.card, self.folder = settings, card, folder
        self.pool, self.measures = pool, measures
        self.jobs = JobTable(settings.limits.keep_seconds)

    def find(self, job_id: str) -> Job:
        """Return a job.

        Raises
        ------
        HTTPException
            404 if there is none of that id.
        """
        job = self.jobs.get(job_id)
        if job is None:
            kept = f"{self.settings.limits.keep_seconds:g} s"
            text = f"expected the id of a job, found none of it; results are deleted after {kept}"
            raise HTTPException(404, text)
        return job

    def status(self, job: Job) -> JobStatus:
        """Describe a job to its owner."""
        failure = job.failure and JobFailure(kind=job.failure.kind, reason=job.failure.reason)
        job.is_failure_seen |= job.state is State.FAILED
        flags = [JobFlag.model_validate(asdict(flag)) for flag in job.flags]
        base = f"/v1/jobs/{job.id}"
        return JobStatus(
            id=job.id, state=job.state.value, stage=job.stage, progress=job.progress,
            position=self.pool.position(job), failure=failure, notes=list(job.notes),
            flags=flags, created=job.created, started=job.started, ended=job.ended,
            expires=self.jobs.expires(job),
            links=Links(
                self=base, events=f"{base}/events", pet=f"{base}/{PET_NAME}",
                sidecar=f"{base}/{SIDECAR_NAME}",
                uncertainty=f"{base}/{STD_NAME}" if job.passes else None,
                uncertainty_sidecar=f"{base}/{STD_SIDECAR_NAME}" if job.passes else None,
            ),
        )  # fmt: skip

    def result(self, job_id: str, name: str) -> bytes:
        """Return a file of a job that is done.

        Raises
        ------
        HTTPException
            404 if there is no such job or file, 409 if it is not done yet, 422 if it has failed.
        """
        job = self.find(job_id)
        if name not in job.files:
            text = "expected a job with a map of uncertainty, found one that was sent without"
            raise HTTPException(404, f"{text}; send the image to /v1/jobs?uncertainty=4")
        if job.failure is not None:
            job.is_failure_seen = True
            raise HTTPException(422, f"there is no result: {job.failure.reason}")
        if job.state is not State.DONE:
            raise HTTPException(409, f"expected a job that is done, found it {job.state.value}")
        content = (job.folder / name).read_bytes()
        job.fetched.add(name)
        return content


def data_routes(service: Service) -> APIRouter:
    """Return the routes under /v1, which ask for the token if there is one."""
    settings, pool = service.settings, service.pool
    bearer = HTTPBearer(auto_error=False, description="The token of the service's operator.")

    def check_token(
        given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    ) -> None:
        if not settings.accepts(given.credentials if given else None):
            text = "expected Authorization: Bearer TOKEN, found another or none; ask the operator"
            raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})

    dependencies = [Depends(check_token)] if settings.token else []
    dependencies.append(Depends(check_query))
    codes = (401, 422) if settings.token else (422,)
    router = APIRouter(prefix="/v1", dependencies=dependencies, responses=_problems(*codes))

    @router.get("/model", tags=["model"])
    def get_model() -> ModelInfo:
        """Which model is served, in which unit it answers, and how large an upload may be."""
        return _describe_model(service)

    @router.post(
        "/jobs", status_code=202, tags=["jobs"], openapi_extra=_UPLOAD,
        responses=_problems(400, 408, 413, 415, 422, 429, 503),
    )  # fmt: skip
    async def post_job(
        request: Request,
        response: Response,
        uncertainty: Passes = 0,
        tracer: WantedTracer = None,
    ) -> JobStatus:
        """Upload a T1w (.nii or .nii.gz) as the body of the request; returns its job.

        The file is looked through before it is queued: what is no whole NIfTI is refused here.
        """
        job = await _accept(service, request, uncertainty, tracer)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return service.status(job)

    @router.get("/jobs/{job_id}", tags=["jobs"], responses=_problems(404))
    async def get_job(job_id: str) -> JobStatus:
        """How far a job is."""
        return service.status(service.find(job_id))

    @router.delete("/jobs/{job_id}", status_code=204, tags=["jobs"], responses=_problems(404))
    async def delete_job(job_id: str) -> None:
        """Delete a job and its files, now. One that is being computed ends, and leaves nothing."""
        job = service.find(job_id)
        pool.remove(job)
        service.jobs.forget(job)

    @router.get(
        "/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
                   **_problems(404)},
    )  # fmt: skip
    async def stream_job(job_id: str) -> StreamingResponse:
        """Follow a job: server-sent events `progress`, each with the job; the last is final."""
        events = _events(service, service.find(job_id))
        return StreamingResponse(events, media_type="text/event-stream")

    _add_results(router, service)
    return router


def _add_results(router: APIRouter, service: Service) -> None:
    """Add the routes that hand out the files of a job that is done."""

    @router.get(
        "/jobs/{job_id}/pet.nii.gz", tags=["results"], response_class=Response,
        responses={200: {"content": {"application/gzip": _BINARY}}, **_problems(404, 409, 422)},
    )  # fmt: skip
    async def get_pet(job_id: str) -> Response:
        """Download the synthetic PET: NIfTI, (x, y, z, frame), in the unit of the model."""
        content = service.result(job_id, PET_NAME)
        return _download(content, "application/gzip", f"{_stem(service)}.nii.gz")

    @router.get(
        "/jobs/{job_id}/pet.json", tags=["results"], responses=_problems(404, 409, 422),
    )  # fmt: skip
    async def get_sidecar(job_id: str) -> dict[str, Any]:
        """Download the sidecar: BIDS metadata that says that the image is synthetic."""
        content = service.result(job_id, SIDECAR_NAME)
        return _download(content, "application/json", f"{_stem(service)}.json")  # type: ignore[return-value]

    @router.get(
        f"/jobs/{{job_id}}/{STD_NAME}", tags=["results"], response_class=Response,
        responses={200: {"content": {"application/gzip": _BINARY}}, **_problems(404, 409, 422)},
    )  # fmt: skip
    async def get_uncertainty(job_id: str) -> Response:
        """Download the map of uncertainty: one standard deviation, on the PET's grid and unit."""
        content = service.result(job_id, STD_NAME)
        name = f"{_stem(service, derivatives.DESC_STD)}.nii.gz"
        return _download(content, "application/gzip", name)

    @router.get(
        f"/jobs/{{job_id}}/{STD_SIDECAR_NAME}", tags=["results"],
        responses=_problems(404, 409, 422),
    )  # fmt: skip
    async def get_uncertainty_sidecar(job_id: str) -> dict[str, Any]:
        """Download the map's sidecar: how it was made, and what is not in it."""
        content = service.result(job_id, STD_SIDECAR_NAME)
        name = f"{_stem(service, derivatives.DESC_STD)}.json"
        return _download(content, "application/json", name)  # type: ignore[return-value]


def _describe_model(service: Service) -> ModelInfo:
    card = service.card
    times = zip(card.frame_start_s, card.frame_duration_s, strict=True)
    return ModelInfo(
        ganbert_version=__version__,
        tracer=card.tracer,
        tracer_name=get_tracer(card.tracer).long_name,
        tracer_label=get_tracer(card.tracer).bids_label,
        unit=card.unit,
        data_range=card.data_range,
        frames=[Frame(start=start, duration=duration) for start, duration in times],
        pet_shape=list(card.pet_grid.shape),
        pet_spacing_mm=list(card.pet_grid.spacing_mm),
        training_steps=card.num_steps,
        training_rows=card.num_training_rows,
        weights_sha256=card.weights_sha256,
        max_upload_bytes=service.settings.limits.upload_bytes,
        keep_seconds=service.settings.limits.keep_seconds,
        needs_token=service.settings.token is not None,
    )


async def _accept(service: Service, request: Request, passes: int, tracer: str | None) -> Job:
    """Receive, look through and queue an upload; whatever goes wrong leaves no file."""
    pool, limits = service.pool, service.settings.limits
    if pool.is_draining:
        text = "the service is about to stop; send the image again in a while"
        raise HTTPException(503, text, {"Retry-After": "30"})
    with pool.place() as is_free:
        if not is_free:
            text = f"expected at most {limits.queue} uploads at a time, found more; come back later"
            raise HTTPException(429, text, {"Retry-After": str(pool.retry_after)})
        place = new_place(service.folder)
        try:
            headers = request.headers
            check_announcement(headers.get("content-type"), headers.get("content-length"), limits)
            t1w = await receive(request.stream(), place, limits)
            notes = await asyncio.to_thread(look_through, t1w, limits)
            # Whoever cancels now has no id by which the job could be deleted.
            if await request.is_disconnected():
                raise ClientDisconnect
        except BaseException:
            remove_files(Job(place, place))
            raise
    job = Job(place, t1w, passes, notes, (tracer,) if tracer else ())
    service.jobs.add(job)
    pool.put(job)
    return job


async def _events(service: Service, job: Job) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    while not job.is_forgotten:
        status = service.status(job)
        yield f"event: progress\ndata: {json.dumps(status.model_dump(mode='json'))}\n\n"
        if job.is_final:
            return
        while not await job.wait_for_change(_HEARTBEAT_SECONDS):
            yield ": still there\n\n"


def _stem(service: Service, desc: str = derivatives.DESC_PET) -> str:
    return f"trc-{get_tracer(service.card.tracer).bids_label}_space-T1w_desc-{desc}_pet"


def _download(content: bytes, media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


def operator_routes(service: Service) -> APIRouter:
    """Return the routes that a cluster asks: no token, and nothing about any person."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def get_health() -> Health:
        """Whether the service runs."""
        return Health(status="ok")

    @router.get("/readyz", responses={503: {"model": Health}})
    async def get_readiness(response: Response) -> Health:
        """Whether it takes uploads: a model is loaded, and it is not about to stop."""
        if service.pool.is_ready:
            return Health(status="ready")
        response.status_code = 503
        return Health(status="draining" if service.pool.is_draining else "loading the model")

    @router.get(
        "/metrics", response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    def get_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.measures.page(), media_type=CONTENT_TYPE_LATEST)

    return router
