"""What the service tells Prometheus; the names are listed in docs/service.md.

Labels are few and bounded: a route is the template of a path, never the path that was asked for.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_REQUEST_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
_JOB_BUCKETS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
# Why there is no result: the upload was refused at the door (any 4xx, or 503), or the job failed.
FAILURES = ("refused", "image", "timeout", "crash", "internal")


class Measures:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "ganbert_serve_requests", "Requests answered", ["method", "route", "code"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "ganbert_serve_request_seconds", "Time from a request to the end of its answer",
            ["route"], buckets=_REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self._received = Counter(
            "ganbert_serve_received_bytes", "Bytes of request bodies", registry=registry
        )
        self._sent = Counter("ganbert_serve_sent_bytes", "Bytes of answers", registry=registry)
        self._failures = Counter(
            "ganbert_serve_failures", "Uploads without a result", ["kind"], registry=registry
        )
        for kind in FAILURES:
            self._failures.labels(kind)
        self._jobs = Histogram(
            "ganbert_serve_job_seconds", "Time that a worker took for an image that it finished",
            buckets=_JOB_BUCKETS, registry=registry,
        )  # fmt: skip
        self._starts = Counter(
            "ganbert_serve_worker_starts", "Worker processes that became ready", registry=registry
        )

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Export a number that is asked for at each scrape."""
        Gauge(f"ganbert_serve_{name}", help_text, registry=self.registry).set_function(value)

    def answered(self, method: str, route: str, code: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def moved(self, received: int, sent: int) -> None:
        """Count the bytes of a request and its answer."""
        self._received.inc(received)
        self._sent.inc(sent)

    def failed(self, kind: str) -> None:
        """Count an upload that has no result; `kind` is one of `FAILURES`."""
        self._failures.labels(kind).inc()

    def finished(self, seconds: float) -> None:
        """Count an image that a worker finished."""
        self._jobs.observe(seconds)

    def worker_started(self) -> None:
        """Count a worker that became ready."""
        self._starts.inc()

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
