"""Batches for one rank: a resumable, rank-sharded stream of normalised tensors.

The order of samples is one infinite stream that knows nothing of ranks (`SampleOrder`); each
global micro-step takes the next world_size * micro_batch samples of it, and each rank its own part
of those. So a run on more ranks sees the same samples in the same order, nothing is dropped or
repeated within an epoch, no two ranks ever hold the same part, and resuming is an offset.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ganbert.config import Grid
from ganbert.data.conform import mri_scale_offset, pet_scale_offset
from ganbert.data.index import CachedImage, Index, Row, Split
from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.pipeline import NUM_AHEAD, FileStream, build_pipeline
from ganbert.errors import DatasetError

_PREPARE_AGAIN = "run `ganbert prepare` again"


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes
    ----------
    mri : (N, 1, D, H, W) float32, normalised (paper, section 3.1)
    pet_real : (N, T, D, H, W) float32, normalised by the MRI's statistics
    rows : position of each sample in `index.select(split)`
    subjects : BIDS label of each sample
    """

    mri: torch.Tensor
    pet_real: torch.Tensor
    rows: list[int]
    subjects: list[str] = field(default_factory=list)


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
        start = (step * world_size + rank) * micro_batch
        return [self.sample(k) for k in range(start, start + micro_batch)]


@functools.lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    # Sorting raw bits instead of Generator.permutation: NumPy promises the bits of PCG64 for good,
    # the algorithms above them only until they are improved, and a resumed run must go on the same.
    return np.random.PCG64([seed, epoch]).random_raw(num_rows).argsort(kind="stable")


class Loader:
    """Iterator over the batches of one rank; see `build_loader`."""

    def __init__(
        self,
        pipeline: Any,
        *,
        check: Callable[[], None],
        subjects: Sequence[str],
        positions: Sequence[int],
        num_batches: int,
        device_id: int | None,
    ) -> None:
        self._pipeline = pipeline
        self._subjects = subjects
        self._positions = positions
        self._check = check
        self._num_batches = num_batches
        self._num_given = 0
        self._device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        # A stream of its own: waiting for the copy must not wait for the training step before it.
        self._stream = None if device_id is None else torch.cuda.Stream(self._device)

    def __len__(self) -> int:
        """Batches in all, given ones included."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._pipeline is None or self._num_given == self._num_batches:
            raise StopIteration
        try:
            mri, pet, mri_labels, pet_labels = self._pipeline.run()
        except RuntimeError as error:
            self.close()
            # DALI does not always say which file; a second look at the cache often does.
            self._check()
            raise _first_cause(error, self._awaited()) from error
        rows = _to_positions(mri_labels)
        if rows != _to_positions(pet_labels):
            raise AssertionError("the two readers of the pipeline are out of step")
        self._num_given += 1
        subjects = [self._subjects[row] for row in rows]
        return Batch(mri=self._own(mri), pet_real=self._own(pet), rows=rows, subjects=subjects)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and free DALI's buffers; safe to call twice."""
        if self._pipeline is not None and hasattr(self._pipeline, "shutdown"):
            self._pipeline.shutdown()
        self._pipeline = None

    def _awaited(self) -> list[str]:
        """Subjects that DALI may be reading for: of the next batch, and of those read ahead."""
        micro_batch = len(self._positions) // self._num_batches
        start = self._num_given * micro_batch
        ahead = self._positions[start : start + (1 + NUM_AHEAD) * micro_batch]
        return list(dict.fromkeys(self._subjects[position] for position in ahead))

    def _own(self, output: Any) -> torch.Tensor:
        """Copy out of DALI's buffer, which the next `run` may overwrite."""
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        source = output.as_tensor()
        if self._stream is None:
            return feed_ndarray(source, torch.empty(source.shape(), dtype=torch.float32))
        with torch.cuda.stream(self._stream):
            tensor = torch.empty(source.shape(), dtype=torch.float32, device=self._device)
            feed_ndarray(source, tensor, cuda_stream=self._stream)
        self._stream.synchronize()
        # The allocator must not give the memory back while the caller's stream still reads it.
        tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensor


