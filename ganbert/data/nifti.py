"""Read and write NIfTI: the one place that knows NIfTI's axis order, orientation and scaling.

NIfTI keeps voxels as (i, j, k[, t]) with i running fastest in the file; an affine says how
(i, j, k) lie in the world. The software's arrays are (C, D, H, W) with W running fastest. A file of
any of the 48 axis orders is first flipped and permuted (never interpolated) to the closest RAS+
order, where i runs to the right (x), j to anterior (y), k to superior (z); then its axes become

    NIfTI, RAS+               array
    t  frame          ---->   C   frame (1 for an MRI or a 3D PET)
    j  y  anterior    ---->   D   posterior to anterior
    k  z  superior    ---->   H   inferior to superior
    i  x  right       ---->   W   left to right

            z, H                       array[c, d, h, w] == nifti[i=w, j=d, k=h, t=c]
            |    y, D
            |   /
            |  /                       affine @ (d, h, w, 1) == nifti_affine @ (w, d, h, 1)
            | /
            o------- x, W

Spacing and affine follow the axes. Two kinds of file are written:

* for people (`write_volume`): (i, j, k, t) = (x, y, z, t) as above, which every tool expects;
* for the streamer (`write_cache`): (i, j, k, t) = (W, H, D, C), uncompressed, so that the bytes
  after the header are the array in C order and no loader has to move a voxel. Its affine says so,
  and viewers that honour affines show it upright.

Neither header carries free text: `descrip`, `db_name` and the like may name a patient.
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from ganbert.atomic import replacing
from ganbert.data.volume import Affine, FloatArray, Volume
from ganbert.errors import ImageError, OutputError

HEADER_BYTES = 352
MAX_VOXELS = 2**31
# A byte of a deflate stream stands for at most 1032 bytes (zlib, technical details).
_MAX_DEFLATE_RATIO = 1032
_MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    KeyError,
    OverflowError,
)


def read_volume(path: str | Path, unit: str = "arbitrary") -> Volume:
    """Read a NIfTI of any orientation; slope and intercept are applied.

    Parameters
    ----------
    path : `.nii` or `.nii.gz`, 3D or 4D
    unit : unit of the intensities, which NIfTI itself does not record

    Returns
    -------
    Volume
        (T, D, H, W) float32, T = 1 for a 3D file; closest RAS+ axes

    Raises
    ------
    ImageError
        If the file is missing, truncated, not NIfTI, not 3D or 4D, larger than `MAX_VOXELS`, has no
        usable orientation, or any voxel is not finite.
    """
    path = Path(path)
    image = _open(path)
    affine = _world_affine(path, image)
    voxels = _read_voxels(path, image)
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, voxels.shape[:3])
    voxels = apply_orientation(voxels, orientation)
    # (X, Y, Z, T) -> (T, Y, Z, X) = (C, D, H, W)
    array = np.ascontiguousarray(voxels.transpose(3, 1, 2, 0))
    return Volume(array, affine[:, [1, 2, 0, 3]], unit)


def check_header(path: str | Path) -> None:
    """Raise what `read_volume` would raise for the header, without reading a voxel.

    Raises
    ------
    ImageError
        If the file is missing, not NIfTI, not 3D or 4D, too large, too short for what its header
        says, or has no usable orientation.
    """
    path = Path(path)
    _world_affine(path, _open(path))


def read_cache(path: str | Path, unit: str = "arbitrary") -> Volume:
    """Read a file of `write_cache` back, without reorienting it.

    Raises
    ------
    ImageError
        As `read_volume`.
    """
    path = Path(path)
    image = _open(path)
    affine = _world_affine(path, image)
    # (W, H, D, C) in Fortran order -> (C, D, H, W)
    array = np.ascontiguousarray(_read_voxels(path, image).transpose(3, 2, 1, 0))
    return Volume(array, affine[:, [2, 1, 0, 3]], unit)


def write_volume(path: str | Path, volume: Volume, *, dtype: npt.DTypeLike = np.float32) -> None:
    """Write a NIfTI for people, whole or not at all.

    Parameters
    ----------
    path : `.nii` or `.nii.gz`; the folder must exist
    volume : (T, D, H, W); one frame is written as 3D
    dtype : on disk; integer types are rounded and clipped, never rescaled

    Raises
    ------
    OutputError
        If the name is not that of a NIfTI, or the file cannot be written.
    """
    # (C, D, H, W) = (T, Y, Z, X) -> (X, Y, Z, T)
    voxels = volume.array.transpose(3, 1, 2, 0)
    voxels = voxels[..., 0] if voxels.shape[3] == 1 else voxels
    image = _to_image(voxels, volume.affine[:, [2, 0, 1, 3]], dtype)
    image.header.set_xyzt_units("mm", "sec" if voxels.ndim == 4 else None)
    _write(Path(path), image)


def write_cache(path: str | Path, volume: Volume, *, dtype: npt.DTypeLike) -> None:
    """Write a `.nii` whose bytes after `HEADER_BYTES` are the (C, D, H, W) array in C order.

    Raises
    ------
    OutputError
        If the name does not end in `.nii`, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nii":
        raise OutputError(
            path, expected="a name in .nii", found=path.name, remedy="the cache is not compressed"
        )
    # (C, D, H, W) -> (W, H, D, C)
    voxels = volume.array.transpose(3, 2, 1, 0)
    image = _to_image(voxels, volume.affine[:, [2, 1, 0, 3]], dtype)
    image.header.set_xyzt_units("mm")
    _write(path, image)


