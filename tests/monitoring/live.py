"""A real Prometheus beside a real training, on loopback."""

import json
import os
import shutil
import signal
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import yaml

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.phantom import make_cohort
from ganbert.errors import EXIT_INTERRUPTED
from ganbert.prepare import prepare
from tests.distributed.conftest import RECIPE, free_port

from .rules import RULES

SCRAPE_SECONDS = 1


def prometheus_program() -> str | None:
    """Path of Prometheus, or None."""
    return shutil.which("prometheus")


class Prometheus:
    """A server that scrapes, and answers queries."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; raises if it is no success."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            content = json.load(answer)
        assert content["status"] == "success", content
        return content["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression, now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def over_time(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """Return the series of an expression over the last seconds."""
        now = time.time()
        span = {"start": str(now - seconds), "end": str(now), "step": str(SCRAPE_SECONDS)}
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, **span)["result"]
        return found

    def wait_for(self, expression: str, seconds: float = 120) -> None:
        """Return when an expression has a series."""
        end = time.monotonic() + seconds
        while not self.query(expression):
            assert time.monotonic() < end, f"nothing for {expression}"
            time.sleep(0.5)


def cohort(folder: Path) -> Path:
    """Make and prepare eight tiny phantom subjects."""
    make_cohort(folder / "bids", num_subjects=8, tracer="AV45", seed=5, size="tiny", jobs=1)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "bids", folder / "prepared", seed=0, jobs=1, **grids)
    return folder / "prepared"


def start(folder: Path, prepared: Path, port: int, *, ranks: int, **settings: int) -> Popen[bytes]:
    """Train the tiny recipe, changed by `settings`, into folder/run."""
    recipe = folder / "recipe"
    recipe.mkdir(parents=True)
    changed = {"base": str(RECIPE), "metrics_port": port, **settings}
    (recipe / "run.yaml").write_text(yaml.safe_dump(changed))
    options = ["--config", recipe, "--data", prepared, "--output", folder / "run"]
    command = [sys.executable, "-m", "ganbert.cli", "train", *map(str, options)]
    with (folder / "train.log").open("w") as log:
        return Popen([*command, f"--num-gpus={ranks}"], stdout=log, stderr=log)


@contextmanager
def training(folder: Path) -> Iterator[int]:
    """Two ranks that train the tiny recipe until told to stop; yields the port of their metrics."""
    port = free_port()
    settings = {"max_steps": 100000, "validation_subjects": 1, "checkpoint_every": 5}
    process = start(folder, cohort(folder), port, ranks=2, **settings)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    assert code == EXIT_INTERRUPTED, (folder / "train.log").read_text()


@contextmanager
def prometheus(
    folder: Path,
    port: int,
    targets: Mapping[str, tuple[int, dict[str, str]]],
    *,
    scrape_seconds: int = SCRAPE_SECONDS,
    patience: str | None = None,
) -> Iterator[Prometheus]:
    """Run one that scrapes `targets` (job -> port, labels) by the product's own rules.

    Alerts fire after `patience` (`3s`), or when the rules say.
    """
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group["interval"] = f"{SCRAPE_SECONDS}s"
        for rule in group["rules"]:
            if "for" in rule and patience is not None:
                rule["for"] = patience
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": f"{scrape_seconds}s", "scrape_timeout": f"{scrape_seconds}s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [f"127.0.0.1:{of}"], "labels": labels}],
            }
            for job, (of, labels) in targets.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        process = Popen(
            [
                prometheus_program() or "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log, env={**os.environ, "no_proxy": "*"},
        )  # fmt: skip
    try:
        server = Prometheus(port)
        end = time.monotonic() + 60
        while True:
            try:
                server.query("up")
                break
            except OSError:
                assert process.poll() is None, (folder / "prometheus.log").read_text()
                assert time.monotonic() < end, "Prometheus does not answer"
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)
