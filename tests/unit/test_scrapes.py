"""A run's end is served until those who have been reading have read it, and no longer."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ganbert.exporter import PrometheusSink
from ganbert.scrapes import LONGEST_SECONDS, Scrapes
from ganbert.telemetry import Telemetry

from .test_telemetry import STATS

PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "User-Agent": "Prometheus/3.5.0"}


def read(port: int) -> str:
    """Scrape over HTTP as Prometheus does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics", headers=PROMETHEUS)
    answer = connection.getresponse()
    content = answer.read()
    assert len(content) == int(answer.headers["Content-Length"])
    connection.close()
    return content.decode()


class Endpoint:
    """Scrapes of a page, at moments that the test chooses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.scrapes = Scrapes(lambda environ, start_response: [b"page"], lambda: self.now)

    def scrape(self, *moments: float, address: str = "10.0.0.1", sign: bool = True) -> None:
        for moment in moments:
            self.now = moment
            signs = {"HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS": "10"} if sign else {}
            environ = {"REMOTE_ADDR": address, **signs}
            assert list(self.scrapes(environ, lambda *_: None)) == [b"page"]

    def left(self, since: float, now: float | None = None) -> float:
        self.now = since if now is None else now
        return self.scrapes.seconds_left(since)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


def test_where_nobody_reads_nothing_is_waited_for(endpoint: Endpoint) -> None:
    assert endpoint.left(1000) == 0


def test_a_probe_or_a_browser_is_no_reader(endpoint: Endpoint) -> None:
    endpoint.scrape(1000, 1010, sign=False)
    assert endpoint.left(1011) == 0


def test_a_reader_is_waited_for_until_it_has_read_the_end(endpoint: Endpoint) -> None:
    endpoint.scrape(1000, 1015)
    assert endpoint.left(1020) == 25  # two intervals after its last scrape
    assert endpoint.left(1020, now=1029) == 16
    endpoint.scrape(1030)
    assert endpoint.left(1020, now=1030) <= 0


def test_a_scrape_that_began_before_the_end_has_not_read_it(endpoint: Endpoint) -> None:
    endpoint.scrape(1000, 1015)
    endpoint.now = 1030
    sign = {"HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS": "10", "REMOTE_ADDR": "10.0.0.1"}
    answer = endpoint.scrapes(sign, lambda *_: None)
    assert endpoint.left(1031) > 0
    list(answer)
    assert endpoint.left(1031) > 0


def test_a_reader_that_has_gone_is_not_waited_for(endpoint: Endpoint) -> None:
    endpoint.scrape(1000, 1015)
    assert endpoint.left(1044) == 1
    assert endpoint.left(1046) <= 0


def test_nobody_is_waited_for_for_ever(endpoint: Endpoint) -> None:
    """One scrape alone does not say when the next one comes; nor does a slow reader hold us up."""
    endpoint.scrape(1000)
    assert endpoint.left(1010) == LONGEST_SECONDS
    endpoint.scrape(1300)
    assert endpoint.left(1310) == LONGEST_SECONDS


def test_each_of_two_readers_is_waited_for(endpoint: Endpoint) -> None:
    for moment in (1000, 1015):
        endpoint.scrape(moment)
        endpoint.scrape(moment, address="10.0.0.2")
    endpoint.scrape(1030)
    assert endpoint.left(1020, now=1031) == 14
    endpoint.scrape(1032, address="10.0.0.2")
    assert endpoint.left(1020, now=1032) <= 0


def test_two_readers_behind_one_address_do_not_pass_for_a_quick_one(endpoint: Endpoint) -> None:
    endpoint.scrape(1000, 1015, 1016)
    assert endpoint.left(1017) == 29


@pytest.fixture
def sink() -> Iterator[PrometheusSink]:
    made = PrometheusSink(0)
    yield made
    made.close()


def be_read(sink: PrometheusSink) -> None:
    """Scrape once, and return when that is noted, which is a moment after it is sent."""
    read(sink.port)
    end = time.monotonic() + 30
    while sink._scrapes.seconds_left(time.monotonic()) <= 0:
        assert time.monotonic() < end
        time.sleep(0.01)


def waited(
    sink: PrometheusSink,
    stopped: Callable[[], bool] = lambda: False,
    announce: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Seconds that the end of a run takes, and how often the wait was announced."""
    announced: list[bool] = []

    def count() -> None:
        announced.append(True)
        announce()

    started = time.monotonic()
    sink.wait_for_scrapes(stopped, count)
    return time.monotonic() - started, len(announced)


def test_over_http_the_end_is_read(sink: PrometheusSink) -> None:
    be_read(sink)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.append(read(sink.port)))
    sink.finished()
    seconds, num_announced = waited(sink, announce=reader.start)
    assert seconds < 50  # of 65
    assert num_announced == 1
    reader.join()
    assert "ganbert_finished 1.0" in seen[0]


def test_the_wait_ends_when_the_run_is_stopped(sink: PrometheusSink) -> None:
    be_read(sink)
    answers = iter([False, False, True, True])  # StopIteration, were it asked on
    seconds, num_announced = waited(sink, lambda: next(answers))
    assert seconds < 50
    assert num_announced == 1
    assert list(answers) == [True], "it was waited for until the run was stopped"
    assert waited(sink, lambda: True)[1] == 0


def test_a_wait_for_nobody_is_not_announced(sink: PrometheusSink) -> None:
    assert waited(sink)[1] == 0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the wait, which is left out, would have been over at once: once for each."""
    asked: list[bool] = []

    def wait(_: Scrapes, stopped: Callable[[], bool], announce: Callable[[], None]) -> None:
        asked.append(stopped())
        announce()

    monkeypatch.setattr(Scrapes, "wait_for_all", wait)
    return asked


@pytest.mark.parametrize("finished", [True, False])
def test_only_a_run_that_has_come_to_its_end_waits(
    finished: bool, waits: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"is_first": True, "port": 0, "total": 10, "done": 0}
    with Telemetry(tmp_path, **options, stopped=lambda: True) as telemetry:
        telemetry.write(replace(STATS, step=10), 4)
        if finished:
            telemetry.finished()
    assert waits == ([True] if finished else [])
    said = "waiting until Prometheus has read the end, 65 s at most" in capsys.readouterr().out
    assert said == finished


def test_a_run_that_fails_at_its_very_end_does_not_wait(waits: list[bool], tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, is_first=False, port=0, total=10, done=0)
    telemetry.write(replace(STATS, step=10), 4)
    telemetry.finished()
    telemetry.__exit__(OSError, OSError("full"), None)
    assert not waits
