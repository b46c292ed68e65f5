"""What happens when workers die, jobs take long, the queue is full, and the service must end."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from ganbert.errors import ConfigError
from ganbert.serve.settings import check_exposure, read_token
from tests.serve.images import large_t1w, t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself


def stopped(running: RunningService) -> psutil.Process:
    """Stop the worker (SIGSTOP), so that its job lasts as long as a test wants."""
    running.wait_until_ready()
    worker = running.workers[0]
    worker.suspend()
    return worker


def test_a_killed_worker_costs_its_job_alone(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        running.wait_until_ready()
        # With as many passes as there may be, it is not done before it is killed.
        first = running.upload(large_t1w(), query="?uncertainty=16").json
        running.wait_until(lambda: running.ask("GET", first["links"]["self"]).json["progress"])
        running.workers[0].kill()
        second = running.upload(t1w(2)).json
        failed = running.finish(first["id"])
        assert failed["failure"]["kind"] == "crash"
        assert "SIGKILL" in failed["failure"]["reason"]
        assert running.finish(second["id"])["state"] == "done"
        assert running.metric('ganbert_serve_failures_total{kind="crash"}') == 1
        # One that dies while it has nothing to do costs nobody anything.
        running.workers[0].kill()
        third = running.upload(t1w(3)).json
        assert running.finish(third["id"])["state"] == "done"
        assert running.metric("ganbert_serve_worker_starts_total") == 3


def test_a_job_that_takes_too_long_is_ended(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work", "--job-seconds", "3") as running:
        stopped(running)
        job = running.finish(running.upload(t1w(1)).json["id"])
        assert job["failure"]["kind"] == "timeout"
        assert "3 s" in job["failure"]["reason"]
        running.wait_until_ready()
        assert running.finish(running.upload(t1w(2)).json["id"])["state"] == "done"


def test_a_full_queue_says_when_to_come_back(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work", "--queue", "2") as running:
        worker = stopped(running)
        first = running.upload(t1w(0)).json
        running.wait_until(lambda: running.ask("GET", first["links"]["self"]).json["started"])
        waiting = [running.upload(t1w(seed)).json for seed in (1, 2)]
        assert [job["position"] for job in waiting] == [1, 2]
        # Larger than any buffer of the connection: the answer has to get past the upload.
        full = running.upload(bytes(5_000_000))
        assert full.status == 429
        assert int(full.headers["retry-after"]) >= 1
        assert "2 uploads" in full.json["detail"]
        assert running.metric('ganbert_serve_failures_total{kind="refused"}') == 1
        assert running.metric("ganbert_serve_queue_length") == 2
        assert running.metric("ganbert_serve_queue_limit") == 2
        assert running.ask("DELETE", waiting[0]["links"]["self"]).status == 204
        assert running.upload(t1w(3)).status == 202
        worker.resume()
        assert running.finish(waiting[1]["id"])["state"] == "done"
        assert running.ask("GET", waiting[0]["links"]["self"]).status == 404


def test_sigterm_finishes_what_was_taken(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        worker = stopped(running)
        jobs = [running.upload(t1w(seed)).json for seed in (1, 2, 3)]
        running.process.send_signal(signal.SIGTERM)
        worker.terminate()  # systemd tells all processes of a service
        running.wait_until(lambda: running.ask("GET", "/readyz").status == 503)
        refused = running.upload(t1w(4))
        assert refused.status == 503
        assert refused.headers["retry-after"]
        assert running.metric('ganbert_serve_failures_total{kind="refused"}') == 1
        assert running.ask("GET", "/healthz").status == 200
        worker.resume()
        for job in jobs:
            assert running.finish(job["id"])["state"] == "done"
            for name in ("pet", "sidecar"):
                assert running.ask("GET", job["links"][name]).status == 200
        # All are fetched: it need not wait for anybody.
        assert running.process.wait(10) == 0
        assert not list(running.work_dir.iterdir())
        assert "finishing 3 jobs" in running.log.read_text()


def test_a_drain_waits_for_whoever_has_the_pet_and_not_yet_its_sidecar(
    tiny_export: Path, tmp_path: Path
) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        running.wait_until_ready()
        links = running.finish(running.upload(t1w(1)).json["id"])["links"]
        assert running.ask("GET", links["pet"]).status == 200
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: running.ask("GET", "/readyz").status == 503)
        time.sleep(1)
        assert running.ask("GET", links["sidecar"]).status == 200
        assert running.process.wait(10) == 0


def test_a_second_signal_ends_at_once(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        worker = stopped(running)
        running.upload(t1w(1))
        running.process.send_signal(signal.SIGINT)
        running.wait_until(lambda: running.ask("GET", "/readyz").status == 503)
        assert running.stop(signal.SIGINT, 60) == 0  # of 300
        assert not list(running.work_dir.iterdir())
        assert "Traceback" not in running.log.read_text()
        assert not psutil.pid_exists(worker.pid)


def test_what_a_killed_service_leaves_is_deleted_by_the_next(
    tiny_export: Path, tmp_path: Path
) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        running.wait_until_ready()
        running.finish(running.upload(t1w(1)).json["id"])
        worker = running.workers[0]
        running.stop(signal.SIGKILL)
        left = running.files()
        assert len(left) == 2
        worker.wait(60)  # an orphan ends by itself
        with RunningService(tiny_export, tmp_path / "work") as following:
            assert not any(file.exists() for file in left)
            # One that lives keeps its folder.
            with RunningService(tiny_export, tmp_path / "work"):
                assert len(list((tmp_path / "work").iterdir())) == 2
            following.wait_until_ready()
            assert following.upload(t1w(2)).status == 202


def test_results_are_deleted_after_a_while(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work", "--keep-seconds", "1") as running:
        running.wait_until_ready()
        job = running.upload(t1w(1)).json
        running.wait_until(lambda: running.ask("GET", job["links"]["self"]).status == 404)
        assert not running.files()


def test_files_are_private_and_the_upload_goes_first(tiny_export: Path, tmp_path: Path) -> None:
    with RunningService(tiny_export, tmp_path / "work") as running:
        worker = stopped(running)
        job = running.upload(t1w(1)).json
        (upload,) = running.files()
        for folder in upload.parents[:2]:
            assert folder.stat().st_mode & 0o077 == 0
        assert job["id"] not in str(upload)
        worker.resume()
        running.finish(job["id"])
        assert [file.name for file in running.files()] == ["pet.json", "pet.nii.gz"]


def test_events_tell_the_stages_in_order(service: RunningService) -> None:
    worker = stopped(service)  # or it may be done before anybody listens
    job = service.upload(large_t1w()).json
    text = service.ask("GET", job["links"]["events"], heard=worker.resume).body.decode()
    states = re.findall(r'"state": "(\w+)"', text)
    progress = [float(value) for value in re.findall(r'"progress": ([\d.]+)', text)]
    assert states[-1] == "done"
    assert "running" in states
    assert progress == sorted(progress)
    # How many steps between are seen is the machine's affair; that some are is the service's.
    assert {value for value in progress if 0.1 < value < 1}
    assert re.findall(r'"stage": "(reading|synthesising)"', text)


def test_a_token_is_asked_for(tiny_export: Path, tmp_path: Path) -> None:
    token = "0123456789abcdef"  # noqa: S105
    file = tmp_path / "token"
    file.write_text(token + "\n")
    options = ("--token-file", str(file), "--host", "0.0.0.0")  # noqa: S104
    with RunningService(tiny_export, tmp_path / "work", *options) as running:
        running.wait_until_ready()
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"},
                        {"Authorization": "Bearer \xe9"}):  # fmt: skip
            answer = running.upload(t1w(1), headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert running.ask("GET", "/v1/model", None, headers).status == 401
        assert running.metric('ganbert_serve_failures_total{kind="refused"}') == 4  # uploads alone
        assert not running.files()
        good = {"Authorization": f"Bearer {token}"}
        assert running.upload(t1w(1), good).status == 202
        assert running.ask("GET", "/v1/model", None, good).json["needs_token"]
        assert running.ask("GET", "/metrics").status == 200
        assert token not in running.log.read_text()


def test_no_token_on_a_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", ""):  # noqa: S104
        with pytest.raises(ConfigError, match="expected a token"):
            check_exposure(host, None, insecure=False)
        check_exposure(host, None, insecure=True)
        check_exposure(host, "0123456789abcdef", insecure=False)
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        check_exposure(host, None, insecure=False)
    with pytest.raises(ConfigError, match="an address of this machine"):
        check_exposure("no.such.host.invalid", None, insecure=False)
    for text in ("short", "two words of some length", "\xe9" * 20, ""):
        monkeypatch.setenv("GANBERT_SERVE_TOKEN", text)
        with pytest.raises(ConfigError, match="one word of at least 16"):
            read_token(None)
    monkeypatch.delenv("GANBERT_SERVE_TOKEN")
    assert read_token(None) is None


def test_a_model_that_cannot_be_used_is_one_line(tiny_export: Path, tmp_path: Path) -> None:
    copy = tmp_path / "export"
    copy.mkdir()
    for file in tiny_export.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with RunningService(copy, tmp_path / "work") as running:
        assert running.process.wait(60) == 2
        text = running.log.read_text()
        assert "weights with SHA-256" in text
        assert "Traceback" not in text
    assert not list((tmp_path / "work").iterdir())


def test_every_metric_is_in_the_table(service: RunningService, repository: Path) -> None:
    page = service.ask("GET", "/metrics").body.decode()
    named = set(re.findall(r"^# TYPE (ganbert_serve_\w+)", page, re.MULTILINE))
    named = {name for name in named if not name.endswith("_created")}
    text = (repository / "docs" / "service.md").read_text()
    assert set(re.findall(r"^\| `(ganbert_serve_\w+)", text, re.MULTILINE)) == named


def test_the_answers_protect_the_browser(service: RunningService) -> None:
    for path in ("/", "/v1/model", "/docs", "/static/none.js"):
        headers = service.ask("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert service.ask("GET", "/v1/model").headers["cache-control"] == "no-store"
    assert os.fspath(service.work_dir) not in service.ask("GET", "/openapi.json").body.decode()


def test_a_slow_upload_holds_nobody_else_up(service: RunningService) -> None:
    def drip():
        yield t1w(1)[:100]
        job = service.upload(t1w(2)).json
        assert service.finish(job["id"])["state"] == "done"  # while this one is not yet here
        yield t1w(1)[100:]

    headers = {"Content-Type": "application/octet-stream"}
    answer = service.ask("POST", "/v1/jobs", drip(), headers, encode_chunked=True)
    assert answer.status == 202
    assert service.finish(answer.json["id"])["state"] == "done"
