"""The rules and dashboards of kubernetes/components/monitoring, as data.

python -m tests.monitoring.rules    # rules.yaml -> prometheusrule.yaml
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "kubernetes" / "components" / "monitoring"
RULES = COMPONENT / "rules.yaml"
PROMETHEUS_RULE = COMPONENT / "prometheusrule.yaml"
DASHBOARDS = sorted((COMPONENT / "dashboards").glob("*.json"))
NAME = re.compile(r"\bganbert_\w+")


def groups() -> list[dict[str, Any]]:
    """Groups of rules.yaml."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


def rules(kind: str) -> list[dict[str, Any]]:
    """Rules of a kind: "alert" or "record"."""
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


def dashboard(file: Path) -> dict[str, Any]:
    """A dashboard."""
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Panels of all dashboards, each with its dashboard's name."""
    return [(file.stem, panel) for file in DASHBOARDS for panel in dashboard(file)["panels"]]


def expressions() -> list[str]:
    """All PromQL there is."""
    of_panels = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    return of_panels + [rule["expr"] for group in groups() for rule in group["rules"]]


def filled_in(expression: str, window: str) -> str:
    """What Grafana sends for an expression when all namespaces and runs are chosen."""
    for name in ("namespace", "run", "job"):
        expression = expression.replace(f'=~"${name}"', '=~".*"')
    return expression.replace("$__rate_interval", window)


def metric_names(expression: str) -> set[str]:
    """Series of ganbert that an expression names; those of recording rules are not among them."""
    without_rules = re.sub(r"\b\w+:ganbert_\w+:\w+", "", expression)
    return set(NAME.findall(without_rules))


def write_prometheus_rule() -> None:
    """Wrap rules.yaml for the Prometheus operator."""
    head = "# Made from rules.yaml by `make monitoring-rules`; a test holds it to that.\n"
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "ganbert",
            "labels": {"app.kubernetes.io/component": "monitoring"},
        },
        "spec": {"groups": groups()},
    }
    PROMETHEUS_RULE.write_text(head + yaml.safe_dump(rule, sort_keys=False, width=100))


if __name__ == "__main__":
    write_prometheus_rule()
