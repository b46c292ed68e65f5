"""What a training tells Prometheus. The only prometheus_client user beside `serve`.

One endpoint a process, on the first rank of each node: never the multiprocess mode, which leaves
series of dead processes. Every series is a row of `METRICS`; docs/metrics.md is made from it:

    python -m ganbert.exporter > docs/metrics.md

What is exported was read at the end of a step, when the loop had waited for the device anyway: a
scrape makes no rank wait.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ganbert.errors import PlatformError
from ganbert.infiniband import SYSFS, traffic
from ganbert.scrapes import Scrapes
from ganbert.step_stats import PHASES, StepStats, losses_of, starting_with, token_shares_of

# Seconds; a CPU demo step takes seconds, a step on a fast GPU tenths.
_STEP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
_PHASE_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0)
Kind = Literal["gauge", "counter", "histogram", "info"]


@dataclass(frozen=True)
class Metric:
    """A row of the reference.

    Parameters
    ----------
    name : without `ganbert_`, and without the `_total` of a counter
    labels : few and bounded; never a subject
    only_on : where alone it has series, if not everywhere
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    only_on: str = ""

    @property
    def series(self) -> str:
        """Name as PromQL has it; of a histogram without `_bucket`, `_sum`, `_count`."""
        return f"ganbert_{self.name}{'_total' if self.kind == 'counter' else ''}" + (
            "_info" if self.kind == "info" else ""
        )


METRICS = (
    Metric(
        "build",
        "info",
        "Always 1; versions, recipe, tracer and device as labels",
        ("version", "torch", "deepspeed", "recipe", "tracer", "device"),
    ),
    Metric("ranks", "gauge", "Ranks of the run, on all nodes"),
    Metric("max_steps", "gauge", "Optimiser steps that the run is to have"),
    Metric("first_step", "gauge", "Step that this process went on from; 0: from the start"),
    Metric("step", "gauge", "Optimiser steps done since the start of training"),
    Metric("steps", "counter", "Optimiser steps done by this process"),
    Metric(
        "last_step_timestamp_seconds",
        "gauge",
        "Unix time at which the last step ended, or this process began",
    ),
    Metric(
        "finished",
        "gauge",
        "1 when the run is at its end: all steps done, the last checkpoint and the export whole",
    ),
    Metric("volumes", "counter", "MRI and PET pairs trained on by the ranks of this node"),
    Metric("data_wait_seconds", "counter", "Time this rank waited for the loader"),
    Metric("step_seconds", "histogram", "Wall time of an optimiser step", buckets=_STEP_BUCKETS),
    Metric(
        "phase_seconds",
        "histogram",
        f"The same by phase ({', '.join(PHASES)}), as this rank's host saw it",
        ("phase",),
        _PHASE_BUCKETS,
    ),
    Metric("epoch", "gauge", "Passes over the training rows"),
    Metric("loss", "gauge", "Unweighted term of Eq. 1", ("network", "term")),
    Metric(
        "nsp_accuracy_ratio",
        "gauge",
        "Share of real or generated PETs that BERT judges rightly (without BERT: of the CNN's "
        "patches)",
        ("kind",),
        only_on="recipes with an adversary",
    ),
    Metric(
        "token_band_ratio",
        "gauge",
        "Share of an image's tokens in a band of ids: negative and overflow take ids of low ones, "
        "those of in_range stand for one value each",
        ("image", "band"),
        only_on="recipes with BERT",
    ),
    Metric("learning_rate", "gauge", "Learning rate", ("network",)),
    Metric(
        "gradient_norm",
        "gauge",
        "2-norm of a network's gradients before clipping",
        ("network",),
        only_on="engines in which DeepSpeed keeps it: fp16, bf16 or ZeRO",
    ),
    Metric("loss_scale", "gauge", "Dynamic loss scale", ("network",), only_on="recipes with fp16"),
    Metric(
        "rank_own_seconds",
        "gauge",
        "Part of the last step that a rank of this node spent without the others: waiting for "
        "images, the generator's forward pass",
        ("rank",),
    ),
    Metric("validation_l1", "gauge", "Mean L1 on validation subjects, normalised"),
    Metric("checkpoint_step", "gauge", "Step of the newest checkpoint of this process"),
    Metric(
        "checkpoint_timestamp_seconds",
        "gauge",
        "Unix time at which it was whole; before the first one: at which this process began",
    ),
    Metric("checkpoint_bytes", "gauge", "Its size"),
    Metric(
        "checkpoint_seconds",
        "histogram",
        "Time that training stood still for a checkpoint",
        buckets=_STEP_BUCKETS,
    ),
    Metric(
        "gpu_memory_bytes",
        "gauge",
        "Memory of this rank's GPU: allocated to tensors, reserved by PyTorch, used by all, total",
        ("kind",),
        only_on="GPUs",
    ),
    Metric(
        "infiniband_bytes",
        "counter",
        "What went through the node's InfiniBand adapters, storage among it, as the kernel counts",
        ("device", "port", "direction"),
        only_on="nodes where the process sees adapters",
    ),
)
# Read by collectors of their own, at each scrape.
_OF_THE_NODE = ("infiniband_bytes",)


