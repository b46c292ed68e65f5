"""Rules, alerts and dashboards: right by promtool, complete, and of series that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganbert.exporter import METRICS
from ganbert.serve.measures import Measures

from .rules import (
    DASHBOARDS,
    PROMETHEUS_RULE,
    ROOT,
    RULES,
    dashboard,
    expressions,
    groups,
    metric_names,
    panels,
    rules,
)

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool (apt-get install -y prometheus)"
)
RUN = 'namespace="n",run="r"'
A_DAY = 24 * 60


def steady(value: float, minutes: int = A_DAY) -> str:
    return f"{value}x{minutes}"


def counting(per_minute: float, minutes: int = A_DAY) -> str:
    return f"0+{per_minute}x{minutes}"


def unfinished(step: float = 10) -> dict[str, str]:
    return {
        f"ganbert_step{{{RUN}}}": steady(step),
        f"ganbert_max_steps{{{RUN}}}": steady(100),
        f"ganbert_finished{{{RUN}}}": steady(0),
    }


def of_an_older_image(series: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in series.items() if "ganbert_finished" not in key}


def went_away(
    step: float,
    max_steps: int = 100,
    *,
    start: int = 0,
    pod: str = "a",
    finished: bool | None = None,
) -> dict[str, str]:
    """Series of a pod that trained from minute `start` to 140; finished: with its last step."""
    end = int(step == max_steps if finished is None else finished)
    minutes, labels, before = 140 - start, f'{RUN},pod="{pod}"', f"_x{start - 1} " * (start > 0)
    return {
        f"ganbert_step{{{labels}}}": f"{before}0+{step / 20}x20 {step}x{minutes - 21} stale",
        f"ganbert_max_steps{{{labels}}}": f"{before}{max_steps}x{minutes} stale",
        f"ganbert_finished{{{labels}}}": f"{before}0x{minutes - 1} {end} stale",
        f"ganbert_last_step_timestamp_seconds{{{labels}}}": (
            f"{before}{60 * start}+60x{minutes} stale"
        ),
    }


def earlier(step: float, max_steps: int) -> dict[str, str]:
    """Series of a start under the same name that was gone after 100 minutes."""
    labels = f'{RUN},pod="b"'
    return {
        f"ganbert_step{{{labels}}}": f"{step}x100 stale",
        f"ganbert_max_steps{{{labels}}}": f"{max_steps}x100 stale",
        f"ganbert_finished{{{labels}}}": f"{int(step == max_steps)}x100 stale",
        f"ganbert_last_step_timestamp_seconds{{{labels}}}": "0+60x100 stale",
    }


def job(name: str, *, complete: bool) -> dict[str, str]:
    """What kube-state-metrics says of a Job."""
    labels = f'namespace="n",job_name="{name}"'
    return {
        f'kube_job_complete{{{labels},condition="true"}}': steady(int(complete)),
        f'kube_job_complete{{{labels},condition="false"}}': steady(int(not complete)),
    }


def active(job: str, pods: int = 8) -> dict[str, str]:
    return {f'kube_job_status_active{{namespace="n",job_name="{job}"}}': steady(pods)}


def stepping(run: str) -> dict[str, str]:
    return {f'ganbert_step{{namespace="n",run="{run}"}}': steady(3)}


def waiting(share: float) -> dict[str, str]:
    return {
        f"ganbert_data_wait_seconds_total{{{RUN}}}": counting(60 * share),
        f"ganbert_step_seconds_sum{{{RUN}}}": counting(60),
    }


def fabric(bytes_per_minute: float, nodes: int = 2) -> dict[str, str]:
    series = {}
    for node in range(nodes):
        labels = f'{RUN},instance="{node}"'
        series[f"ganbert_ranks{{{labels}}}"] = steady(8 * nodes)
        series[f"ganbert_steps_total{{{labels}}}"] = counting(60)
        port = f'{labels},device="mlx5_0",port="1",direction="sent"'
        series[f"ganbert_infiniband_bytes_total{{{port}}}"] = counting(bytes_per_minute)
    return series


def own_times(*seconds: float) -> dict[str, str]:
    return {
        f'ganbert_rank_own_seconds{{{RUN},rank="{rank}"}}': steady(value)
        for rank, value in enumerate(seconds)
    }


def judged(real: float, generated: float) -> dict[str, str]:
    return {
        f'ganbert_nsp_accuracy_ratio{{{RUN},kind="real"}}': steady(real),
        f'ganbert_nsp_accuracy_ratio{{{RUN},kind="generated"}}': steady(generated),
    }


def tokens(image: str, negative: float, overflow: float) -> dict[str, str]:
    shares = {"negative": negative, "overflow": overflow, "low": 0.0}
    shares["in_range"] = 1 - sum(shares.values())
    return {
        f'ganbert_token_band_ratio{{{RUN},image="{image}",band="{band}"}}': steady(share)
        for band, share in shares.items()
    }


def loss(value: str) -> dict[str, str]:
    return {f'ganbert_loss{{{RUN},network="generator",term="l1"}}': value}


def gpu(used: float) -> dict[str, str]:
    return {
        f'ganbert_gpu_memory_bytes{{{RUN},instance="i",kind="{kind}"}}': steady(value)
        for kind, value in (("used", used), ("total", 100))
    }


def queue(length: int) -> dict[str, str]:
    labels = 'namespace="n",job="serve",instance="i"'
    return {
        f"ganbert_serve_queue_length{{{labels}}}": steady(length),
        f"ganbert_serve_queue_limit{{{labels}}}": steady(16),
    }


def failures(kind: str) -> dict[str, str]:
    return {f'ganbert_serve_failures_total{{namespace="n",job="serve",kind="{kind}"}}': counting(1)}


def started(times: str) -> dict[str, str]:
    return {f"process_start_time_seconds{{{RUN}}}": times}


# Alert -> series with which it fires after three hours, and series with which it does not.
CASES: dict[str, list[tuple[bool, dict[str, str]]]] = {
    "GanbertTrainingStalled": [
        (True, {f"ganbert_last_step_timestamp_seconds{{{RUN}}}": steady(60), **unfinished()}),
        (False, {f"ganbert_last_step_timestamp_seconds{{{RUN}}}": counting(60), **unfinished()}),
        (
            True,
            {f"ganbert_last_step_timestamp_seconds{{{RUN}}}": steady(60)}
            | of_an_older_image(unfinished()),
        ),
        # In its last checkpoint, and then at its end.
        (True, {f"ganbert_last_step_timestamp_seconds{{{RUN}}}": steady(60), **unfinished(100)}),
        (
            False,
            {
                f"ganbert_last_step_timestamp_seconds{{{RUN}}}": steady(60),
                **unfinished(100),
                f"ganbert_finished{{{RUN}}}": steady(1),
            },
        ),
    ],
    "GanbertTrainingNotBegun": [
        (True, active("ganbert-train")),
        (False, active("ganbert-train") | stepping("ganbert-train")),
        (True, active("ganbert-train") | stepping("ganbert-train-2")),
        (False, active("ganbert-train", 0)),  # suspended by a queue, or at its end
        (False, active("ganbert-prepare", 1)),
        (True, active("ganbert-train-launcher", 1)),
        (False, active("ganbert-train-launcher", 1) | stepping("ganbert-train")),
    ],
    "GanbertTrainingGone": [
        (True, went_away(10)),
        (False, went_away(100)),  # at its end
        (True, of_an_older_image(went_away(10))),
        (False, of_an_older_image(went_away(100))),
        (True, went_away(99)),
        (True, went_away(100, finished=False)),  # its last checkpoint or its export failed
        (False, went_away(100, finished=False) | job("r", complete=True)),
        (False, went_away(100, start=110) | went_away(100, finished=False, pod="b")),
        (
            False,
            {f"ganbert_last_step_timestamp_seconds{{{RUN}}}": counting(60), **unfinished()},
        ),
        (True, went_away(10) | job("r", complete=False)),
        (True, went_away(10) | job("another", complete=True)),
        (False, went_away(99) | job("r", complete=True)),  # whose end was not read
        (False, went_away(99) | job("r-launcher", complete=True)),
        # Of several starts the newest holds; of its nodes, the one that was read last.
        (False, went_away(100, start=110) | earlier(10, 5000)),
        (True, went_away(10, start=110) | earlier(5000, 5000)),
        (False, went_away(100) | went_away(99, pod="c")),
        (False, went_away(100) | went_away(100, finished=False, pod="c")),
    ],
    "GanbertRankMissing": [
        (True, {f"ganbert_ranks{{{RUN}}}": steady(3), **own_times(1, 1)}),
        (False, {f"ganbert_ranks{{{RUN}}}": steady(2), **own_times(1, 1)}),
    ],
    "GanbertThroughputDown": [
        (True, {f"ganbert_volumes_total{{{RUN}}}": "0+60x160 9600+30x60"}),
        (False, {f"ganbert_volumes_total{{{RUN}}}": "0+60x160 9600+50x60"}),
    ],
    "GanbertInfiniBandIdle": [
        (True, fabric(60 * 1e3)),
        (True, fabric(0)),
        (False, fabric(60 * 1e8)),
        (False, fabric(0, nodes=1)),
        (False, {k: v for k, v in fabric(0).items() if "infiniband" not in k}),  # none there
    ],
    "GanbertDataStarvation": [(True, waiting(0.2)), (False, waiting(0.05))],
    "GanbertStraggler": [(True, own_times(1, 1, 1, 3)), (False, own_times(1, 1, 1, 1.5))],
    "GanbertLossNotFinite": [
        (True, loss(" ".join(["NaN"] * 200))),
        (True, loss(" ".join(["Inf"] * 200))),
        (False, loss(steady(1))),
    ],
    "GanbertLossScaleLow": [
        (True, {f'ganbert_loss_scale{{{RUN},network="generator"}}': steady(2)}),
        (False, {f'ganbert_loss_scale{{{RUN},network="generator"}}': steady(1024)}),
    ],
    "GanbertDiscriminatorWon": [(True, judged(1, 1)), (False, judged(1, 0.9))],
    "GanbertDiscriminatorLost": [(True, judged(1, 0)), (False, judged(0.8, 0.7))],
    "GanbertTokensOutOfRange": [
        (True, tokens("pet_real", 0.4, 0.2)),
        (False, tokens("pet_real", 0.25, 0.03)),
        (False, tokens("pet_fake", 1.0, 0.0)),
        (False, tokens("mri", 0.8, 0.0)),
    ],
    "GanbertCheckpointTooOld": [
        (True, {f"ganbert_checkpoint_timestamp_seconds{{{RUN}}}": steady(-9000), **unfinished()}),
        (False, {f"ganbert_checkpoint_timestamp_seconds{{{RUN}}}": steady(9000), **unfinished()}),
    ],
    "GanbertRestarting": [
        (True, started("60x150 9000x100") | unfinished()),
        (False, started(steady(60)) | unfinished()),
        (False, started("60x150 9000x100")),  # another program's
    ],
    "GanbertGpuMemoryNearFull": [(True, gpu(96)), (False, gpu(90))],
    "GanbertServeQueueFull": [(True, queue(16)), (False, queue(15))],
    "GanbertServeFailing": [(True, failures("crash")), (False, failures("refused"))],
}


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert set(CASES) == {rule["alert"] for rule in rules("alert")}
    for name, cases in CASES.items():
        assert {fires for fires, _ in cases} == {True, False}, name


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    done = subprocess.run(
        [PROMTOOL, "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_alone(name: str, tmp_path: Path) -> None:
    (rule,) = [rule for rule in rules("alert") if rule["alert"] == name]
    alone = {"groups": [{"name": "g", "rules": [*rules("record"), rule]}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alone))
    for fires, series in CASES[name]:
        # One query that is true or false, instead of an alert's labels and words.
        query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
        test: dict[str, Any] = {
            "interval": "1m",
            "input_series": [{"series": key, "values": value} for key, value in series.items()],
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "180m",
                    "exp_samples": [{"labels": "{}", "value": 1 if fires else 0}],
                }
            ],
        }
        file = tmp_path / "test.yaml"
        content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
        file.write_text(yaml.safe_dump(content))
        done = subprocess.run(
            [PROMTOOL, "test", "rules", file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name} fires={fires}: {done.stdout}{done.stderr}"


def test_the_operators_rule_holds_the_same_groups() -> None:
    rule = yaml.safe_load(PROMETHEUS_RULE.read_text())
    assert rule["spec"]["groups"] == groups()  # else: make monitoring-rules


def test_every_alert_has_its_section_in_the_runbook() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        anchor = rule["annotations"]["runbook"]
        assert anchor == f"docs/operations.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in page


ASKED_FOR = ("queue_length", "queue_limit", "jobs_running", "workers_ready")


def exported() -> set[str]:
    """Series of both exporters, by the names that PromQL has for them."""
    names = set()
    for metric in METRICS:
        if metric.kind == "histogram":
            names |= {f"{metric.series}_{end}" for end in ("bucket", "sum", "count")}
        else:
            names.add(metric.series)
    for family in Measures().registry.collect():
        if family.name.startswith("ganbert_"):
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            names |= {family.name + end for end in ends.get(family.type, ("",))}
    # Measured when the pool asks for them (serve/pool.py).
    return names | {f"ganbert_serve_{name}" for name in ASKED_FOR}


def test_what_rules_and_dashboards_name_is_exported() -> None:
    named = set().union(*map(metric_names, expressions()))
    assert named - exported() == set()


def test_what_is_exported_is_shown_or_watched() -> None:
    shown = set().union(*map(metric_names, expressions()))
    of_service = {family.name for family in Measures().registry.collect()}
    families = {metric.series for metric in METRICS} | {f"ganbert_serve_{n}" for n in ASKED_FOR}
    families |= {name for name in of_service if name.startswith("ganbert_")}
    assert [name for name in families if not any(one.startswith(name) for one in shown)] == []


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_hard_codes_nothing_but_its_data_source(file: Path) -> None:
    made = dashboard(file)
    assert made["description"]
    first, *others = made["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    sources = [panel["datasource"] for panel in made["panels"]]
    sources += [target["datasource"] for panel in made["panels"] for target in panel["targets"]]
    sources += [variable["datasource"] for variable in others]
    assert all(source["uid"] == "${datasource}" for source in sources)
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", file.read_text())


def test_runs_of_one_name_in_two_namespaces_stay_two() -> None:
    """Every overlay calls its Job ganbert-train."""
    for expression in expressions():
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            assert "namespace" in labels.split(", "), expression
    for _, panel in panels():
        for target in panel["targets"]:
            legend = target["legendFormat"]
            assert "{{namespace}}" in legend or "{{run}}" not in legend, panel["title"]


@pytest.mark.parametrize(
    ("where", "panel"), panels(), ids=[f"{where}-{panel['title']}" for where, panel in panels()]
)
def test_a_panel_says_what_it_shows(where: str, panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat", "gauge", "bargauge", "heatmap", "table")
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert "$" in target["expr"], "no variable chooses what it shows"
