"""What is scraped, and the labels that it gets: by Prometheus' own relabelling."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .rules import COMPONENT
from .test_rules import PROMTOOL, needs_promtool

JOB = {"batch_kubernetes_io_job_name": "av45"}
MPI_JOB = {"training_kubeflow_org_job_name": "av45"}


def configuration() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPONENT / "scrape-config.yaml").read_text())
    return found


def labels_of(job: str, component: str, port: str, owner: dict[str, str], folder: Path) -> Any:
    """Labels that a pod's target gets; empty if it is not scraped."""
    labels = {
        "app_kubernetes_io_name": "ganbert",
        "app_kubernetes_io_component": component,
        **owner,
    }
    pod = {f"__meta_kubernetes_pod_label_{name}": value for name, value in labels.items()}
    pod |= {"__meta_kubernetes_namespace": "n", "__meta_kubernetes_pod_name": "p"}
    pod["__meta_kubernetes_pod_container_port_name"] = port
    config = configuration()
    for scrape in config["scrape_configs"]:
        del scrape["kubernetes_sd_configs"]  # there is no API server to ask
        scrape["static_configs"] = [{"targets": ["10.0.0.1:9808"], "labels": pod}]
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(PROMTOOL), "check", "service-discovery", "--timeout=1s", str(file), job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return {k: v for k, v in found["labels"].items() if not k.startswith("__")}


@needs_promtool
@pytest.mark.parametrize("owner", [JOB, MPI_JOB], ids=["Job", "MPIJob"])
def test_a_training_is_scraped_under_the_name_of_its_job(
    owner: dict[str, str], tmp_path: Path
) -> None:
    labels = labels_of("ganbert-training", "training", "metrics", owner, tmp_path)
    assert (labels["namespace"], labels["run"], labels["pod"]) == ("n", "av45", "p")


@needs_promtool
def test_each_pod_is_scraped_once_and_by_its_own_port(tmp_path: Path) -> None:
    assert labels_of("ganbert-serve", "serve", "http", {}, tmp_path)["namespace"] == "n"
    assert labels_of("ganbert-serve", "training", "metrics", JOB, tmp_path) == {}
    assert labels_of("ganbert-training", "serve", "http", {}, tmp_path) == {}
    assert labels_of("ganbert-training", "training", "ssh", JOB, tmp_path) == {}
    assert labels_of("ganbert-training", "prepare", "metrics", JOB, tmp_path) == {}


def test_with_and_without_the_operator_it_is_the_same() -> None:
    by_name = {one["job_name"]: one for one in configuration()["scrape_configs"]}
    monitors = list(yaml.safe_load_all((COMPONENT / "podmonitor.yaml").read_text()))
    assert {one["metadata"]["name"] for one in monitors} == by_name.keys()
    for monitor in monitors:
        scrape = by_name[monitor["metadata"]["name"]]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert scrape["scrape_interval"] == endpoint["interval"]
        chosen = monitor["spec"]["selector"]["matchLabels"].values()
        assert scrape["relabel_configs"][0]["regex"] == ";".join([*chosen, endpoint["port"]])
        runs = [
            {"source_labels": one["sourceLabels"], "target_label": one["targetLabel"]}
            | ({"regex": one["regex"]} if "regex" in one else {})
            for one in endpoint.get("relabelings", [])
        ]
        assert [
            one for one in scrape["relabel_configs"] if one.get("target_label") == "run"
        ] == runs