def resample(
    volume: Volume, affine: Affine, shape: tuple[int, int, int], *, order: int = 1
) -> Volume:
    """Interpolate onto another grid; outside of the image is 0.

    Parameters
    ----------
    affine : (4, 4) of the target grid, index (d, h, w, 1) to RAS+ mm
    shape : voxels of the target grid along (D, H, W)
    order : of the spline: 0 nearest (labels), 1 linear, 3 cubic
    """
    to_source = np.linalg.inv(volume.affine) @ affine
    array = np.empty((len(volume.array), *shape), np.float32)
    for frame, target in zip(volume.array, array, strict=True):
        ndimage.affine_transform(
            frame,
            to_source[:3, :3],
            to_source[:3, 3],
            output_shape=shape,
            output=target,
            order=order,
            # Unlike "constant", safe against a rounding error just outside of the first voxel.
            mode="grid-constant",
        )
    return Volume(array, affine, volume.unit)


def _unreadable(path: Path, error: BaseException) -> ImageError:
    found = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # nibabel and gzip repeat the path, which the error already carries.
    found = found.splitlines()[0].replace(str(path), "the file")
    remedy = "convert or copy the image again"
    return ImageError(path, expected="a readable NIfTI", found=found, remedy=remedy)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from logging what is wrong with a header: our error is the one line to read."""
    nibabel_logger.disabled = True
    try:
        yield
    finally:
        nibabel_logger.disabled = False


def _open(path: Path) -> nib.Nifti1Image:
    """Read the header only, and refuse what its sizes say before memory is taken for it."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise ImageError(path, expected="a NIfTI file", found=found, remedy="check the path")
    try:
        with _quiet_nibabel():
            image = nib.load(path, mmap=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, nib.Nifti1Image):
        found = f"a {type(image).__name__}"
        raise ImageError(path, expected="a NIfTI file", found=found, remedy="convert it to NIfTI")
    _check_shape(path, image.shape)
    _check_size(path, image)
    return image


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    found = f"shape {shape}"
    # A single slice stored with a third axis of 1 is 2D as well.
    if len(shape) not in (3, 4) or min(shape) < 1 or min(shape[:3]) < 2:
        remedy = "give a whole image, (x, y, z) or (x, y, z, frame)"
        raise ImageError(path, expected="a 3D or 4D image", found=found, remedy=remedy)
    if math.prod(shape) > MAX_VOXELS:
        expected = f"at most {MAX_VOXELS} voxels"
        raise ImageError(path, expected=expected, found=found, remedy="crop or average the image")


def _check_size(path: Path, image: nib.Nifti1Image) -> None:
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        remedy = "convert it to integers or floats"
        raise ImageError(path, expected="real numbers", found=f"voxels of {dtype}", remedy=remedy)
    size = path.stat().st_size
    # Nothing stands before the voxels but the header: the least that the file can take.
    claimed = HEADER_BYTES + math.prod(image.shape) * dtype.itemsize
    possible = size * _MAX_DEFLATE_RATIO if path.suffix == ".gz" else size
    if claimed > possible:
        expected = f"{claimed} bytes, as its header says"
        found = f"a file of {size} bytes"
        raise ImageError(path, expected=expected, found=found, remedy="copy the image again")


def _read_voxels(path: Path, image: nib.Nifti1Image) -> FloatArray:
    """Return (I, J, K, T) float32, all finite."""
    try:
        if path.suffix == ".gz":
            _check_gzip(path)
        with np.errstate(over="ignore"):
            voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    num_bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if num_bad:
        found = f"{num_bad} of {voxels.size} that are NaN or infinite"
        remedy = "replace them, for example by 0 outside of the head"
        raise ImageError(path, expected="finite voxels", found=found, remedy=remedy)
    return voxels if voxels.ndim == 4 else voxels[..., np.newaxis]


def _check_gzip(path: Path) -> None:
    """Decompress to the end: the checksum stands there, and nibabel stops before it."""
    with gzip.open(path) as stream:
        while stream.read(1 << 20):
            pass


def _world_affine(path: Path, image: nib.Nifti1Image) -> Affine:
    """Return the affine, (i, j, k, 1) to RAS+ mm."""
    header = image.header
    remedy = "give the image an orientation (sform or qform), for example by converting it again"
    # Without either code NIfTI does not say which side is left; guessing may mirror a patient.
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        found = "sform_code 0 and qform_code 0"
        raise ImageError(path, expected="a known orientation", found=found, remedy=remedy)
    affine = np.array(image.affine, np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ImageError(path, expected="an affine of rank 3", found="less", remedy=remedy)
    try:
        affine[:3] *= _MM_PER_UNIT[header.get_xyzt_units()[0]]
    except KeyError as error:
        raise _unreadable(path, error) from error
    return affine


def _to_dtype(voxels: FloatArray, dtype: np.dtype) -> npt.NDArray[np.generic]:
    if dtype.kind not in "iu":
        return voxels.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(voxels).clip(limits.min, limits.max).astype(dtype)


def _to_image(voxels: FloatArray, affine: Affine, dtype: npt.DTypeLike) -> nib.Nifti1Image:
    image = nib.Nifti1Image(_to_dtype(voxels, np.dtype(dtype)), affine)
    image.set_sform(affine, "aligned")
    image.set_qform(affine, "aligned")
    return image


def _write(path: Path, image: nib.Nifti1Image) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        remedy = "end the name in .nii or .nii.gz"
        raise OutputError(path, expected="the name of a NIfTI", found=path.name, remedy=remedy)
    content = image.to_bytes()
    if path.suffix == ".gz":
        # No name and no time in the gzip header: the same volume gives the same bytes.
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
