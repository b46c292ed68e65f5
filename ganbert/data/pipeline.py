"""The DALI graphs: raw images in, normalised float32 tensors out, on the CPU or a GPU.

    path -> bytes -> [GPU] -> [reinterpret -> flip or warp] -> * a + b

`write_cache` lays a file out so that the bytes behind its header are the array, so DALI needs no
NIfTI reader, and no Python code sees a voxel. `a` and `b` (float32, per sample) come from the
statistics of the index. The multiply-add reads the stored type, so each voxel is touched once; on a
GPU the MRI crosses the bus as bytes, a quarter of its float32 size. On the CPU dropping the header
would cost a copy of the image: it is scaled with it, and the loader looks behind it. Which
operators of DALI read and scale fastest was measured: `docs/decisions/0012-loading.md`.

DALI neither shards nor shuffles here, and draws no random number: each rank hands it its own list
of samples, in order, with what is to be done to each. `reference.py` holds the same graph in NumPy.
DALI is imported when a graph is built.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ganbert.cores import share_of_cores
from ganbert.data.nifti import HEADER_BYTES
from ganbert.data.volume import Array, FloatArray
from ganbert.errors import PlatformError

Shape = tuple[int, int, int, int]
Motion = Literal["none", "flip", "warp"]
# Batches read and computed ahead of the one that is asked for.
NUM_AHEAD = 2
# More do not help a rank: reading and scaling are bound by memory.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Change:
    """What is done to one image.

    Attributes
    ----------
    scale, offset : normalised = scale * raw + offset
    flip : swap left and right before that
    to_source : (3, 4), index (d, h, w, 1) of the result to index in the image, interpolated
        linearly, 0 outside; where there is one it holds the flip too
    """

    scale: float
    offset: float
    flip: bool = False
    to_source: Array | None = None


@dataclass(frozen=True)
class ImageStream:
    """One image of each sample, in order: where it lies, and what is done to it.

    Attributes
    ----------
    files : paths, one per sample
    labels : a number per sample that travels with it through the graph
    shape : (C, D, H, W) of each file's payload
    dtype : of the payload: uint8 or float32
    change : what is done to the sample at a place in `files`; asked for batch by batch
    motion : what `change` may ask for beside scaling; the same for all samples
    """

    files: list[str]
    labels: list[int]
    shape: Shape
    dtype: npt.DTypeLike
    change: Callable[[int], Change]
    motion: Motion = "none"


def build_pipeline(
    mri: ImageStream,
    pet: ImageStream,
    *,
    micro_batch: int,
    device_id: int | None,
    num_threads: int | None = None,
    prefetch: int = NUM_AHEAD,
    reader: Callable[[Any], Any] | None = None,
) -> Any:
    """Build the graph.

    Parameters
    ----------
    mri, pet : of equal length, a multiple of `micro_batch`
    device_id : GPU that normalises and holds the results; None for the CPU
    num_threads : of DALI, and processes of `reader`; None: this rank's share of the node's cores
    prefetch : batches computed ahead
    reader : gives both raw images and the label of a sample, in processes of its own; None: the
        files are read

    Returns
    -------
    nvidia.dali.Pipeline
        `run()` gives mri and pet, float32, (N, ..., C * D * H * W values at the end), and the
        labels of both (N, 1) int32, the latter always on the CPU.

    Raises
    ------
    PlatformError
        If DALI is not installed.
    """
    dali = _import_dali()
    num_threads = num_threads or min(share_of_cores(), _MAX_THREADS)
    with dali.Pipeline(
        batch_size=micro_batch,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        **_processes(num_threads if reader else 0),
    ) as pipeline:
        raw = _call(dali, reader) if reader else _read_files(dali, mri, pet, micro_batch)
        on_gpu = device_id is not None
        images = [
            _change(dali, source, stream, micro_batch, on_gpu=on_gpu, has_header=reader is None)
            for source, stream in zip(raw, (mri, pet), strict=False)
        ]
        pipeline.set_outputs(*images, *raw[2:])
    with _without_main_script():
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


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Start processes that do not import the script of this one, and torch and DeepSpeed with it.

    multiprocessing runs the main script again in a spawned child, for functions that are defined
    there; a reader is not. It finds the script by these two names.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    try:
        for name in kept:
            setattr(main, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def _processes(num_readers: int) -> dict[str, Any]:
    # A forked child of a process with threads (and CUDA) may hang.
    return {"py_num_workers": num_readers, "py_start_method": "spawn"} if num_readers else {}


def _read_files(dali: Any, mri: ImageStream, pet: ImageStream, micro_batch: int) -> tuple[Any, ...]:
    """Return the bytes of both files, then both labels."""
    (mri_path, mri_label), (pet_path, pet_label) = (
        dali.fn.external_source(
            source=_files_by_batch(stream, micro_batch), num_outputs=2, batch=True
        )
        for stream in (mri, pet)
    )
    # Straight into the output, where `readers.file` reads into a buffer and copies. A mapped file
    # that another process truncates kills this one; read() fails.
    mri_bytes, pet_bytes = (
        dali.fn.io.file.read(path, dont_use_mmap=True) for path in (mri_path, pet_path)
    )
    return mri_bytes, pet_bytes, mri_label, pet_label


def _call(dali: Any, reader: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return both raw images, then the label of both."""
    types = (dali.types.UINT8, dali.types.FLOAT, dali.types.INT32)
    mri, pet, label = dali.fn.external_source(
        source=reader, num_outputs=3, batch=False, parallel=True, dtype=list(types)
    )
    return mri, pet, label, label


