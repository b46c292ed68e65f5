"""What the Prometheus exporter costs a training, as a share of its step.

    python benchmarks/exporter.py WORK --out benchmarks/results/exporter

Real trainings under the real launcher, with the exporter on at one step and off at the next, in an
order drawn for each pair of steps: both see the same machine, the same weights and the same
neighbours. Two figures, because the first one is small beside what a machine does on its own:

`on / off`  median time from one step's record to the next, the exporter's step among them, beside
            that without, by the clock and by the processor's time of rank 0 (which neighbours
            disturb less); with the 95 % interval of a bootstrap over the pairs
`direct`    time in the exporter's own calls: what a step hands over, what counting the bands of
            tokens takes on the way there, and a scrape each 15 s, as Prometheus would make it;
            as a share of a quick step (the first decile), so that a busy machine hides nothing

Step times are those of rank 0, which exports. WORK keeps the cohorts; `demo` is the demo recipe,
`tiny` the same with a generator of two levels on images of 32^3, the shortest step there is.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interruption import interruptible
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

import ganbert.steps
import ganbert.train
from ganbert.atomic import write_text
from ganbert.config import GRIDS
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare
from ganbert.step_stats import StepStats
from ganbert.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"tiny": "generator: {channels: [4, 8]}\n", "demo": ""}
SCRAPE_SECONDS = 15.0
SCRAPES = 200
# The first steps allocate, the last two validate and save.
FIRST, LAST = 6, 2
# An interval wants two pairs of steps at least; between n steps lie n - 1 times.
FEWEST_STEPS = FIRST + LAST + 4 + 1
RESULT = "GANBERT_EXPORTER_RESULT"


class Alternating(Telemetry):
    """The training's own telemetry, whose exporter sits out every other step."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._order = np.random.default_rng(0)
        self._moments: list[float] = []
        self._processor: list[float] = []
        self._is_on: list[bool] = []
        self._handed_over: list[float] = []
        self._counted: list[float] = []
        if self._prometheus is not None:
            self._exporter = self._prometheus
            self._exporter.write = timed(self._exporter.write, self._handed_over)
            ganbert.steps._token_shares = timed(ganbert.steps._token_shares, self._counted)

    def write(self, stats: StepStats, new_volumes: int) -> None:
        """Hand one step to the sinks, and to the exporter if it is its turn."""
        if self._prometheus is None:
            super().write(stats, new_volumes)
            return
        if len(self._is_on) == len(self._moments):
            first = bool(self._order.integers(2))
            self._is_on += [first, not first]
        self._prometheus = self._exporter if self._is_on[len(self._moments)] else None
        self._moments.append(time.perf_counter())
        self._processor.append(time.process_time())
        super().write(stats, new_volumes)
        self._prometheus = self._exporter

    def close(self) -> None:
        """Measure scrapes, and say what was seen."""
        if self._prometheus is not None and self._moments:
            content = {
                "clock": np.diff(self._moments).tolist(),
                "processor": np.diff(self._processor).tolist(),
                "is_on": self._is_on[: len(self._moments) - 1],
                "handed_over": self._handed_over,
                "counted": self._counted,
                "scrapes": [scrape(self._prometheus.port) for _ in range(SCRAPES)],
            }
            Path(os.environ[RESULT]).write_text(json.dumps(content))
            self._moments = []
        super().close()


def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return the call, that notes how long it took."""

    def run(*arguments: Any) -> Any:
        started = time.perf_counter()
        answer = call(*arguments)
        seconds.append(time.perf_counter() - started)
        return answer

    return run


def scrape(port: int) -> float:
    """Seconds of a scrape, the client's among them."""
    started = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        answer.read()
    return time.perf_counter() - started


def make_data(work: Path, size: str) -> Path:
    """Make the cohort of a size, once."""
    folder, (mri_grid, pet_grid) = work / size, GRIDS[size]
    if not (folder / "prepared" / "index.json").exists():
        make_cohort(folder / "bids", num_subjects=8, tracer="AV45", seed=1, size=size)
        grids = {"mri_grid": mri_grid, "pet_grid": pet_grid}
        prepare(folder / "bids", folder / "prepared", seed=0, **grids)
    return folder


