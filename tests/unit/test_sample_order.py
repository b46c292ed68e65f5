"""The order of samples: a property of the run, not of the ranks."""

from hypothesis import given
from hypothesis import strategies as st

from ganbert.data.sample_order import SampleOrder

rows = st.integers(1, 23)
worlds = st.integers(1, 5)
micro_batches = st.integers(1, 4)
seeds = st.integers(0, 2**32)


@given(rows, seeds, st.integers(0, 5))
def test_each_epoch_has_every_row_exactly_once(num_rows: int, seed: int, epoch: int) -> None:
    order = SampleOrder(num_rows, seed)
    samples = [order.sample(epoch * num_rows + k) for k in range(num_rows)]
    assert sorted(samples) == list(range(num_rows))


@given(rows, worlds, micro_batches, seeds, st.integers(0, 50))
def test_ranks_take_disjoint_parts_that_make_up_the_stream(
    num_rows: int, world_size: int, micro_batch: int, seed: int, step: int
) -> None:
    order = SampleOrder(num_rows, seed)
    parts = [
        order.micro_batch(step, rank=rank, world_size=world_size, micro_batch=micro_batch)
        for rank in range(world_size)
    ]
    first = step * world_size * micro_batch
    stream = [order.sample(k) for k in range(first, first + world_size * micro_batch)]
    assert [position for part in parts for position in part] == stream


@given(rows, seeds, micro_batches, worlds)
def test_the_stream_does_not_depend_on_the_number_of_ranks(
    num_rows: int, seed: int, micro_batch: int, world_size: int
) -> None:
    order = SampleOrder(num_rows, seed)
    num_samples = 4 * world_size * micro_batch
    alone = [order.micro_batch(m, rank=0, world_size=1, micro_batch=1) for m in range(num_samples)]
    together = [
        order.micro_batch(m, rank=rank, world_size=world_size, micro_batch=micro_batch)
        for m in range(4)
        for rank in range(world_size)
    ]
    assert [p for part in together for p in part] == [p for part in alone for p in part]


def test_seed_and_epoch_change_the_order() -> None:
    def stream(seed: int, epoch: int) -> list[int]:
        order = SampleOrder(50, seed)
        return [order.sample(epoch * 50 + k) for k in range(50)]

    assert stream(0, 0) == stream(0, 0)
    assert stream(0, 0) != stream(1, 0)
    assert stream(0, 0) != stream(0, 1)


def test_the_order_never_changes_between_versions() -> None:
    """A resumed run must go on where it was: these numbers are a promise."""
    order = SampleOrder(6, 42)
    assert [order.sample(k) for k in range(12)] == [4, 1, 3, 0, 2, 5, 1, 2, 5, 3, 0, 4]
