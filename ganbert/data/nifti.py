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

import gzip
import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from ganbert.atomic import replacing
from ganbert.data.index import file_sha256
from ganbert.data.nifti_header import affine_of, check_shape, files_of, open_image
from ganbert.data.nifti_voxels import read_stored, to_float32
from ganbert.data.volume import Affine, FloatArray, Volume
from ganbert.errors import ImageError, OutputError

HEADER_BYTES = 352
# Differences and products of voxels stay finite in float32.
MAX_VALUE = 1e30


def read_volume(
    path: str | Path, unit: str = "arbitrary", *, sha256: dict[str, str] | None = None
) -> Volume:
    """Read a NIfTI of any orientation; slope and intercept are applied.

    Parameters
    ----------
    path : `.nii`, `.hdr` or `.img`, with or without `.gz`; NIfTI-1 or NIfTI-2; 3D or 4D
    unit : unit of the intensities, which NIfTI itself does not record
    sha256 : filled in: path of each file of the image -> SHA-256 of its bytes, as they were read

    Returns
    -------
    Volume
        (T, D, H, W) float32, T = 1 for a 3D file; closest RAS+ axes

    Raises
    ------
    ImageError
        If the file is missing, not NIfTI, not 3D or 4D, too large, longer or shorter than its
        header says, has no usable orientation, or any voxel is not finite or beyond `MAX_VALUE`.
    """
    image = open_image(Path(path))
    digest = hashlib.sha256()
    stored = read_stored(image, None if sha256 is None else digest)
    if sha256 is not None:
        for file in files_of(image.path):
            own = file == image.voxel_path
            sha256[str(file)] = digest.hexdigest() if own else file_sha256(file)
    orientation = io_orientation(image.affine)
    affine = image.affine @ inv_ornt_aff(orientation, stored.shape[:3])
    # A view: (I, J, K, T) -> (X, Y, Z, T) -> (T, Y, Z, X) = (C, D, H, W)
    stored = apply_orientation(stored, orientation).transpose(3, 1, 2, 0)
    array = to_float32(image, stored)
    _check_values(image.path, array)
    return Volume(array, affine[:, [1, 2, 0, 3]], unit)


def from_nibabel(image: Any, unit: str = "arbitrary") -> Volume:
    """Return the volume of a nibabel image in memory; of any orientation.

    Parameters
    ----------
    image : `nibabel.SpatialImage`, 3D or 4D
    unit : of its intensities

    Returns
    -------
    Volume
        (T, D, H, W) float32; closest RAS+ axes

    Raises
    ------
    ImageError
        If it is not 3D or 4D, has no usable orientation, or any voxel is not finite or beyond
        `MAX_VALUE`.
    """
    name = name_of(image)
    check_shape(name, tuple(image.shape))
    affine = affine_of(image, name)
    voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, voxels.shape[:3])
    array = np.ascontiguousarray(apply_orientation(voxels, orientation).transpose(3, 1, 2, 0))
    _check_values(name, array)
    return Volume(array, affine[:, [1, 2, 0, 3]], unit)


def name_of(image: Any) -> Path:
    """Return what to call a nibabel image in an error: its file, or the word image."""
    return Path(image.get_filename() or "image")


def to_nibabel(volume: Volume, *, dtype: npt.DTypeLike = np.float32) -> nib.Nifti1Image:
    """Return a volume as a nibabel image, (x, y, z[, t]); one frame is 3D.

    Parameters
    ----------
    volume : (T, D, H, W)
    dtype : of the voxels; integer types are rounded and clipped, never rescaled
    """
    # (C, D, H, W) = (T, Y, Z, X) -> (X, Y, Z, T)
    voxels = volume.array.transpose(3, 1, 2, 0)
    voxels = voxels[..., 0] if voxels.shape[3] == 1 else voxels
    image = _to_image(voxels, volume.affine[:, [2, 0, 1, 3]], dtype)
    image.header.set_xyzt_units("mm", "sec" if voxels.ndim == 4 else None)
    return image


def check_header(path: str | Path) -> str | None:
    """Raise what `read_volume` would raise for the header, without reading a voxel.

    Returns
    -------
    What the user should know although the image can be used: which of two affines counts.

    Raises
    ------
    ImageError
        If the file is missing, not NIfTI, not 3D or 4D, too large, too short for what its header
        says, or has no usable orientation.
    """
    return open_image(Path(path)).note


def read_cache(path: str | Path, unit: str = "arbitrary") -> Volume:
    """Read a file of `write_cache` back, without reorienting it.

    Raises
    ------
    ImageError
        As `read_volume`.
    """
    image = open_image(Path(path))
    # (W, H, D, C) in Fortran order -> (C, D, H, W)
    array = to_float32(image, read_stored(image).transpose(3, 2, 1, 0))
    _check_values(image.path, array)
    return Volume(array, image.affine[:, [2, 1, 0, 3]], unit)


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
    _write(Path(path), to_nibabel(volume, dtype=dtype))


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


def _check_values(path: Path, voxels: FloatArray) -> None:
    # NaN and infinity come through; no temporary array as large as the image for the usual case.
    largest = max(-float(voxels.min()), float(voxels.max()))
    if np.isfinite(largest) and largest <= MAX_VALUE:
        return
    remedy = "replace them, for example by 0 outside of the head"
    if np.isfinite(largest):
        expected, found = f"voxels of at most {MAX_VALUE:g}", f"{largest:g}"
        raise ImageError(path, expected=expected, found=found, remedy=remedy)
    num_bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    found = f"{num_bad} of {voxels.size} that are NaN or infinite"
    raise ImageError(path, expected="finite voxels", found=found, remedy=remedy)


def to_dtype(voxels: FloatArray, dtype: np.dtype) -> npt.NDArray[np.generic]:
    """Return voxels as they are stored: rounded and clipped where the type is an integer."""
    if dtype.kind not in "iu":
        return voxels.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(voxels).clip(limits.min, limits.max).astype(dtype)


def _to_image(voxels: FloatArray, affine: Affine, dtype: npt.DTypeLike) -> nib.Nifti1Image:
    image = nib.Nifti1Image(to_dtype(voxels, np.dtype(dtype)), affine)
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