def build_loader(
    folder: Path,
    index: Index,
    split: Split,
    *,
    intensity_ratio: float,
    micro_batch: int,
    rank: int,
    world_size: int,
    seed: int,
    start_micro_step: int,
    num_micro_steps: int,
    device_id: int | None,
) -> Loader:
    """Build the loader of one rank, from global micro-step `start_micro_step` on.

    Parameters
    ----------
    folder : of the index
    intensity_ratio : the tenth of paper section 3.1
    micro_batch : samples per rank and micro-step (N)
    num_micro_steps : batches to give
    device_id : GPU that holds the batches; None for the CPU

    Raises
    ------
    DatasetError
        If the split is empty, or a file of the cache is missing or of the wrong size.
    PlatformError
        If DALI is not installed.
    """
    rows = index.select(split)
    check = functools.partial(_check_cache, folder, index, rows, split)
    check()
    order = SampleOrder(len(rows), seed)
    steps = range(start_micro_step, start_micro_step + num_micro_steps)
    take = functools.partial(
        order.micro_batch, rank=rank, world_size=world_size, micro_batch=micro_batch
    )
    positions = [position for step in steps for position in take(step)]
    pipeline = None
    if positions:
        mri, pet = _streams(folder, index, rows, positions, intensity_ratio)
        pipeline = build_pipeline(mri, pet, micro_batch=micro_batch, device_id=device_id)
    return Loader(
        pipeline,
        check=check,
        subjects=[row.subject for row in rows],
        positions=positions,
        num_batches=num_micro_steps,
        device_id=device_id,
    )


def _streams(
    folder: Path, index: Index, rows: Sequence[Row], positions: list[int], ratio: float
) -> tuple[FileStream, FileStream]:
    statistics = [(rows[position].mri.mean, rows[position].mri.std) for position in positions]

    def stream(name: str, factors: list[tuple[float, float]], dtype: Any) -> FileStream:
        images: list[CachedImage] = [getattr(rows[position], name) for position in positions]
        scale, offset = np.array(factors, np.float32).T
        return FileStream(
            files=[str(folder / image.path) for image in images],
            labels=positions,
            shape=_shape(name, index, rows[0]),
            dtype=dtype,
            scale=np.ascontiguousarray(scale),
            offset=np.ascontiguousarray(offset),
        )

    mri = stream("mri", [mri_scale_offset(*pair) for pair in statistics], np.uint8)
    pet = stream("pet", [pet_scale_offset(*pair, ratio) for pair in statistics], np.float32)
    return mri, pet


def _shape(name: str, index: Index, row: Row) -> tuple[int, int, int, int]:
    grid: Grid = index.mri_grid if name == "mri" else index.pet_grid
    num_channels = 1 if name == "mri" else len(row.frame_start_s)
    return (num_channels, *grid.shape)


def _check_cache(folder: Path, index: Index, rows: Sequence[Row], split: Split) -> None:
    """Look at each file once, so that a hole in the cache shows before any training work."""
    if not rows:
        raise DatasetError(
            folder, expected=f"rows in split '{split}'", found="none", remedy="add subjects"
        )
    for row in rows:
        for name, image, itemsize in (("mri", row.mri, 1), ("pet", row.pet, 4)):
            size = HEADER_BYTES + itemsize * int(np.prod(_shape(name, index, rows[0])))
            _check_file(folder / image.path, size)


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DatasetError(
            path, expected="a cached image", found=reason, remedy=_PREPARE_AGAIN
        ) from error
    if found != size:
        raise DatasetError(
            path, expected=f"{size} bytes", found=f"{found} bytes", remedy=_PREPARE_AGAIN
        )


def _to_positions(labels: Any) -> list[int]:
    return [int(label) for label in np.asarray(labels.as_tensor()).ravel()]


def _first_cause(error: RuntimeError, subjects: Sequence[str]) -> DatasetError:
    """Turn DALI's report of several paragraphs into the line that says what happened, and where.

    Parameters
    ----------
    subjects : whose images it may be where the report names no file
    """
    found = re.search(r"encountered:\s*(?:Assert on .* failed: )?(.+)", str(error))
    cause = found[1] if found else str(error).splitlines()[-1]
    file = re.search(r"\bfile:? (.+?\.nii)\b", cause)
    where = file[1] if file else "one of " + ", ".join(f"sub-{label}" for label in subjects)
    remedy = "check the cache and the free memory, or " + _PREPARE_AGAIN
    return DatasetError(where, expected="images that DALI can read", found=cause, remedy=remedy)
