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
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Scrapes:
    """Goes around the WSGI application of an endpoint, and notes the scrapes.

    Parameters
    ----------
    application : what serves the metrics
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        # By address: moments (s, monotonic) at which its last scrapes began. Three, because two
        # Prometheuses behind one address come soon after each other.
        self._readers: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=3))
        self._noted = threading.Condition()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request."""
        began = time.monotonic()
        answer = self._application(environ, start_response)
        if _SIGN not in environ:
            return answer
        return _Answer(answer, partial(self._note, environ["REMOTE_ADDR"], began))

    def _note(self, address: str, began: float) -> None:
        with self._noted:
            self._readers[address].append(began)
            self._noted.notify_all()

    def wait_for_all(self) -> None:
        """Return when all who have been reading have read what is served from now on.

        Whoever has let two of its intervals pass is not waited for, and nobody for more than 65 s.
        """
        now = time.monotonic()
        with self._noted:
            until = {
                address: min(_gone_at(began), now + LONGEST_SECONDS)
                for address, began in self._readers.items()
            }
            while True:
                pending = [
                    end for address, end in until.items() if self._readers[address][-1] < now
                ]
                left = max(pending, default=now) - time.monotonic()
                if left <= 0:
                    return
                self._noted.wait(left)


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
