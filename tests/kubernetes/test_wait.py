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
LISTS = {"pods": ("v1", "Pod"), "events": ("v1", "Event"), "jobs": ("batch/v1", "Job")}
MISTAKE = "ganbert: error: /data/prepared: expected the output of `ganbert prepare`, found nothing"


class Server(ThreadingHTTPServer):
    """As much of the API as `kubectl get` of a Job, its pods and its events asks for.

    Attributes
    ----------
    conditions : of the Job; None if there is no Job
    is_down, is_forbidden, is_stranger : answers nothing but 503, 403, or 401
    pods : status of each
    active : of the Job's status
    events : what the Job's warnings say
    pod_events : of its pods: number of the pod, type, reason, message, and when it came last
    asked : how often for the Job
    asked_for_pod_events : how often for those
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.conditions: list[Document] | None = []
        self.is_down = self.is_forbidden = self.is_stranger = False
        ended = {"containerStatuses": [{"state": {"terminated": {"message": MISTAKE}}}]}
        self.pods: list[Document] = [ended]
        self.active = 0
        self.events: list[str] = []
        self.pod_events: list[tuple[int, str, str, str, str | None]] = []
        self.asked = self.asked_for_pod_events = 0

    def answer(self, path: str) -> tuple[int, Document]:
        """Return status and body of a GET."""
        path, _, asked_for = path.partition("?")
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            version = {"groupVersion": "batch/v1", "version": "v1"}
            batch = {"name": "batch", "versions": [version], "preferredVersion": version}
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [batch]}
        for group in {group for group, _ in LISTS.values()}:
            if path in (f"/api/{group}", f"/apis/{group}"):
                kinds = [
                    {"name": plural, "singularName": kind.lower(), "namespaced": True,
                     "kind": kind, "verbs": ["get", "list"]}
                    for plural, (of, kind) in LISTS.items() if of == group
                ]  # fmt: skip
                return 200, {"kind": "APIResourceList", "groupVersion": group, "resources": kinds}
        if path.endswith("/pods"):
            return 200, listed("Pod", [{"status": status} for status in self.pods])
        if path.endswith("/events") and "involvedObject.kind%3DPod" in asked_for:
            self.asked_for_pod_events += 1
            return 200, listed("Event", [
                {"involvedObject": {"name": f"one-{pod}"}, "type": kind, "reason": reason,
                 "message": message, "lastTimestamp": last}
                for pod, kind, reason, message, last in self.pod_events
            ])  # fmt: skip
        if path.endswith("/events"):
            return 200, listed("Event", [{"reason": "Bad", "message": m} for m in self.events])
        self.asked += 1
        if self.is_down:
            return 503, {"kind": "Status", "apiVersion": "v1", "code": 503, "message": "down"}
        if self.is_stranger:
            return 401, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 401,
                         "reason": "Unauthorized", "message": "Unauthorized"}  # fmt: skip
        if self.is_forbidden:
            return 403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                         "reason": "Forbidden", "message": "you may not"}  # fmt: skip
        if self.conditions is None:
            return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                         "reason": "NotFound", "message": 'jobs "j" not found'}  # fmt: skip
        return 200, {"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "j"},
                     "status": {"conditions": self.conditions, "active": self.active}}  # fmt: skip


def listed(kind: str, items: list[Document]) -> Document:
    """Return a list of the API, its items numbered."""
    for number, item in enumerate(items):
        item |= {
            "kind": kind,
            "apiVersion": "v1",
            "metadata": {"name": f"one-{number}", "creationTimestamp": "2026-01-01T00:00:00Z"},
        }
    return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}


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


WAITING = {
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
}
STARTING = {"state": {"waiting": {"reason": "PodInitializing"}}}
NO_NODE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/8 nodes",
}
ON_A_NODE = {"type": "PodScheduled", "status": "True"}


def test_it_says_once_what_the_pods_wait_for(server: Server, tmp_path: Path) -> None:
    """The trap: a tag that no registry has, or no room, and a wait without a word."""
    server.active = 5
    server.pods = [
        {"phase": "Pending", "conditions": [NO_NODE]},
        {"phase": "Pending", "conditions": [NO_NODE]},
        {"phase": "Pending", "conditions": [ON_A_NODE], "containerStatuses": [STARTING],
         "initContainerStatuses": [WAITING]},
        {"phase": "Pending", "conditions": [ON_A_NODE], "containerStatuses": [STARTING]},
        {"phase": "Running", "conditions": [ON_A_NODE]},
    ]  # fmt: skip
    process = start(server, tmp_path)
    wait_until_asked(server, 4)
    server.conditions = [condition("Complete")]
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == [
        "j waits: one-2: ImagePullBackOff Back-off pulling image",
        "one-0: Unschedulable 0/8 nodes",
    ]


MOUNT = "MountVolume.SetUp failed: exit status 32\nOutput: mount.nfs: Connection timed out\n"


def later(minute: int) -> str:
    return f"2026-01-01T00:{minute:02d}:00Z"


def test_it_says_which_volume_holds_pods_that_are_only_created(
    server: Server, tmp_path: Path
) -> None:
    """The trap: ContainerCreating for hours, whose cause stands in the events alone."""
    creating = {"phase": "Pending", "conditions": [ON_A_NODE], "containerStatuses": [STARTING]}
    begun = {**creating, "initContainerStatuses": [{"state": {"running": {"startedAt": later(1)}}}]}
    server.active = 5
    server.pods = [creating, creating, creating, creating, begun]
    server.pod_events = [
        (0, "Warning", "FailedMount", MOUNT, later(9)),
        (0, "Warning", "FailedAttachVolume", "an older one", later(4)),
        (0, "Normal", "Scheduled", "to a node", None),
        (1, "Warning", "FailedMount", "the same of another pod", later(8)),
        (2, "Warning", "FailedMount", "a ConfigMap that came a moment later", later(3)),
        (2, "Normal", "Pulling", "an image", later(5)),
        (4, "Warning", "FailedMount", "mended since", later(2)),
        (7, "Warning", "FailedMount", "another Job's", later(9)),
    ]
    process = start(server, tmp_path)
    wait_until_asked(server, 4)
    server.pod_events = [(0, "Warning", "FailedAttachVolume", "Multi-Attach error", later(12))]
    wait_until_asked(server, server.asked + 3)
    process.terminate()  # as timeout(1) does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines() == [
        "j waits: one-0: FailedMount MountVolume.SetUp failed: exit status 32 "
        "Output: mount.nfs: Connection timed out",
        "j waits: one-0: FailedAttachVolume Multi-Attach error",
        "j has not ended and waits: one-0: FailedAttachVolume Multi-Attach error",
    ]


def test_events_are_asked_for_where_a_pod_says_no_reason(server: Server, tmp_path: Path) -> None:
    """All of a namespace are fetched: no small thing at each look."""
    server.active = 1
    server.pods = [{"phase": "Pending", "conditions": [NO_NODE]}]
    process = start(server, tmp_path)
    wait_until_asked(server, 4)
    assert server.asked_for_pod_events == 0
    server.pods.append(
        {"phase": "Pending", "conditions": [ON_A_NODE], "containerStatuses": [STARTING]}
    )
    wait_until_asked(server, server.asked + 3)
    server.conditions = [condition("Complete")]
    process.communicate(timeout=60)
    assert server.asked_for_pod_events > 0


def test_it_says_why_there_are_no_pods(server: Server, tmp_path: Path) -> None:
    server.events = ["pods are forbidden: violates PodSecurity"]
    process = start(server, tmp_path)
    wait_until_asked(server, 3)
    server.conditions = [condition("Suspended", "JobSuspended", "Job suspended")]
    wait_until_asked(server, server.asked + 3)
    server.conditions = [condition("Complete")]
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == [
        "j waits: Bad: pods are forbidden: violates PodSecurity",
        "j waits: Suspended: JobSuspended Job suspended",
    ]


def test_whoever_may_not_look_does_not_wait(server: Server, tmp_path: Path) -> None:
    server.is_forbidden = True
    process = start(server, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert "(Forbidden)" in line
    assert "expected leave to get jobs in ganbert" in line


def test_a_login_that_has_run_out_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    server.is_stranger = True
    process = start(server, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "log in, or choose its context" in errors.splitlines()[-1]


def test_a_failed_job_ends_the_wait_and_says_why(server: Server, tmp_path: Path) -> None:
    """The trap: `kubectl wait --for=condition=complete` waits for its whole timeout."""
    server.conditions = [condition("Failed", "PodFailurePolicy", "exit code 2 matching rule 0")]
    process = start(server, tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert "Failed: PodFailurePolicy exit code 2 matching rule 0\n" in errors
    assert f"one-0:  {MISTAKE}" in errors


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


@pytest.mark.parametrize("pause", ["soon", "-1", "1m"])
def test_a_pause_is_a_number(pause: str) -> None:
    """1 would mean that the Job has failed."""
    done = subprocess.run(
        ["bash", SCRIPT, "ganbert", "j", pause], capture_output=True, text=True, check=False,
        env={"PATH": f"{Path(str(kubectl())).parent}:{os.environ['PATH']}"}, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"found '{pause}'" in done.stderr