def _change(
    dali: Any, raw: Any, stream: ImageStream, micro_batch: int, *, on_gpu: bool, has_header: bool
) -> Any:
    """Describe the way of one image from its bytes to what the networks see."""
    moves = stream.motion != "none"
    given = dali.fn.external_source(
        source=_by_batch(stream, micro_batch), num_outputs=3 if moves else 2, batch=True
    )
    scale, offset, *motion = given
    if on_gpu:
        raw, scale, offset = raw.gpu(), scale.gpu(), offset.gpu()
    is_byte = np.dtype(stream.dtype) == np.uint8
    dtype = dali.types.UINT8 if is_byte else dali.types.FLOAT
    # (C, D, H, W, 1): frames of volumes of one channel, in DALI's words
    shape = (*stream.shape, 1)
    if not has_header:
        image = dali.fn.reinterpret(raw, shape=shape, layout="FDHWC")
    elif not moves and not on_gpu:
        header = HEADER_BYTES // np.dtype(stream.dtype).itemsize
        # The shape makes DALI refuse a file of another size.
        flat = (header + math.prod(stream.shape),)
        image = dali.fn.reinterpret(raw, shape=flat, dtype=dtype)
    else:
        image = dali.fn.reinterpret(raw[HEADER_BYTES:], shape=shape, dtype=dtype, layout="FDHWC")
    if stream.motion == "warp":
        image = dali.fn.warp_affine(
            image,
            motion[0].gpu() if on_gpu else motion[0],
            fill_value=0.0,
            dtype=dali.types.FLOAT,
            interp_type=dali.types.INTERP_LINEAR,
        )
    elif stream.motion == "flip":
        image = dali.fn.flip(image, horizontal=motion[0])
    return image * scale + offset if on_gpu else _scale_on_cpu(dali, image, scale, offset)


def _scale_on_cpu(dali: Any, image: Any, scale: Any, offset: Any) -> Any:
    """Return scale * image + offset in one pass: DALI's arithmetic makes one for each operator.

    The same float32 numbers, in less than half of the time.
    """
    return dali.fn.brightness_contrast(
        dali.fn.reinterpret(image, shape=(1, -1, 1), layout="HWC"),
        brightness=scale,
        brightness_shift=offset,
        contrast=1.0,
        contrast_center=0.0,
        dtype=dali.types.FLOAT,
    )


def _to_dali(to_source: Array) -> FloatArray:
    """Turn a matrix of (d, h, w), whole numbers at centres, into DALI's of (x, y, z), halves there.

    Parameters
    ----------
    to_source : (3, 4)
    """
    linear = to_source[::-1, 2::-1]
    shift = to_source[::-1, 3] + 0.5 - 0.5 * linear.sum(axis=1)
    return np.column_stack((linear, shift)).astype(np.float32)


def _places(stream: ImageStream, micro_batch: int, iteration: int) -> range:
    """Return the places in the stream of a batch."""
    # DALI asks ahead of the end; what it computes there nobody collects.
    start = iteration % (len(stream.files) // micro_batch) * micro_batch
    return range(start, start + micro_batch)


def _files_by_batch(
    stream: ImageStream, micro_batch: int
) -> Callable[[int], tuple[list[npt.NDArray[Any]], ...]]:
    """Return the source of paths and labels of a batch, by iteration."""

    def source(iteration: int) -> tuple[list[npt.NDArray[Any]], ...]:
        places = _places(stream, micro_batch, iteration)
        paths = [np.frombuffer(os.fsencode(stream.files[place]), np.uint8) for place in places]
        return paths, [np.array([stream.labels[place]], np.int32) for place in places]

    return source


def _by_batch(
    stream: ImageStream, micro_batch: int
) -> Callable[[int], tuple[list[npt.NDArray[Any]], ...]]:
    """Return the source of factors, shifts and motions of a batch, by iteration."""

    def motion_of(change: Change) -> npt.NDArray[Any]:
        if stream.motion == "flip" or change.to_source is None:
            return np.array(change.flip, np.int32)
        return _to_dali(change.to_source)

    def source(iteration: int) -> tuple[list[npt.NDArray[Any]], ...]:
        changes = [stream.change(place) for place in _places(stream, micro_batch, iteration)]
        scales = [np.array(change.scale, np.float32) for change in changes]
        offsets = [np.array(change.offset, np.float32) for change in changes]
        if stream.motion == "none":
            return scales, offsets
        return scales, offsets, [motion_of(change) for change in changes]

    return source
