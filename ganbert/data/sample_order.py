"""Which sample each rank sees when: one stream of rows that knows nothing of ranks.

Each global micro-step takes the next world_size * micro_batch samples of it, and each rank its own
part of those. So a run on more ranks sees the same samples in the same order, nothing is dropped or
repeated within an epoch, no two ranks ever hold the same part, and resuming is an offset.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SampleOrder:
    """An infinite stream of row positions: one permutation after another.

    Attributes
    ----------
    num_rows : rows of the split
    seed : of the permutations; epoch e uses (seed, e)
    """

    num_rows: int
    seed: int

    def sample(self, k: int) -> int:
        """Return the row position of sample `k` of the stream, k >= 0."""
        epoch, position = divmod(k, self.num_rows)
        return int(_permutation(self.num_rows, self.seed, epoch)[position])

    def micro_batch(self, step: int, *, rank: int, world_size: int, micro_batch: int) -> list[int]:
        """Return what `rank` takes at global micro-step `step`.

        >>> order = SampleOrder(num_rows=4, seed=0)
        >>> parts = [order.micro_batch(0, rank=r, world_size=2, micro_batch=2) for r in (0, 1)]
        >>> sorted(parts[0] + parts[1])
        [0, 1, 2, 3]
        """
        share = share_of(step, rank=rank, world_size=world_size, micro_batch=micro_batch)
        return [self.sample(k) for k in share]


def share_of(step: int, *, rank: int, world_size: int, micro_batch: int) -> range:
    """Return which samples of the stream `rank` takes at global micro-step `step`."""
    start = (step * world_size + rank) * micro_batch
    return range(start, start + micro_batch)


@functools.lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    # Sorting raw bits instead of Generator.permutation: NumPy promises the bits of PCG64 for good,
    # the algorithms above them only until they are improved, and a resumed run must go on the same.
    return np.random.PCG64([seed, epoch]).random_raw(num_rows).argsort(kind="stable")
