"""RUN/samples: what it says is what the weights have seen, also after a kill and a resume."""

from pathlib import Path

import pytest

from ganbert.data.sample_order import SampleOrder, share_of
from ganbert.sample_log import SampleLog, read_samples, rewind

ORDER = SampleOrder(num_rows=5, seed=2)


def train(
    run: Path, samples: range, *, num_ranks: int, micro_batch: int = 1, rewound_to: int = 0
) -> None:
    """Log what ranks train on, as they do after a (re)start."""
    rewind(run, rewound_to)
    at_once = num_ranks * micro_batch
    assert samples.start % at_once == 0
    for rank in range(num_ranks):
        with SampleLog(run, rank, wanted=True) as log:
            for step in range(samples.start // at_once, samples.stop // at_once):
                share = share_of(step, rank=rank, world_size=num_ranks, micro_batch=micro_batch)
                log.write(share.start, [ORDER.sample(k) for k in share])


def test_each_sample_is_there_once_with_its_rank(tmp_path: Path) -> None:
    train(tmp_path, range(8), num_ranks=2, micro_batch=2)
    seen = read_samples(tmp_path)
    assert list(seen) == list(range(8))
    assert [rank for rank, _ in seen.values()] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [row for _, row in seen.values()] == [ORDER.sample(k) for k in range(8)]


@pytest.mark.parametrize(("num_ranks", "micro_batch"), [(2, 1), (1, 1), (1, 4), (4, 1)])
def test_what_is_trained_again_takes_the_place_of_the_first_time(
    tmp_path: Path, num_ranks: int, micro_batch: int
) -> None:
    train(tmp_path, range(12), num_ranks=2)
    # Killed after sample 12, going on from a checkpoint at 8, with other ranks and batches.
    train(tmp_path, range(8, 16), num_ranks=num_ranks, micro_batch=micro_batch, rewound_to=8)
    seen = read_samples(tmp_path)
    assert [row for _, row in seen.values()] == [ORDER.sample(k) for k in range(16)]
    again = [rank for k, (rank, _) in seen.items() if k >= 8]
    assert again == [k // micro_batch % num_ranks for k in range(8, 16)]
    lines = [line for file in tmp_path.rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == 8 + 8 // micro_batch


def test_what_a_kill_left_half_is_not_glued_to_the_next(tmp_path: Path) -> None:
    train(tmp_path, range(4), num_ranks=1)
    file = tmp_path / "samples" / "rank-00000.jsonl"
    file.write_text(file.read_text()[:-4])
    assert list(read_samples(tmp_path)) == [0, 1, 2]
    train(tmp_path, range(3, 6), num_ranks=1, rewound_to=3)
    assert list(read_samples(tmp_path)) == list(range(6))


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    with SampleLog(tmp_path, 0, wanted=False) as log:
        log.write(0, [1])
    rewind(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
