"""The voxels of a NIfTI whose header is in order: one pass over the file, then one over memory.

A file is decompressed once, into a buffer that grows with what the stream holds, to its checksum.
The buffer is then cast, scaled and put in order in one go, tile by tile, so that memory never holds
more than the voxels as stored, the float32 result and a tile.

A sagittal T1w keeps far apart in the file what is adjacent in the array. Copied whole, each value
fetches a cache line of its own, and at 256^3 that takes longer than the decompression
(`benchmarks/inflate.py`); a tile of 16 x 16 lines fits the processor's cache both ways.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling

from ganbert.data.inflate import Digest, discard, is_gzip, open_stream, read_between
from ganbert.data.nifti_header import UNREADABLE, StoredImage, unreadable
from ganbert.data.volume import FloatArray
from ganbert.errors import ImageError

# Some writers pad; what goes on and on behind the voxels is a bomb.
MAX_TRAILING_BYTES = 1 << 20
_TILE = 16


def read_stored(image: StoredImage, digest: Digest | None = None) -> npt.NDArray[Any]:
    """Read the voxels as they are stored; neither slope nor intercept is applied.

    Parameters
    ----------
    digest : takes in the bytes of the file as they are read

    Returns
    -------
    (I, J, K, T), I fastest, in the type and byte order of the file

    Raises
    ------
    ImageError
        If the file cannot be read, is damaged, or is shorter than its header says or (compressed)
        longer by more than `MAX_TRAILING_BYTES`.
    """
    packed = is_gzip(image.voxel_path)
    try:
        with open_stream(image.voxel_path, digest) as stream:
            content = read_between(stream, image.start, image.stop)
            _check_length(image, image.start + len(content), packed=packed)
            # To the checksum of a compressed stream, and to the end of what is hashed.
            if packed and discard(stream, MAX_TRAILING_BYTES + 1) > MAX_TRAILING_BYTES:
                raise ImageError(
                    image.path,
                    expected=f"{image.stop} bytes, as its header says",
                    found="more in the compressed stream",
                    remedy="copy or convert the image again",
                )
            if digest and not packed:
                discard(stream)
    except UNREADABLE as error:
        raise unreadable(image.path, error) from error
    shape = (*image.shape, 1)[:4]
    return np.frombuffer(content, image.dtype).reshape(shape, order="F")


def _check_length(image: StoredImage, num_bytes: int, *, packed: bool) -> None:
    if num_bytes < image.stop:
        raise ImageError(
            image.path,
            expected=f"{image.stop} bytes, as its header says",
            found=f"{num_bytes} in the {'compressed stream' if packed else 'file'}",
            remedy="copy the image again",
        )


def to_float32(image: StoredImage, stored: npt.NDArray[Any]) -> FloatArray:
    """Apply slope and intercept, as nibabel does, and put the array in C order.

    Parameters
    ----------
    stored : view on what `read_stored` returned, axes in any order and direction

    Returns
    -------
    float32, of the shape of `stored`; what float32 cannot hold is infinite
    """
    array = np.empty(stored.shape, np.float32)
    # In float64 where there is a slope, as nibabel scales for NumPy 2.
    slope, intercept = (
        None if value is None else np.float64(value) for value in (image.slope, image.intercept)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for tile in _tiles(stored):
            array[tile] = apply_read_scaling(stored[tile], slope, intercept)
    return array


def _tiles(stored: npt.NDArray[Any]) -> Iterator[tuple[slice, ...]]:
    """Cut into tiles: whole lines as they lie in the file, 16 x 16 of them at most."""
    fastest = int(np.argmin(np.abs(stored.strides)))
    cuts = [
        [slice(None)]
        if axis == fastest
        else [slice(start, start + _TILE) for start in range(0, size, _TILE)]
        for axis, size in enumerate(stored.shape)
    ]
    return itertools.product(*cuts)
