"""What a step of training was like: one `StepStats`, three sinks. The only prometheus_client user.

`train` makes a `StepStats` at each optimiser step and hands it to `Telemetry`, which shows it on
the console and writes it to `log.jsonl` (rank 0), and exports it to Prometheus (the first rank of
each node; one endpoint a process, never the multiprocess mode, which leaves series of dead
processes).
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ganbert.errors import PlatformError

# Seconds; a CPU demo step takes seconds, a step on a fast GPU tenths.
_STEP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
_PLAIN_INTERVAL_SECONDS = 15.0


@dataclass(frozen=True)
class StepStats:
    """One optimiser step. Losses, accuracies: means over all ranks and micro-batches, unweighted.

    The discriminator's losses are against its smoothed labels where `label_smoothing` is set.

    Attributes
    ----------
    step : optimiser steps done, this one included
    samples_seen : volumes seen by all ranks since the start of training
    epoch : samples_seen divided by the number of training rows
    seconds : wall time of the step; data_wait_seconds is the part spent waiting for the loader
    own_seconds : of each rank, the part that it spent without the others (see `stragglers`)
    volumes_per_second : over all ranks
    validation_l1 : of the generator on validation subjects, at steps that end with a checkpoint
    nsp_accuracy_real, nsp_accuracy_generated : share that BERT judged rightly, or of the patches
        that a CNN without BERT did, 0..1

    What belongs to a head that the recipe's discriminator does not have is None.
    """

    step: int
    samples_seen: int
    epoch: float
    seconds: float
    volumes_per_second: float
    data_wait_seconds: float
    learning_rate_generator: float
    loss_l1: float
    learning_rate_discriminator: float | None = None
    loss_nsp_generator: float | None = None
    loss_mlm_generator: float | None = None
    loss_patch_generator: float | None = None
    loss_nsp_discriminator: float | None = None
    loss_mlm_discriminator: float | None = None
    loss_patch_discriminator: float | None = None
    loss_r1_discriminator: float | None = None
    nsp_accuracy_real: float | None = None
    nsp_accuracy_generated: float | None = None
    own_seconds: list[float] = field(default_factory=list)
    validation_l1: float | None = None


def _starting_with(stats: StepStats, prefix: str) -> dict[str, float]:
    """Fields of that prefix that have a value, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in asdict(stats).items()
        if name.startswith(prefix) and value is not None
    }


