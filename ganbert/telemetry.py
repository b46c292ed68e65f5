"""Where a step of training goes: one `StepStats`, three sinks.

`train` makes a `StepStats` at each optimiser step and hands it to `Telemetry`, which shows it on
the console and writes it to `log.jsonl` (rank 0), and exports it to Prometheus (`exporter`; the
first rank of each node). What else shall have it is a `Sink` (`monitor`).
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ganbert.atomic import output_error
from ganbert.exporter import PrometheusSink
from ganbert.scrapes import LONGEST_SECONDS
from ganbert.step_stats import StepStats, losses_of

_PLAIN_INTERVAL_SECONDS = 15.0


class JsonlSink:
    """One JSON object a line; where a resumed run repeats a step, the last line holds."""

    def __init__(self, path: Path) -> None:
        _drop_half_line(path)
        self._stream: TextIO = path.open("a", buffering=1)

    def write(self, stats: StepStats) -> None:
        """Append one step."""
        try:
            self._stream.write(json.dumps(asdict(stats)) + "\n")
        except OSError as error:
            # Or closing it at the end tries once more to write this line, and hides the reason.
            with contextlib.suppress(OSError):
                self._stream.close()
            raise output_error(Path(self._stream.name), error) from error

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


class LastingConsole(Console):
    """A console whose reader may go: what cannot be shown is lost, and the training is not."""

    def on_broken_pipe(self) -> None:
        """Say nothing any more; rich would end the process."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            # Or Python, when it flushes at the end, makes 120 of the exit code.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


class ConsoleSink:
    """Live progress on a terminal, a plain line every 15 s elsewhere (a log, a pod)."""

    def __init__(self, max_steps: int, done: int, console: Console | None = None) -> None:
        self.console = console or LastingConsole()
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
                t: v for (n, t), v in losses_of(stats).items() if n == network and t != "l1"
            }
            if of_network:
                words.append(" ".join([letter, *(f"{t} {v:.2f}" for t, v in of_network.items())]))
        if stats.nsp_accuracy_real is not None and stats.nsp_accuracy_generated is not None:
            real, generated = stats.nsp_accuracy_real, stats.nsp_accuracy_generated
            words.append(f"acc real {real:.0%} gen {generated:.0%}")
        return "  ".join(words)

    def write(self, stats: StepStats) -> None:
        """Show one step."""
        with contextlib.suppress(OSError):
            self._progress.update(self._task, completed=stats.step, line=self.line(stats))
        now = time.monotonic()
        due = now - self._last_line >= _PLAIN_INTERVAL_SECONDS or stats.step == self.max_steps
        if self._progress.disable and due:
            self._last_line = now
            per_step = (now - self._started) / max(stats.step - self._done_at_start, 1)
            minutes, seconds = divmod(round(per_step * (self.max_steps - stats.step)), 60)
            eta = f"ETA {minutes}:{seconds:02d}"
            self.say(f"step {stats.step}/{self.max_steps}  {eta}  {self.line(stats)}")

    def say(self, text: str) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):  # a terminal that was hung up
            self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing."""
        with contextlib.suppress(OSError):
            self._progress.stop()


class Sink(Protocol):
    """What takes a step."""

    def write(self, stats: StepStats) -> None:
        """Take one."""

    def close(self) -> None:
        """Let go; safe to call twice."""


class Telemetry:
    """Fans a step out to the sinks that this rank has; a context manager.

    Parameters
    ----------
    run : folder of the run, for `log.jsonl`
    is_first : whether this is rank 0
    port : where this process serves /metrics; None if it does not
    total, done : optimiser steps of the run, and of them those done before
    ranks : of this node
    num_ranks : of the whole run
    build : versions and names for `ganbert_build_info`
    sinks : more of them
    stopped : whether the run was asked to stop, which ends the wait for Prometheus too
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
        num_ranks: int = 1,
        build: Mapping[str, str] | None = None,
        sinks: Sequence[Sink] = (),
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sinks = list(sinks)
        self._stopped, self._is_finished = stopped, False
        if is_first:
            self._sinks.insert(0, JsonlSink(run / "log.jsonl"))
        self._prometheus = None if port is None else PrometheusSink(port, ranks)
        if self._prometheus is not None:
            self._prometheus.begin(total, done, num_ranks, build or {})
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
                sink.say(text)

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

    def finished(self) -> None:
        """Export that the run is at its end: nothing is left to do on any node."""
        self._is_finished = True
        if self._prometheus is not None:
            self._prometheus.finished()

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Else Prometheus would take a run that has ended well for one that died before its end.
            # One that was stopped goes at once: who stops a node, waits.
            if self._prometheus is not None and error is None and self._is_finished:
                self._prometheus.wait_for_scrapes(self._stopped, self._announce_wait)
        finally:
            self.close()

    def _announce_wait(self) -> None:
        most = f"{LONGEST_SECONDS:.0f} s at most"
        self.say(f"waiting until Prometheus has read the end, {most}; Ctrl-C ends the wait")

    def close(self) -> None:
        """Close every sink; safe to call twice."""
        for sink in self._sinks:
            sink.close()
        if self._prometheus is not None:
            self._prometheus.close()
