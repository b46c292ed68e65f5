"""`ganbert/train.py` whose second rank waits for each batch, as for a slow disk or a busy core.

How much of a core its neighbours leave to a rank is the machine's affair; this is more than any.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ganbert import train

SECONDS = 0.4
_open_loader = train.open_loader


@contextmanager
def open_slowly(*place: object) -> Iterator[Iterator[object]]:
    """Open the loader, each batch of which takes SECONDS more."""

    def late(batches: Iterator[object]) -> Iterator[object]:
        for batch in batches:
            time.sleep(SECONDS)
            yield batch

    with _open_loader(*place) as batches:
        yield late(batches) if os.environ["RANK"] == "1" else batches


if __name__ == "__main__":
    train.open_loader = open_slowly
    train.main()
