"""Batches for one rank: a resumable, rank-sharded stream of normalised tensors.

What comes when stands in `sample_order.py`, what is done to a sample in `augmentation.py`, how in
`pipeline.py`. All three are functions of the run's seed and an offset: a loader has no state that a
checkpoint would have to hold.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ganbert.config import AugmentationConfig
from ganbert.data.augmentation import NO_AUGMENTATION, draw_transform, motion_of
from ganbert.data.direct import DirectReader
from ganbert.data.image_streams import (
    PREPARE_AGAIN,
    check_cache,
    check_rows,
    image_streams,
    payload_shapes,
)
from ganbert.data.index import Index, Split
from ganbert.data.pipeline import NUM_AHEAD, Shape, build_pipeline
from ganbert.data.sample_order import SampleOrder, share_of
from ganbert.errors import DatasetError


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes
    ----------
    mri : (N, 1, D, H, W) float32, normalised (paper, section 3.1)
    pet_real : (N, T, D, H, W) float32, normalised by the MRI's statistics
    rows : position of each sample in `index.select(split, tracer)`
    subjects : BIDS label of each sample
    """

    mri: torch.Tensor
    pet_real: torch.Tensor
    rows: list[int]
    subjects: list[str] = field(default_factory=list)


class Loader:
    """Iterator over the batches of one rank; see `build_loader`."""

    def __init__(
        self,
        pipeline: Any,
        *,
        look_again: Callable[[int], None],
        subjects: Sequence[str],
        positions: Sequence[int],
        shapes: tuple[Shape, Shape],
        num_batches: int,
        device_id: int | None,
    ) -> None:
        self._pipeline = pipeline
        self._subjects = subjects
        self._positions = positions
        self._shapes = shapes
        self._look_again = look_again
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
        # DALI raises RuntimeError for its own failures, and no more than Exception for those of
        # the processes that read for it.
        except Exception as error:
            self.close()
            # It does not always say which file; a second look often does.
            self._look_again(self._num_given)
            cause = _first_cause(error, self._awaited())
            if cause is None:
                raise
            raise cause from error
        rows = _to_positions(mri_labels)
        if rows != _to_positions(pet_labels):
            raise AssertionError("the two readers of the pipeline are out of step")
        self._num_given += 1
        subjects = [self._subjects[row] for row in rows]
        mri, pet = (
            _behind_header(self._own(output), shape)
            for output, shape in zip((mri, pet), self._shapes, strict=True)
        )
        return Batch(mri=mri, pet_real=pet, rows=rows, subjects=subjects)

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
        """Take over DALI's buffer, on a GPU by a copy, so that later batches leave it alone."""
        source = output.as_tensor()
        if self._stream is None:
            # No copy: DALI gives the memory back when the tensor is gone.
            return torch.utils.dlpack.from_dlpack(source)
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        with torch.cuda.stream(self._stream):
            tensor = torch.empty(source.shape(), dtype=torch.float32, device=self._device)
            feed_ndarray(source, tensor, cuda_stream=self._stream)
        self._stream.synchronize()
        # The allocator must not give the memory back while the caller's stream still reads it.
        tensor.record_stream(torch.cuda.current_stream(self._device))
        return tensor


def _behind_header(tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return (N, C, D, H, W), the last values of each sample: a header may stand before them.

    A view: between samples lie the values of the header, which only a copy of all could remove.
    """
    return tensor.reshape(len(tensor), -1)[:, -math.prod(shape) :].unflatten(1, shape)


def build_loader(
    folder: Path,
    index: Index,
    split: Split,
    *,
    tracer: str | None = None,
    intensity_ratio: float,
    micro_batch: int,
    rank: int,
    world_size: int,
    seed: int,
    start_micro_step: int,
    num_micro_steps: int,
    device_id: int | None,
    augmentation: AugmentationConfig = NO_AUGMENTATION,
) -> Loader:
    """Build the loader of one rank, from global micro-step `start_micro_step` on.

    Parameters
    ----------
    folder : of the index
    tracer : whose rows alone are streamed; None: those of all
    intensity_ratio : the tenth of paper section 3.1
    micro_batch : samples per rank and micro-step (N)
    num_micro_steps : batches to give
    device_id : GPU that holds the batches; None for the CPU
    augmentation : random changes, drawn by `seed` for each sample of the stream

    Raises
    ------
    DatasetError
        If the split is empty, or a file of the cache is missing or of the wrong size.
    PlatformError
        If DALI is not installed.
    """
    rows = index.select(split, tracer)
    check_rows(folder, rows, split)
    order = SampleOrder(len(rows), seed)
    samples = [
        k
        for step in range(start_micro_step, start_micro_step + num_micro_steps)
        for k in share_of(step, rank=rank, world_size=world_size, micro_batch=micro_batch)
    ]
    positions = [order.sample(k) for k in samples]
    reader = None if index.cached else DirectReader(folder, rows, positions)
    if reader is None:
        check_cache(folder, index, rows)
    else:
        reader.check()

    def look_again(num_given: int) -> None:
        if reader is None:
            check_cache(folder, index, rows)
        else:
            _read_again(reader, micro_batch, num_given)

    draw = functools.lru_cache(maxsize=64)(
        lambda place: draw_transform(augmentation, seed, samples[place])
    )
    motion = motion_of(augmentation)
    pipeline = None
    if positions:
        mri, pet = image_streams(folder, index, rows, positions, intensity_ratio, draw, motion)
        pipeline = build_pipeline(
            mri, pet, micro_batch=micro_batch, device_id=device_id, reader=reader
        )
    return Loader(
        pipeline,
        look_again=look_again,
        subjects=[row.subject for row in rows],
        positions=positions,
        shapes=payload_shapes(index, rows[0]),
        num_batches=num_micro_steps,
        device_id=device_id,
    )


def _read_again(reader: DirectReader, micro_batch: int, num_given: int) -> None:
    """Read what came after `num_given` batches here, where an error keeps its words."""
    for sample in range(num_given * micro_batch, (num_given + 1 + NUM_AHEAD) * micro_batch):
        try:
            reader.read(sample)
        except StopIteration:
            return


def _to_positions(labels: Any) -> list[int]:
    return [int(label) for label in np.asarray(labels.as_tensor()).ravel()]


def _first_cause(error: Exception, subjects: Sequence[str]) -> DatasetError | None:
    """Turn DALI's report of several paragraphs into the line that says what happened, and where.

    Parameters
    ----------
    subjects : whose images it may be where the report names no file

    Returns
    -------
    None for a bug in a process that reads for DALI.
    """
    if not isinstance(error, RuntimeError):
        line = re.compile(r"^ganbert\.errors\.\w+: (.+?): expected (.+), found (.+); (.+)$", re.M)
        if (said := line.search(str(error))) is None:
            return None
        return DatasetError(said[1], expected=said[2], found=said[3], remedy=said[4])
    found = re.search(r"encountered:\s*(?:Assert on .* failed: )?(.+)", str(error))
    cause = found[1] if found else str(error).splitlines()[-1]
    file = re.search(r"\bfile:? (.+?\.nii)\b", cause)
    where = file[1] if file else "one of " + ", ".join(f"sub-{label}" for label in subjects)
    remedy = "check the cache and the free memory, or " + PREPARE_AGAIN
    return DatasetError(where, expected="images that DALI can read", found=cause, remedy=remedy)
