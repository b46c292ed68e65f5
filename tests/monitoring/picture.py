"""Draw the dashboards' panels for a real run, asked of a real Prometheus. No screenshot of Grafana.

python -m tests.monitoring.picture docs/figures/monitoring.png [--seconds 120]
"""

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.distributed.conftest import free_port

from .live import Prometheus, prometheus, training
from .rules import DASHBOARDS, dashboard, filled_in

SHOWN = ("training-throughput", "gan-health")
WINDOW = "15s"


def name_of(legend: str, labels: dict[str, str]) -> str:
    """Fill in a legend as Grafana does."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend).strip()


def draw(server: Prometheus, seconds: float, file: Path) -> None:
    """Draw every time series of the shown dashboards that has data."""
    drawn: list[tuple[dict[str, Any], list[tuple[str, list[float], list[float]]]]] = []
    for board in DASHBOARDS:
        for panel in dashboard(board)["panels"] if board.stem in SHOWN else ():
            lines = []
            for target in panel["targets"] if panel["type"] == "timeseries" else ():
                for series in server.over_time(filled_in(target["expr"], WINDOW), seconds):
                    times, values = zip(*series["values"], strict=True)
                    seen = [float(moment) - float(times[0]) for moment in times]
                    name = name_of(target["legendFormat"], series["metric"])
                    lines.append((name, seen, [float(value) for value in values]))
            if lines:
                drawn.append((panel, lines))
    columns = 3
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(15, 2.6 * rows), layout="constrained")
    for place, (panel, lines) in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, place + 1)
        for name, moments, values in lines:
            axes.plot(moments, values, label=name, linewidth=1.2)
        defaults = panel["fieldConfig"]["defaults"]
        if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
            axes.set_yscale("log")
        elif min(min(values) for _, _, values in lines) >= 0:
            axes.set_ylim(bottom=0)
        unit = {"none": "", "percentunit": " (share)"}.get(
            defaults["unit"], f" ({defaults['unit']})"
        )
        axes.set_title(panel["title"] + unit, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, loc="best", ncols=2)
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(file, dpi=70)


def main() -> None:
    """Train, watch, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="to watch")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with training(folder) as port:
            targets = {"ganbert-training": (port, {"namespace": "demo", "run": "tiny"})}
            with prometheus(folder, free_port(), targets) as server:
                server.wait_for("ganbert_steps_total > 1", 240)
                time.sleep(chosen.seconds)
                draw(server, chosen.seconds, chosen.file)


if __name__ == "__main__":
    main()
