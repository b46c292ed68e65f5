"""What the service answers, as its OpenAPI document describes it."""

from typing import Literal

from pydantic import BaseModel, Field

NOTICE = "Synthetic image, computed from an MRI. For research use only, not for diagnosis."


class Problem(BaseModel):
    """Why a request was refused: under /v1, and where there is no such path or method."""

    detail: str = Field(description="One line: expected ..., found ...; what to do.")


class Links(BaseModel):
    """Where to go on."""

    self: str
    events: str
    pet: str
    sidecar: str
    uncertainty: str | None = Field(
        default=None, description="Of the map of uncertainty, if it was asked for."
    )
    uncertainty_sidecar: str | None = None


class JobFlag(BaseModel):
    """What to beware of in one result."""

    name: str = Field(description="Stable, for programs: field-of-view, contrast, range, ...")
    severity: Literal["note", "warning"] = Field(
        description="warning: do not use the image without a look at why; note: worth knowing."
    )
    text: str = Field(description="One line for people.")


class JobFailure(BaseModel):
    """Why there is no result."""

    kind: Literal["image", "timeout", "crash", "internal"]
    reason: str


class JobStatus(BaseModel):
    """A job, now."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    stage: str = Field(description="What is being done, in a word.")
    progress: float = Field(ge=0, le=1, description="Share that is done.")
    position: int = Field(ge=0, description="Jobs before this one; 0 when it is computed.")
    failure: JobFailure | None = None
    notes: list[str] = Field(description="What you should know of the upload.")
    flags: list[JobFlag] = Field(
        description="What to beware of in the result, warnings first; none is no promise."
    )
    created: float = Field(description="Seconds since 1970.")
    started: float | None = None
    ended: float | None = None
    expires: float | None = Field(
        default=None, description="When its files are deleted, seconds since 1970."
    )
    links: Links
    notice: str = NOTICE


class Frame(BaseModel):
    """A frame of the synthetic PET, seconds after the (absent) injection."""

    start: float
    duration: float


class ModelInfo(BaseModel):
    """The model that is served, and what it takes."""

    ganbert_version: str
    tracer: str
    tracer_name: str
    tracer_label: str = Field(description="Of BIDS, as in `trc-18FAV45`.")
    unit: str
    data_range: tuple[float, float] = Field(description="In which the tracer's values lie.")
    frames: list[Frame]
    pet_shape: list[int] = Field(description="Voxels along posterior-anterior, inferior-superior, "
                                 "left-right.")  # fmt: skip
    pet_spacing_mm: list[float]
    training_steps: int
    training_rows: int
    weights_sha256: str
    max_upload_bytes: int
    keep_seconds: float = Field(description="That a result is kept after its job.")
    needs_token: bool
    notice: str = NOTICE


class Health(BaseModel):
    """A word about the service."""

    status: str
