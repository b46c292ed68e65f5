"""kubernetes/wait.sh and the real kubectl, beside a server of Kubernetes' API that has one Job."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .manifests import KUBERNETES, Document, kubectl

SCRIPT = KUBERNETES / "wait.sh"
LISTS = {"pods": ("v1", "Pod"), "jobs": ("batch/v1", "Job")}
MISTAKE = "ganbert: error: /data/prepared: expected the output of `ganbert prepare`, found nothing"


class Server(ThreadingHTTPServer):
    """As much of the API as `kubectl get job` and `get pods` ask for.

    Attributes
    ----------
    conditions : of the Job; None if there is no Job
    is_down : answers nothing but 503
    asked : how often for the Job
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.conditions: list[Document] | None = []
        self.is_down = False
        self.asked = 0

    def answer(self, path: str) -> tuple[int, Document]:
        """Return status and body of a GET."""
        path = path.partition("?")[0]
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            version = {"groupVersion": "batch/v1", "version": "v1"}
            batch = {"name": "batch", "versions": [version], "preferredVersion": version}
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [batch]}
        for plural, (group, kind) in LISTS.items():
            if path in (f"/api/{group}", f"/apis/{group}"):
                one = {"name": plural, "singularName": kind.lower(), "namespaced": True,
                       "kind": kind, "verbs": ["get", "list"]}  # fmt: skip
                return 200, {"kind": "APIResourceList", "groupVersion": group, "resources": [one]}
        if path.endswith("/pods"):
            ended = {"containerStatuses": [{"state": {"terminated": {"message": MISTAKE}}}]}
            pod = {
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": {"name": "pod-3"},
                "status": ended,
            }
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod]}
        self.asked += 1
        if self.is_down:
            return 503, {"kind": "Status", "apiVersion": "v1", "code": 503, "message": "down"}
        if self.conditions is None:
            return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                         "reason": "NotFound", "message": 'jobs "j" not found'}  # fmt: skip
        return 200, {"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "j"},
                     "status": {"conditions": self.conditions}}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Hands a GET to `Server.answer`."""

    server: Server

    def do_GET(self) -> None:
        status, body = self.server.answer(self.path)
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def start(server: Server, folder: Path) -> subprocess.Popen[str]:
    config = folder / "config"
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    }))  # fmt: skip
    program = kubectl()
    assert program is not None
    path = f"{Path(program).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SCRIPT, "ganbert", "j", "0.2"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": path, "KUBECONFIG": str(config), "HOME": str(folder)},
    )  # fmt: skip


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> Document:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def wait_until_asked(server: Server, times: int) -> None:
    end = time.monotonic() + 60
    while server.asked < times:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_complete_job_ends_the_wait(server: Server, tmp_path: Path) -> None:
    server.conditions = [condition("Suspended", "JobResumed", status="False")]
    process = start(server, tmp_path)
    wait_until_asked(server, 2)
    assert process.poll() is None
    server.is_down = True  # an upgrade of the control plane, say
    wait_until_asked(server, server.asked + 2)
    assert process.poll() is None
    server.is_down = False
    server.conditions = [condition("SuccessCriteriaMet"), condition("Complete")]
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "j: complete\n")


def test_a_failed_job_ends_the_wait_and_says_why(server: Server, tmp_path: Path) -> None:
    """The trap: `kubectl wait --for=condition=complete` waits for its whole timeout."""
    server.conditions = [condition("Failed", "PodFailurePolicy", "exit code 2 matching rule 0")]
    process = start(server, tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert "Failed: PodFailurePolicy exit code 2 matching rule 0\n" in errors
    assert f"pod-3:  {MISTAKE}" in errors


def test_a_job_that_is_about_to_fail_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.conditions = [condition("FailureTarget", "PodFailurePolicy")]
    process = start(server, tmp_path)
    wait_until_asked(server, 3)
    assert process.poll() is None
    server.conditions.append(condition("Failed", "PodFailurePolicy"))
    process.communicate(timeout=60)
    assert process.returncode == 1


def test_no_job_is_a_mistake(server: Server, tmp_path: Path) -> None:
    server.conditions = None
    process = start(server, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert "expected the Job j, found none" in line


@pytest.mark.parametrize(("words", "what"), [(["ganbert"], "JOB"), (["ganbert", "j"], "kubectl")])
def test_what_it_cannot_do_without_is_a_mistake(
    words: list[str], what: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [shutil.which("bash"), SCRIPT, *words], capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path)}, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert what in line
    assert "expected" in line
