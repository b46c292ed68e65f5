"""Who reads an endpoint of metrics, and whether they have read its end.

Prometheus comes at times of its own, each 15 s say: what a process says in its last seconds is
lost, and a run that has ended well looks like one that died before its end. So a run that has
ended waits until those who have been reading it have read that, half an interval on average, and
not at all where nobody reads.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

# What Prometheus, its agents and what imitates them send with a scrape; no browser, no probe does.
_SIGN = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"
# Prometheus' own default interval is a minute, and many GPUs wait.
LONGEST_SECONDS = 65.0
_LOOK_SECONDS = 1.0
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Scrapes:
    """Goes around the WSGI application of an endpoint, and notes the scrapes.

    Parameters
    ----------
    application : what serves the metrics
    clock : seconds that never go back
    """

    def __init__(
        self, application: Application, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._application, self._clock = application, clock
        # By address: moments (s, of the clock) at which its last scrapes began. Three, because two
        # Prometheuses behind one address come soon after each other.
        self._readers: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=3))
        self._noted = threading.Condition()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request."""
        began = self._clock()
        answer = self._application(environ, start_response)
        if _SIGN not in environ:
            return answer
        return _Answer(answer, partial(self._note, environ["REMOTE_ADDR"], began))

    def _note(self, address: str, began: float) -> None:
        with self._noted:
            self._readers[address].append(began)
            self._noted.notify_all()

    def wait_for_all(
        self,
        stopped: Callable[[], bool] = lambda: False,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        """Return when all who have been reading have read what is served from now on.

        Parameters
        ----------
        stopped : asked each second whether to wait no longer
        announce : called once before the wait, if there is somebody to wait for
        """
        since = self._clock()
        if stopped() or self.seconds_left(since) <= 0:
            return
        announce()
        with self._noted:
            while (left := self.seconds_left(since)) > 0 and not stopped():
                self._noted.wait(min(left, _LOOK_SECONDS))

    def seconds_left(self, since: float) -> float:
        """Return for how long at most those are waited for who have not read since a moment.

        Whoever has let two of its intervals pass is not waited for, and nobody for more than 65 s;
        0 or less: nobody is waited for.

        Parameters
        ----------
        since : moment (s, of the clock)
        """
        with self._noted:
            pending = [
                min(_gone_at(began), since + LONGEST_SECONDS)
                for began in self._readers.values()
                if began[-1] < since
            ]
        return max(pending, default=since) - self._clock()


def _gone_at(began: Sequence[float]) -> float:
    """Return when a reader has stayed away: one scrape may fail, two are an end."""
    intervals = [after - before for before, after in pairwise(began)]
    return began[-1] + 2 * max(intervals, default=LONGEST_SECONDS)


class _Answer(list[bytes]):
    """An answer that tells when it has been sent, all of it."""

    def __init__(self, parts: Iterable[bytes], sent: Callable[[], None]) -> None:
        super().__init__(parts)
        self._sent = sent

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        self._sent()
