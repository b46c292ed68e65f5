"""Every query of the dashboards and rules, asked of a real Prometheus beside a real training."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ganbert.exporter import METRICS
from tests.distributed.conftest import free_port
from tests.serve.running import RunningService

from .live import Prometheus, prometheus, prometheus_program, training
from .rules import DASHBOARDS, dashboard, filled_in, panels, rules

WINDOW = "15s"
# What a run of fp32 on a CPU cannot show, by what its panel or rule asks for.
ONLY_ELSEWHERE = {
    "ganbert_gpu_memory_bytes": "GPUs",
    "DCGM_FI_DEV_GPU_UTIL": "the DCGM exporter",
    "ganbert_infiniband_bytes_total": "nodes with InfiniBand",
    "ganbert_loss_scale": "fp16",
    "ganbert_gradient_norm": "engines that compute it",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        prometheus_program() is None, reason="no prometheus (apt-get install -y prometheus)"
    ),
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_export: Path) -> Iterator[Prometheus]:
    """Prometheus, with a training of two ranks and a service that it has watched for a while."""
    folder, work = tmp_path_factory.mktemp("monitoring"), tmp_path_factory.mktemp("work")
    with training(folder) as port, RunningService(tiny_export, work) as service:
        targets = {
            "ganbert-training": (port, {"namespace": "n", "run": "r"}),
            "ganbert-serve": (service.port, {"namespace": "n"}),
        }
        with prometheus(folder, free_port(), targets) as server:
            server.wait_for("ganbert_checkpoint_seconds_count > 1", 240)
            _upload(service.port, next(folder.glob("bids/sub-*/**/*_T1w.nii.gz")))
            _upload(service.port, folder / "recipe" / "run.yaml")
            # Rates want two samples of each, of what comes last too.
            for last in (
                'ganbert_serve_failures_total{kind="refused"}',
                "ganbert_serve_job_seconds_count > 0",
                "ganbert_checkpoint_seconds_count > 0",
            ):
                server.wait_for(f"count_over_time(({last})[{WINDOW}:1s]) > 5")
            yield server


def _upload(port: int, file: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "POST", "/v1/jobs", file.read_bytes(), {"Content-Type": "application/octet-stream"}
    )
    connection.getresponse().read()
    connection.close()


def elsewhere(expression: str) -> str | None:
    """Return where alone an expression has series, if not here."""
    return next((where for name, where in ONLY_ELSEWHERE.items() if name in expression), None)


def test_every_panel_shows_something(watched: Prometheus) -> None:
    empty = []
    for where, panel in panels():
        for target in panel["targets"]:
            found = watched.query(filled_in(target["expr"], WINDOW))
            if not found and elsewhere(target["expr"]) is None:
                empty.append((where, panel["title"], target["expr"]))
    assert not empty


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_variable_has_values(file: Path, watched: Prometheus) -> None:
    for variable in dashboard(file)["templating"]["list"][1:]:
        metric, _, label = variable["definition"].removeprefix("label_values(")[:-1].rpartition(",")
        matcher = filled_in(metric, WINDOW)
        values: list[Any] = watched.ask(f"label/{label.strip()}/values", **{"match[]": matcher})
        assert values, variable["definition"]


def test_every_recording_rule_has_a_series(watched: Prometheus) -> None:
    for rule in rules("record"):
        assert watched.query(rule["record"]), rule["record"]


def test_every_rule_is_evaluated_without_error_and_a_healthy_run_fires_none(
    watched: Prometheus,
) -> None:
    seen = {}
    for group in watched.ask("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            if rule["type"] == "alerting":
                seen[rule["name"]] = rule["state"]
    assert set(seen) == {rule["alert"] for rule in rules("alert")}
    assert "firing" not in seen.values(), seen


def test_every_metric_is_served_by_a_training(watched: Prometheus) -> None:
    for metric in METRICS:
        series = f"{metric.series}_count" if metric.kind == "histogram" else metric.series
        if series in ONLY_ELSEWHERE:
            continue
        assert watched.query(f'{series}{{run="r"}}'), series
