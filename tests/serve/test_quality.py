"""What the service says of a result: flags in job and sidecar, a map of uncertainty if asked."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from ganbert.data.nifti import from_nibabel
from ganbert.predict import load_predictor
from ganbert.serve.worker import INPUT_SHA256_KEY
from ganbert.synthesis import synthesise
from tests.serve.images import cut_t1w, noisy_t1w, t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself


def finish(service: RunningService, content: bytes, query: str = "") -> tuple[dict, dict]:
    """Return the job and its sidecar."""
    job = service.upload(content, query=query).json
    job = service.finish(job["id"])
    assert job["state"] == "done", job
    return job, service.ask("GET", job["links"]["sidecar"]).json


def test_a_head_like_those_of_the_training_has_no_flag(service: RunningService) -> None:
    job, sidecar = finish(service, t1w(7))
    assert job["flags"] == []
    assert sidecar["GanbertQuality"]["Flags"] == []
    assert sidecar["GanbertQuality"]["Measures"]["coverage"] == 1.0


@pytest.mark.parametrize(
    ("content", "names"),
    [(cut_t1w(), {"field-of-view"}), (noisy_t1w(), {"intensity"})],
    ids=["half a head", "bright air"],
)
def test_what_the_model_never_saw_is_flagged(
    content: bytes, names: set[str], service: RunningService
) -> None:
    job, sidecar = finish(service, content)
    assert names <= {flag["name"] for flag in job["flags"]}
    assert all(flag["severity"] == "warning" for flag in job["flags"])
    assert all(flag["text"] and "\n" not in flag["text"] for flag in job["flags"])
    # One list, in two spellings: that of the service, and that of BIDS.
    written = sidecar["GanbertQuality"]["Flags"]
    assert [{k.lower(): v for k, v in flag.items()} for flag in written] == job["flags"]
    # They come with the last event of a job too.
    events = service.ask("GET", job["links"]["events"]).body.decode()
    assert job["flags"][0]["text"] in events


def test_a_map_of_uncertainty_is_made_for_those_who_ask(service: RunningService) -> None:
    content = t1w(3)
    job, _ = finish(service, content, "?uncertainty=2")
    answer = service.ask("GET", job["links"]["uncertainty"])
    assert answer.headers["content-type"] == "application/gzip"
    assert "desc-synthstd_pet.nii.gz" in answer.headers["content-disposition"]
    found = nib.Nifti1Image.from_bytes(gzip.decompress(answer.body))
    mri = from_nibabel(nib.Nifti1Image.from_bytes(gzip.decompress(content)))
    expected = synthesise(load_predictor(service.model, "cpu"), mri, passes=2).uncertainty
    assert expected is not None
    values = found.get_fdata().transpose(3, 1, 2, 0)
    np.testing.assert_allclose(values, expected.array, rtol=1e-3, atol=1e-5)
    sidecar = service.ask("GET", job["links"]["uncertainty_sidecar"]).json
    assert "3 answers" in sidecar["Description"]
    assert INPUT_SHA256_KEY in sidecar
    assert service.ask("DELETE", job["links"]["self"]).status == 204
    assert service.ask("GET", job["links"]["uncertainty"]).status == 404


def test_no_map_unless_asked_for(service: RunningService) -> None:
    job, _ = finish(service, t1w(3))
    assert job["links"]["uncertainty"] is None
    missing = service.ask("GET", job["links"]["pet"].replace("pet.nii", "std.nii"))
    assert missing.status == 404
    assert "?uncertainty=" in missing.json["detail"]


@pytest.mark.parametrize("number", ["17", "-1", "many", ""])
def test_a_number_of_passes_that_there_is_not_is_one_line(
    number: str, service: RunningService
) -> None:
    before = service.files()
    refused = service.upload(t1w(1), query=f"?uncertainty={number}")
    assert refused.status == 422
    assert refused.json["detail"].startswith("uncertainty: ")
    assert service.files() == before


def test_the_workers_threads_sleep_while_they_wait(service: RunningService) -> None:
    (worker,) = service.workers
    assert worker.environ()["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    ("name", "is_flagged"),
    [("AV45", False), ("18FAV45", False), ("Florbetapir", False), ("FDG", True), ("PiB", True)],
)
def test_a_result_of_another_tracer_than_asked_for_is_flagged(
    name: str, is_flagged: bool, service: RunningService
) -> None:
    job, sidecar = finish(service, t1w(5), f"?tracer={name}")
    flags = {flag["name"]: flag for flag in job["flags"]}
    assert ("tracer" in flags) == is_flagged
    said = [flag["Name"] for flag in sidecar["GanbertQuality"]["Flags"]]
    assert ("tracer" in said) == is_flagged
    if is_flagged:
        assert flags["tracer"]["severity"] == "warning"
        assert f"the model makes AV45; asked for or acquired: {name}" == flags["tracer"]["text"]