class PrometheusSink:
    """The series of one process, and the HTTP endpoint that serves them.

    Parameters
    ----------
    port : 0 takes any free port; `port` then tells which
    ranks : of this node

    Raises
    ------
    PlatformError
        If the port is taken.
    """

    def __init__(
        self, port: int, ranks: Sequence[int] = (0,), registry: CollectorRegistry | None = None
    ) -> None:
        self._ranks = ranks
        self.registry = registry or CollectorRegistry()
        own = (metric for metric in METRICS if metric.name not in _OF_THE_NODE)
        self._series: dict[str, Any] = {metric.name: self._make(metric) for metric in own}
        self.registry.register(InfiniBandCollector())
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        if torch.cuda.is_available():
            self._watch_gpu()
        try:
            self._server, self._thread = start_http_server(port, registry=self.registry)
        except OSError as error:
            raise PlatformError(
                f"metrics_port {port}",
                expected="a free port",
                found=error.strerror or "an error",
                remedy="set another metrics_port in run.yaml, or 0 for any free one",
            ) from error
        self.port: int = self._server.server_port
        self._scrapes = Scrapes(make_wsgi_app(self.registry))
        self._server.set_app(self._scrapes)

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram | Info:
        name, text, registry = f"ganbert_{metric.name}", metric.text, self.registry
        if metric.kind == "histogram":
            return Histogram(name, text, metric.labels, buckets=metric.buckets, registry=registry)
        if metric.kind == "info":
            return Info(name, text, registry=registry)
        kind = {"counter": Counter, "gauge": Gauge}[metric.kind]
        return kind(name, text, metric.labels, registry=registry)

    def _watch_gpu(self) -> None:
        """Ask PyTorch's own counters at each scrape: none of them waits for the GPU."""
        device = torch.cuda.current_device()
        kinds: dict[str, Callable[[], float]] = {
            "allocated": lambda: float(torch.cuda.memory_allocated(device)),
            "reserved": lambda: float(torch.cuda.memory_reserved(device)),
            "used": lambda: float(_total(device) - torch.cuda.mem_get_info(device)[0]),
            "total": lambda: float(_total(device)),
        }
        for kind, ask in kinds.items():
            self._series["gpu_memory_bytes"].labels(kind).set_function(ask)

    def begin(self, total: int, done: int, num_ranks: int, build: Mapping[str, str]) -> None:
        """Take over what is known before the first step.

        Parameters
        ----------
        total, done : optimiser steps of the run, and of them those done before this process
        num_ranks : of the whole run
        build : labels of `ganbert_build_info`
        """
        self._series["max_steps"].set(total)
        self._series["first_step"].set(done)
        self._series["step"].set(done)
        self._series["ranks"].set(num_ranks)
        self._series["build"].info(dict(build))
        self._series["validation_l1"].set(math.nan)  # not yet known; 0 would be perfect
        # Not 1970: an alarm asks how long ago the last step was.
        self._series["last_step_timestamp_seconds"].set(time.time())
        self._series["checkpoint_timestamp_seconds"].set(time.time())

    def write(self, stats: StepStats, new_volumes: int) -> None:
        """Take over one step."""
        series = self._series
        series["step"].set(stats.step)
        series["steps"].inc()
        series["last_step_timestamp_seconds"].set(time.time())
        series["volumes"].inc(new_volumes)
        series["data_wait_seconds"].inc(stats.data_wait_seconds)
        series["step_seconds"].observe(stats.seconds)
        series["epoch"].set(stats.epoch)
        for phase, seconds in stats.phase_seconds.items():
            series["phase_seconds"].labels(phase).observe(seconds)
        if stats.validation_l1 is not None:
            series["validation_l1"].set(stats.validation_l1)
        for labels, value in losses_of(stats).items():
            series["loss"].labels(*labels).set(value)
        for labels, value in token_shares_of(stats).items():
            series["token_band_ratio"].labels(*labels).set(value)
        for rank in self._ranks if stats.own_seconds else ():
            series["rank_own_seconds"].labels(str(rank)).set(stats.own_seconds[rank])
        families = {
            "nsp_accuracy_ratio": "nsp_accuracy_",
            "learning_rate": "learning_rate_",
            "gradient_norm": "gradient_norm_",
            "loss_scale": "fp16_scale_",
        }
        for family, prefix in families.items():
            for name, value in starting_with(stats, prefix).items():
                series[family].labels(name).set(value)

    def saved(self, step: int, seconds: float, num_bytes: int) -> None:
        """Take over a checkpoint."""
        self._series["checkpoint_step"].set(step)
        self._series["checkpoint_timestamp_seconds"].set(time.time())
        self._series["checkpoint_bytes"].set(num_bytes)
        self._series["checkpoint_seconds"].observe(seconds)

    def finished(self) -> None:
        """Take over that the run is at its end."""
        self._series["finished"].set(1)

    def wait_for_scrapes(self, stopped: Callable[[], bool], announce: Callable[[], None]) -> None:
        """Return when each Prometheus that has been reading has read what stands here now.

        Parameters
        ----------
        stopped, announce : as `Scrapes.wait_for_all` says
        """
        self._scrapes.wait_for_all(stopped, announce)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class InfiniBandCollector(Collector):
    """Counters of the adapters; no series without any.

    Parameters
    ----------
    root : folder of the adapters
    """

    def __init__(self, root: Path = SYSFS) -> None:
        self._root = root
        (self._metric,) = [metric for metric in METRICS if metric.name == "infiniband_bytes"]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the family, if there is anything in it."""
        found = list(traffic(self._root))
        family = CounterMetricFamily(
            f"ganbert_{self._metric.name}", self._metric.text, labels=self._metric.labels
        )
        for *labels, num_bytes in found:
            family.add_metric(labels, num_bytes)
        if found:
            yield family


def _total(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def page() -> str:
    """Return docs/metrics.md."""
    rows = "\n".join(
        f"| `{m.series}{'{' + ','.join(m.labels) + '}' if m.labels else ''}` | {m.kind} | {m.text}"
        f"{f' (only {m.only_on})' if m.only_on else ''} |"
        for m in METRICS
    )
    return f"""# Metrics of a training
Made from the code by `python -m ganbert.exporter > docs/metrics.md`; a test holds it to that.

The first rank of each node serves these on `metrics_port` of run.yaml, and `process_*` and
`python_info` beside them. A restart shows in `process_start_time_seconds` and
`ganbert_first_step`; the counters begin at 0 again, as Prometheus expects. A run that has come to
its end waits until each Prometheus that has been reading it has read that: half an interval of its
scrapes on average, two if it has gone, 65 s at most, and not at all where none reads. SIGTERM or
Ctrl-C ends that wait, and no more than that.

The metrics of `ganbert serve` stand in [service.md](service.md), the alerts, and what the exporter
costs a step, in [operations.md](operations.md).

| series | type | meaning |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    print(page(), end="")
