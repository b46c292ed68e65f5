"""The DALI graphs: bytes of the cache in, normalised float32 tensors out, on the CPU or a GPU.

    reader -> bytes -> [GPU] -> drop the header -> reinterpret -> cast -> * a -> + b

`write_cache` lays a file out so that the bytes behind its header are the array, so DALI needs no
NIfTI reader, and no Python code sees a voxel. `a` and `b` (float32, per sample) come from the
statistics of the index; on a GPU the MRI crosses the bus as bytes, a quarter of its float32 size.

DALI neither shards nor shuffles here: each rank hands it its own list of files, in order.
`reference.py` holds the same graph in NumPy. DALI is imported when a graph is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.volume import FloatArray
from ganbert.errors import PlatformError

# Batches computed ahead of the one that is asked for, and read ahead of those.
NUM_AHEAD = 2
_READER_AHEAD = 2


@dataclass(frozen=True)
class FileStream:
    """The files that one reader gives, in order, and how to read and scale each.

    Attributes
    ----------
    files : paths, one per sample
    labels : a number per sample that travels with it through the graph
    shape : (C, D, H, W) of each file's payload
    dtype : of the payload: uint8 or float32
    scale, offset : (K,) float32, per sample: normalised = scale * raw + offset
    """

    files: list[str]
    labels: list[int]
    shape: tuple[int, int, int, int]
    dtype: npt.DTypeLike
    scale: FloatArray
    offset: FloatArray


def build_pipeline(
    mri: FileStream,
    pet: FileStream,
    *,
    micro_batch: int,
    device_id: int | None,
    num_threads: int = 2,
    prefetch: int = NUM_AHEAD,
) -> Any:
    """Build the graph.

    Parameters
    ----------
    mri, pet : of equal length, a multiple of `micro_batch`
    device_id : GPU that normalises and holds the results; None for the CPU
    prefetch : batches computed ahead

    Returns
    -------
    nvidia.dali.Pipeline
        `run()` gives mri (N, 1, D, H, W) float32, pet (N, T, D, H, W) float32 and the labels of
        both (N, 1) int32, the latter always on the CPU.

    Raises
    ------
    PlatformError
        If DALI is not installed.
    """
    dali = _import_dali()
    with dali.Pipeline(
        batch_size=micro_batch,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    ) as pipeline:
        factors = dali.fn.external_source(
            source=_factors(mri, pet, micro_batch), num_outputs=4, batch=True
        )
        on_gpu = device_id is not None
        mri_image, mri_label = _read(dali, mri, *factors[:2], on_gpu=on_gpu)
        pet_image, pet_label = _read(dali, pet, *factors[2:], on_gpu=on_gpu)
        pipeline.set_outputs(mri_image, pet_image, mri_label, pet_label)
    pipeline.build()
    return pipeline


def _import_dali() -> Any:
    try:
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise PlatformError(
            "nvidia.dali",
            expected="NVIDIA DALI, which streams the images",
            found="no such package",
            remedy="install nvidia-dali-cuda120 or nvidia-dali-cuda130 (both work without a GPU)",
        ) from error
    return nvidia.dali


def _read(dali: Any, stream: FileStream, scale: Any, offset: Any, *, on_gpu: bool) -> Any:
    """Describe one image's way through the graph."""
    raw, label = dali.fn.readers.file(
        files=stream.files,
        labels=stream.labels,
        # A mapped file that another process truncates kills this one; read() returns an error.
        dont_use_mmap=True,
        prefetch_queue_depth=_READER_AHEAD,
    )
    if on_gpu:
        raw, scale, offset = raw.gpu(), scale.gpu(), offset.gpu()
    is_byte = np.dtype(stream.dtype) == np.uint8
    dtype = dali.types.UINT8 if is_byte else dali.types.FLOAT
    # (bytes,) -> (C, D, H, W)
    image = dali.fn.reinterpret(raw[HEADER_BYTES:], shape=stream.shape, dtype=dtype)
    return dali.fn.cast(image, dtype=dali.types.FLOAT) * scale + offset, label


def _factors(
    mri: FileStream, pet: FileStream, micro_batch: int
) -> Callable[[int], list[FloatArray]]:
    """Return the source of (scale, offset) of MRI and PET, (N,) float32 each, by iteration."""
    arrays = [mri.scale, mri.offset, pet.scale, pet.offset]
    num_batches = len(mri.files) // micro_batch

    def source(iteration: int) -> list[FloatArray]:
        # DALI asks ahead of the end; what it computes there nobody collects.
        start = iteration % num_batches * micro_batch
        return [array[start : start + micro_batch] for array in arrays]

    return source