def _losses(stats: StepStats) -> dict[tuple[str, str], float]:
    """Values by (network, term)."""
    losses = {}
    for name, value in _starting_with(stats, "loss_").items():
        term, _, network = name.partition("_")
        losses[network or "generator", term] = value  # L1 is the generator's alone
    return losses


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
        self._define()
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

    def _define(self) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"ganbert_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"ganbert_{name}", text, registry=self.registry)

        self._step = gauge("step", "Optimiser steps done since the start of training")
        self._steps = counter("steps", "Optimiser steps done by this process")
        self._volumes = counter("volumes", "MRI and PET pairs trained on by the ranks of this node")
        self._wait = counter("data_wait_seconds", "Time this rank waited for the loader")
        self._seconds = Histogram(
            "ganbert_step_seconds",
            "Wall time of an optimiser step",
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self._epoch = gauge("epoch", "Passes over the training rows")
        self._loss = gauge("loss", "Unweighted term of Eq. 1", ("network", "term"))
        self._accuracy = gauge(
            "nsp_accuracy_ratio", "Share judged rightly by the discriminator", ("kind",)
        )
        self._rate = gauge("learning_rate", "Learning rate", ("network",))
        self._own = gauge(
            "rank_own_seconds",
            "Part of the last step that a rank of this node spent without the others",
            ("rank",),
        )
        self._validation = gauge("validation_l1", "Mean L1 on validation subjects, normalised")
        self._checkpoint_step = gauge("checkpoint_step", "Step of the newest checkpoint")
        self._checkpoint_bytes = gauge("checkpoint_bytes", "Size of the newest checkpoint")
        self._checkpoint_seconds = Histogram(
            "ganbert_checkpoint_seconds",
            "Time that training stood still for a checkpoint",
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )

    def write(self, stats: StepStats, new_volumes: int) -> None:
        """Take over one step."""
        self._step.set(stats.step)
        self._steps.inc()
        self._volumes.inc(new_volumes)
        self._wait.inc(stats.data_wait_seconds)
        self._seconds.observe(stats.seconds)
        self._epoch.set(stats.epoch)
        if stats.validation_l1 is not None:
            self._validation.set(stats.validation_l1)
        for labels, value in _losses(stats).items():
            self._loss.labels(*labels).set(value)
        for rank in self._ranks if stats.own_seconds else ():
            self._own.labels(str(rank)).set(stats.own_seconds[rank])
        for family, prefix in ((self._accuracy, "nsp_accuracy_"), (self._rate, "learning_rate_")):
            for name, value in _starting_with(stats, prefix).items():
                family.labels(name).set(value)

    def saved(self, step: int, seconds: float, num_bytes: int) -> None:
        """Take over a checkpoint."""
        self._checkpoint_step.set(step)
        self._checkpoint_bytes.set(num_bytes)
        self._checkpoint_seconds.observe(seconds)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class JsonlSink:
    """One JSON object a line; where a resumed run repeats a step, the last line holds."""

    def __init__(self, path: Path) -> None:
        _drop_half_line(path)
        self._stream: TextIO = path.open("a", buffering=1)

    def write(self, stats: StepStats) -> None:
        """Append one step."""
        self._stream.write(json.dumps(asdict(stats)) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _drop_half_line(path: Path) -> None:
    """Cut off what a killed process left of its last line: the next one would be glued to it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


class ConsoleSink:
    """Live progress on a terminal, a plain line every 15 s elsewhere (a log, a pod)."""

    def __init__(self, max_steps: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.max_steps = max_steps
        self._done_at_start = done
        self._started = time.monotonic()
        self._last_line = -_PLAIN_INTERVAL_SECONDS
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=max_steps, completed=done, line="")
        self._progress.start()

    @staticmethod
    def line(stats: StepStats) -> str:
        """Describe a step in a few words."""
        words = [f"{stats.volumes_per_second:.2f} vol/s  L1 {stats.loss_l1:.3f}"]
        for network, letter in (("generator", "G"), ("discriminator", "D")):
            of_network = {
                t: v for (n, t), v in _losses(stats).items() if n == network and t != "l1"
            }
            if of_network:
                words.append(" ".join([letter, *(f"{t} {v:.2f}" for t, v in of_network.items())]))
        if stats.nsp_accuracy_real is not None and stats.nsp_accuracy_generated is not None:
            real, generated = stats.nsp_accuracy_real, stats.nsp_accuracy_generated
            words.append(f"acc real {real:.0%} gen {generated:.0%}")
        return "  ".join(words)

    def write(self, stats: StepStats) -> None:
        """Show one step."""
        self._progress.update(self._task, completed=stats.step, line=self.line(stats))
        now = time.monotonic()
        due = now - self._last_line >= _PLAIN_INTERVAL_SECONDS or stats.step == self.max_steps
        if self._progress.disable and due:
            self._last_line = now
            per_step = (now - self._started) / max(stats.step - self._done_at_start, 1)
            minutes, seconds = divmod(round(per_step * (self.max_steps - stats.step)), 60)
            eta = f"ETA {minutes}:{seconds:02d}"
            self.console.print(
                f"step {stats.step}/{self.max_steps}  {eta}  {self.line(stats)}",
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()


class Telemetry:
    """Fans a step out to the sinks that this rank has; a context manager.

    Parameters
    ----------
    run : folder of the run, for `log.jsonl`
    is_first : whether this is rank 0
    port : where this process serves /metrics; None if it does not
    total, done : optimiser steps of the run, and of them those done before
    ranks : of this node
    """

    def __init__(
        self,
        run: Path,
        *,
        is_first: bool,
        port: int | None,
        total: int,
        done: int,
        ranks: Sequence[int] = (0,),
    ) -> None:
        self._sinks: list[Any] = []
        if is_first:
            self._sinks = [JsonlSink(run / "log.jsonl")]
        self._prometheus = None if port is None else PrometheusSink(port, ranks)
        if is_first:
            self._sinks.append(ConsoleSink(total, done))

    @property
    def port(self) -> int | None:
        """Port that /metrics is served on, if this process serves it."""
        return None if self._prometheus is None else self._prometheus.port

    def say(self, text: str) -> None:
        """Print a line above the progress, on the rank that shows it."""
        for sink in self._sinks:
            if isinstance(sink, ConsoleSink):
                sink.console.print(text, highlight=False, soft_wrap=True)

    def write(self, stats: StepStats, new_volumes: int) -> None:
        """Hand one step to every sink; `new_volumes` were seen in it on this node."""
        for sink in self._sinks:
            sink.write(stats)
        if self._prometheus is not None:
            self._prometheus.write(stats, new_volumes)

    def saved(self, step: int, seconds: float, num_bytes: int) -> None:
        """Export that a checkpoint was written, and how long training stood still for it."""
        if self._prometheus is not None:
            self._prometheus.saved(step, seconds, num_bytes)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every sink; safe to call twice."""
        for sink in self._sinks:
            sink.close()
        if self._prometheus is not None:
            self._prometheus.close()