def measure(work: Path, size: str, steps: int, ranks: int) -> dict[str, Any]:
    """Train once, and return what `Alternating` saw."""
    folder = make_data(work, size)
    number = len(list(folder.glob("run-*")))
    recipe, run, seen = folder / "recipe", folder / f"run-{number}", folder / f"seen-{number}.json"
    recipe.mkdir(exist_ok=True)
    base = os.path.relpath(ROOT / "ds_configs" / "demo", recipe)
    settings = f"base: {base}\ncheckpoint_every: {steps}\nvalidation_subjects: 0\n{SIZES[size]}"
    (recipe / "run.yaml").write_text(settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    launcher = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", ranks]
    launcher += ["--master_port", port, __file__, "--worker"]
    options = ["--config", recipe, "--data", folder / "prepared", "--output", run]
    command = [str(word) for word in (*launcher, *options, "--max-steps", steps)]
    places = [Path(sys.executable).parent, os.environ["PATH"]]
    environment = {**os.environ, RESULT: str(seen), "PATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        )
    content: dict[str, Any] = json.loads(seen.read_text())
    return content


def summarise(seen: dict[str, Any]) -> dict[str, Any]:
    """Shares of a step, from what one training saw."""
    num = (len(seen["clock"]) - LAST - FIRST) // 2 * 2
    turns = np.array(seen["is_on"])[FIRST : FIRST + num].reshape(-1, 2)

    def split(times: list[float]) -> tuple[Any, Any]:
        pairs = np.array(times)[FIRST : FIRST + num].reshape(-1, 2)
        return pairs[turns], pairs[~turns]

    def ratio(on: Any, off: Any, axis: int = -1) -> Any:
        return np.median(on, axis=axis) / np.median(off, axis=axis)

    found: dict[str, Any] = {"pairs": len(turns)}
    for name in ("clock", "processor"):
        drawn = bootstrap(split(seen[name]), ratio, paired=True, method="percentile", rng=0)
        ends = drawn.confidence_interval
        found[f"on_over_off_{name}"] = [float(ratio(*split(seen[name]))), ends.low, ends.high]
    _, off = split(seen["clock"])
    # Of a machine that does other things too, nearer to a step alone than the median is.
    quick = float(np.quantile(off, 0.1))
    scrape_s = statistics.median(seen["scrapes"])
    direct = {
        "handed_over_s": statistics.median(seen["handed_over"]),
        "bands_s": statistics.median(seen["counted"]) * len(seen["counted"]) / len(seen["clock"]),
        "scrapes_s": scrape_s * quick / SCRAPE_SECONDS,
    }
    found |= {"step_s": float(np.median(off)), "quick_step_s": quick, "scrape_s": scrape_s}
    return found | direct | {"direct_share": sum(direct.values()) / quick}


def show(results: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(title="The exporter's cost", title_justify="left")
    table.add_column("training")
    for column in (
        "pairs", "step, ms", "quick, ms", "on / off, clock", "on / off, processor",
        "handed over, ms", "bands, ms", "scrape, ms", "direct, %",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, of in results.items():
        ratios = [of["on_over_off_clock"], of["on_over_off_processor"]]
        table.add_row(
            name,
            str(of["pairs"]),
            *(f"{1e3 * of[key]:.0f}" for key in ("step_s", "quick_step_s")),
            *(f"{middle:.4f} ({low:.4f} to {high:.4f})" for middle, low, high in ratios),
            *(f"{1e3 * of[key]:.2f}" for key in ("handed_over_s", "bands_s", "scrape_s")),
            f"{100 * of['direct_share']:.3f}",
        )
    console.print(table)


def main() -> None:
    """Measure all, or (under the launcher) train once."""
    if "--worker" in sys.argv:
        ganbert.train.Telemetry = Alternating
        sys.argv.remove("--worker")
        ganbert.train.main()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[800, 200], help="of each size, or one for all"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for exporter.json")
    options = parser.parse_args()
    if len(options.steps) == 1:
        options.steps *= len(options.sizes)
    if len(options.steps) != len(options.sizes) or min(options.steps) < FEWEST_STEPS:
        parser.error(
            f"argument --steps: expected one for each of {' '.join(options.sizes)}, or one for "
            f"all, {FEWEST_STEPS} at least, found {' '.join(map(str, options.steps))}"
        )
    options.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for size, steps in zip(options.sizes, options.steps, strict=True):
        seen = measure(options.work, size, steps, options.ranks)
        results[f"{size}, {options.ranks} ranks"] = summarise(seen)
    show(results, Console(width=160))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        content = {
            "steps": dict(zip(options.sizes, options.steps, strict=True)),
            "versions": {n: version(n) for n in ("torch", "deepspeed", "prometheus_client")},
            "device": "CUDA" if torch.cuda.is_available() else "CPU",
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "machine": platform.machine(),
            "results": results,
        }
        write_text(options.out / "exporter.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    with interruptible():
        main()
