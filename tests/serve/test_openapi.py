"""What the OpenAPI document allows, asked by schemathesis; and what it says of the service."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.images import t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself

pytest.importorskip("schemathesis", reason="no schemathesis (pip install .[dev])")

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance",
)  # fmt: skip
MAIN = "from schemathesis.cli import schemathesis; schemathesis()"


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


def test_the_document_names_every_route_and_its_refusals(service: RunningService) -> None:
    document = service.ask("GET", "/openapi.json").json
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
