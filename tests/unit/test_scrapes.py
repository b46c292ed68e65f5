"""A run's end is served until those who have been reading have read it, and no longer."""

import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ganbert.exporter import PrometheusSink
from ganbert.telemetry import Telemetry

from .test_telemetry import STATS

PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "User-Agent": "Prometheus/3.5.0"}


def read(port: int, *, source: str = "127.0.0.1", **headers: str) -> str:
    """Scrape as Prometheus does, or with other headers as somebody else."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=10, source_address=(source, 0)
    )
    connection.request("GET", "/metrics", headers=headers or PROMETHEUS)
    answer = connection.getresponse()
    content = answer.read()
    assert len(content) == int(answer.headers["Content-Length"])
    connection.close()
    return content.decode()


def waited(sink: PrometheusSink) -> float:
    """Seconds that the end of a run takes."""
    started = time.monotonic()
    sink.wait_for_scrapes()
    return time.monotonic() - started


@pytest.fixture
def sink() -> Iterator[PrometheusSink]:
    made = PrometheusSink(0)
    yield made
    made.close()


def test_where_nobody_reads_nothing_is_waited_for(sink: PrometheusSink) -> None:
    assert waited(sink) < 0.2


def test_a_probe_or_a_browser_is_no_reader(sink: PrometheusSink) -> None:
    for _ in range(2):
        read(sink.port, Accept="*/*")
        time.sleep(0.1)
    assert waited(sink) < 0.2


def test_a_reader_is_waited_for_until_it_has_read_the_end(sink: PrometheusSink) -> None:
    for _ in range(2):
        read(sink.port)
        time.sleep(0.7)
    seen: list[str] = []
    later = threading.Timer(0.4, lambda: seen.append(read(sink.port)))
    sink.write(replace(STATS, step=10), 4)
    later.start()
    assert 0.35 < waited(sink) < 0.65  # two intervals would be 1.4
    later.join()
    assert "ganbert_step 10.0" in seen[0]


def test_a_reader_that_has_gone_is_not_waited_for(sink: PrometheusSink) -> None:
    for _ in range(2):
        read(sink.port)
        time.sleep(0.3)
    time.sleep(0.6)
    assert waited(sink) < 0.2


def test_a_reader_that_goes_meanwhile_costs_two_of_its_intervals(sink: PrometheusSink) -> None:
    read(sink.port)
    time.sleep(0.5)
    read(sink.port)
    time.sleep(0.1)
    assert 0.7 < waited(sink) < 1.2


def test_nobody_is_waited_for_for_ever(
    sink: PrometheusSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scrape alone does not say when the next one comes."""
    monkeypatch.setattr("ganbert.scrapes.LONGEST_SECONDS", 0.5)
    read(sink.port)
    time.sleep(0.1)  # what is sent is noted a moment later
    assert 0.3 < waited(sink) < 0.7


def test_each_of_two_readers_is_waited_for(sink: PrometheusSink) -> None:
    for _ in range(2):
        read(sink.port)
        read(sink.port, source="127.0.0.2")
        time.sleep(0.5)
    first = threading.Timer(0.1, lambda: read(sink.port))
    second = threading.Timer(0.4, lambda: read(sink.port, source="127.0.0.2"))
    first.start()
    second.start()
    assert 0.35 < waited(sink) < 0.6
    first.join()
    second.join()


def test_two_readers_behind_one_address_do_not_pass_for_a_quick_one(sink: PrometheusSink) -> None:
    read(sink.port)
    time.sleep(0.6)
    for _ in range(2):
        read(sink.port)
    time.sleep(0.1)
    assert waited(sink) > 0.8


@pytest.mark.parametrize(("last_step", "waits"), [(10, True), (7, False)])
def test_only_a_run_that_has_come_to_its_end_waits(
    last_step: int, waits: bool, tmp_path: Path
) -> None:
    with Telemetry(tmp_path, is_first=False, port=0, total=10, done=0) as telemetry:
        assert telemetry.port
        for _ in range(2):
            read(telemetry.port)
            time.sleep(0.8)
        telemetry.write(replace(STATS, step=last_step), 4)
        started = time.monotonic()
    assert (time.monotonic() - started > 0.7) == waits


def test_a_run_that_fails_at_its_last_step_does_not_wait(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, is_first=False, port=0, total=10, done=0)
    assert telemetry.port
    for _ in range(2):
        read(telemetry.port)
        time.sleep(0.8)
    telemetry.write(replace(STATS, step=10), 4)
    started = time.monotonic()
    telemetry.__exit__(OSError, OSError("full"), None)
    assert time.monotonic() - started < 0.7  # to close the endpoint takes up to half a second
