"""What the OpenAPI document allows, asked by schemathesis; and what it says of the service."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.images import t1w
from tests.serve.running import OCTETS, RunningService

pytestmark = pytest.mark.slow  # starts the service itself

pytest.importorskip("schemathesis", reason="no schemathesis (pip install .[dev])")

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance",
)  # fmt: skip
MAIN = "from schemathesis.cli import schemathesis; schemathesis()"


@pytest.fixture
def document(service: RunningService) -> dict[str, Any]:
    return service.ask("GET", "/openapi.json").json


def test_schemathesis_finds_nothing(service: RunningService, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "run", f"http://127.0.0.1:{service.port}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--max-examples", "8", "--seed", "1", "--no-color"]
    command += ["--suppress-health-check", "all", "--request-timeout", "30"]
    # It keeps what it has learnt in the folder that it runs in.
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert service.finish(service.upload(t1w(1)).json["id"])["state"] == "done"


def test_the_document_names_every_route_and_its_refusals(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {
        "/v1/model", "/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/pet.nii.gz", "/v1/jobs/{job_id}/pet.json",
        "/v1/jobs/{job_id}/std.nii.gz", "/v1/jobs/{job_id}/std.json",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    upload = document["paths"]["/v1/jobs"]["post"]
    assert {"202", "400", "408", "413", "415", "422", "429", "503"} <= set(upload["responses"])
    assert "application/octet-stream" in upload["requestBody"]["content"]
    assert "http://" not in str(document)


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nowhere", 404, "expected a path of this service"),
        ("GET", "/v1/nowhere", 404, "expected a path of this service"),
        ("GET", "/static/none.js", 404, "expected a path of this service"),
        ("GET", "/v1/jobs/none", 404, "expected the id of a job"),
        ("PUT", "/v1/jobs", 405, 'expected POST, found "PUT"'),
        ("POST", "/healthz", 405, 'expected GET, found "POST"'),
        ("POST", "/v1/jobs?uncertanty=4", 422, "did you mean 'uncertainty'?"),
        ("POST", "/v1/jobs?uncertainty=2&x=1", 422, 'only uncertainty and tracer, found "x"'),
        ("POST", "/v1/jobs?uncertainty=1&uncertainty=2", 422, "uncertainty once, found it 2 times"),
        ("POST", "/v1/jobs?tracer=", 422, "expected 1 to 40 letters, digits, + or -"),
        ("POST", f"/v1/jobs?tracer={'x' * 41}", 422, "tracer: expected 1 to 40"),
        ("POST", "/v1/jobs?tracer=%3Cb%3E", 422, 'found "<b>"'),
        ("GET", "/v1/model/", 404, "expected a path of this service"),
        ("POST", "/v1/jobs/", 404, "expected a path of this service"),
        ("POST", "/v1/jobs?uncertainty=17", 422, "uncertainty: expected"),
        ("POST", "/v1/jobs?uncertainty=-1", 422, 'found "-1"'),
        ("POST", "/v1/jobs?uncertainty=two", 422, 'expected a whole number, found "two"'),
        ("GET", "/v1/model?verbose=1", 422, 'expected none, found "verbose"; leave it out'),
        ("GET", f"/v1/model?{'x' * 500}=1", 422, "xxx..."),
    ],
)
def test_whatever_is_refused_is_refused_in_one_form(
    method: str, path: str, status: int, detail: str, service: RunningService
) -> None:
    body = t1w(1) if path.startswith("/v1/jobs?") else None
    headers = OCTETS if body else {}
    answer = service.ask(method, path, body, headers)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["detail"]
    assert detail in answer.json["detail"]
    assert "\n" not in answer.json["detail"]
    if status == 405:
        assert answer.headers["allow"]


def test_the_document_knows_one_form_of_refusals(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for about in methods.values():
            for code, answer in about["responses"].items():
                if code >= "400" and path.startswith("/v1"):
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}


def test_no_further_passes_are_no_map(service: RunningService) -> None:
    answer = service.upload(t1w(1), query="?uncertainty=0")
    assert answer.status == 202
    assert answer.json["links"]["uncertainty"] is None
    service.finish(answer.json["id"])
