"""What a tormented training has lost, counted: checkpoints, and samples of its epochs."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ganbert.checkpoint_files import find_damage, list_checkpoints, read_state
from ganbert.errors import CheckpointError

# Of a step: validation L1 by the name of the finished checkpoint, None where there is none.
Checkpoints = dict[str, float | None]


class CheckpointLedger:
    """Looks into RUN/checkpoints time after time, and notes what should be there and is not.

    Parameters
    ----------
    run : folder of the run
    keep : `keep_checkpoints` of the run, which may remove what is older, but for the best
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._known: Checkpoints = {}
        self._lost: set[str] = set()
        self._damaged: set[str] = set()

    def look(self, *, is_running: bool = False) -> None:
        """Compare what is there with what was there at the last look.

        Parameters
        ----------
        is_running : the run may be removing what it needs no more: no file is read for its checksum
        """
        folders = list_checkpoints(self._run)
        now: Checkpoints = {}
        for folder in folders:
            now[folder.name] = self._known.get(folder.name)
            with contextlib.suppress(CheckpointError):
                now[folder.name] = read_state(folder).validation_l1
        self._lost |= _missing(self._known, now, self._keep)
        if not is_running:
            self._damaged |= {one.name for one in folders if find_damage(one) is not None}
        self._known = now

    @property
    def lost(self) -> list[str]:
        """Names of finished checkpoints that are gone and had to be kept, or are damaged."""
        return sorted(self._lost | self._damaged)


def _missing(before: Checkpoints, now: Checkpoints, keep: int) -> set[str]:
    """What was there, is not, and would be among the newest or the best of all that ever were."""
    together = before | now
    kept = set(sorted(together)[-keep:])
    scores = {name: score for name, score in together.items() if score is not None}
    if scores:
        kept.add(min(sorted(scores), key=lambda name: scores[name]))
    return (kept & before.keys()) - now.keys()


def epochs_of(samples: Mapping[int, tuple[int, int]], num_rows: int) -> tuple[int, int]:
    """Count what an epoch had not, and what it had more than once.

    Parameters
    ----------
    samples : rank and row by position in the stream (`sample_log.read_samples`)
    num_rows : of the training split

    Returns
    -------
    Samples that were skipped, and that were repeated, over all epochs. A hole in the stream shows
    as what its epoch lacks; the last epoch, if not finished, lacks nothing.
    """
    total = max(samples, default=-1) + 1
    seen: dict[int, Counter[int]] = {}
    for k, (_, row) in samples.items():
        seen.setdefault(k // num_rows, Counter())[row] += 1
    skipped = repeated = 0
    for epoch in range(-(-total // num_rows)):
        of_epoch = seen.get(epoch, Counter())
        expected = min(num_rows, total - epoch * num_rows)
        skipped += expected - len(of_epoch)
        repeated += of_epoch.total() - len(of_epoch)
    return skipped, repeated
