"""What a NIfTI says of itself, believed only as far as the file bears it out.

The header is read from a fixed number of bytes, and everything that it claims (sizes, offset, type,
scaling, place in the world) is checked before memory is taken for a voxel. Header extensions, free
text that may name a patient, are never read.

Of the two affines of a header the sform counts, and the qform where there is no sform: so do
nibabel, FSL, fMRIPrep (niworkflows `ValidateImage`) and ITK since 5.2. The standard lets the two
differ, and SPM writes a registration into the sform alone; so where they differ by more than half a
voxel anywhere in the image, that is noted and the sform is used. Where one is the mirror image of
the other, nobody knows which side is left, and the image is refused.
"""

import contextlib
import gzip
import itertools
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.imageclasses import all_image_classes
from nibabel.imageglobals import logger as nibabel_logger

from ganbert.data.inflate import (
    DAMAGED,
    MAX_DEFLATE_RATIO,
    has_gzip_magic,
    is_gzip,
    open_stream,
)
from ganbert.data.volume import Affine
from ganbert.errors import ImageError

MAX_VOXELS = 2**31
# A human body in any scanner, with room; what follows takes memory by the mm.
EDGE_MM = (0.05, 100.0)
MAX_EXTENT_MM = 2500.0
MAX_BOX_MM3 = 1.5e9
MAX_DISTANCE_MM = 1e5
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_HALF_A_VOXEL = 0.5
UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    *DAMAGED,
    ValueError,
    KeyError,
    OverflowError,
)


@dataclass(frozen=True)
class StoredImage:
    """A NIfTI whose header is in order; no voxel is read yet.

    Attributes
    ----------
    path : as the user named it, for messages
    voxel_path : file that holds the voxels; the `.img` of a pair
    shape : (I, J, K[, T]), I fastest in the file
    dtype : of a stored voxel, with its byte order
    start, stop : where the voxels lie in `voxel_path`, in bytes, decompressed
    slope, intercept : value = slope * stored + intercept; None: the stored number is the value
    affine : (4, 4) float64, (i, j, k, 1) to RAS+ mm
    note : what the user should know although the image can be used
    """

    path: Path
    voxel_path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    stop: int
    slope: float | None
    intercept: float | None
    affine: Affine
    note: str | None


def unreadable(path: Path, error: BaseException) -> ImageError:
    """Return what to tell the user when a library or the system cannot read `path`."""
    remedy = "convert or copy the image again"
    is_torn = isinstance(error, (*DAMAGED, EOFError))
    if is_torn and is_gzip(path) and not has_gzip_magic(path):
        found = "a file in .gz that is not gzip"
        remedy = "convert or copy it again, or if it is a plain NIfTI rename it to .nii"
    elif isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        found = "something else behind its gzip stream"
    elif isinstance(error, DAMAGED):
        found = "a damaged gzip stream"  # the library's text quotes bytes of the file
    elif isinstance(error, EOFError):
        found = "a gzip stream that is cut short"
    elif isinstance(error, OSError) and error.strerror:
        found, remedy = error.strerror, "check the file, its links and its permissions"
    else:
        # nibabel repeats the path, which the error already carries.
        found = (str(error) or type(error).__name__).splitlines()[0].replace(str(path), "the file")
    return ImageError(path, expected="a readable NIfTI", found=found, remedy=remedy)


def open_image(path: Path) -> StoredImage:
    """Read and check a header.

    Parameters
    ----------
    path : `.nii` (NIfTI-1 or NIfTI-2), `.hdr` or `.img`, each with or without `.gz`

    Raises
    ------
    ImageError
        If a file is missing or not a regular one, not NIfTI, not 3D or 4D, larger than
        `MAX_VOXELS`, too short for what its header says, or has no usable orientation.
    """
    header_path, voxel_path, is_single = _files_of(path)
    for file in dict.fromkeys((header_path, voxel_path)):
        _check_file(file)
    try:
        with open_stream(header_path) as stream:
            block = stream.read(_HEADER_BYTES)
        header = _parse(header_path, block, is_single)
        shape = header.get_data_shape()
        check_shape(path, shape)
        start, stop = _check_size(path, voxel_path, header)
        # What overflows is found too large afterwards.
        with np.errstate(all="ignore"):
            affine, note = _world_affine(path, header)
        slope, intercept = header.get_slope_inter()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return StoredImage(
        path=path,
        voxel_path=voxel_path,
        shape=shape,
        dtype=header.get_data_dtype(),
        start=start,
        stop=stop,
        slope=slope,
        intercept=intercept,
        affine=affine,
        note=note,
    )


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that an image consists of: one, or header and voxels.

    Raises
    ------
    ImageError
        If the name is not that of a NIfTI.
    """
    return tuple(dict.fromkeys(_files_of(path)[:2]))


def _files_of(path: Path) -> tuple[Path, Path, bool]:
    """Return the files of header and voxels, and whether they are one."""
    packed = path.suffix if is_gzip(path) else ""
    stem = path.with_name(path.name.removesuffix(packed))
    if stem.suffix == ".nii":
        return path, path, True
    if stem.suffix in (".hdr", ".img"):
        header, voxels = (stem.with_name(f"{stem.stem}{end}{packed}") for end in (".hdr", ".img"))
        return header, voxels, False
    _check_file(path)
    remedy = "convert it to NIfTI, with a name in .nii or .nii.gz"
    raise ImageError(path, expected="a NIfTI file", found=_kind_of(path), remedy=remedy)


def _kind_of(path: Path) -> str:
    with contextlib.suppress(*UNREADABLE):
        for kind in all_image_classes:
            if kind.path_maybe_image(path)[0]:
                return f"a {kind.__name__}"
    return "another kind of file"


def _check_file(path: Path) -> None:
    """Refuse what may not be opened, or never ends: a folder, a device, a pipe."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        found = "a link to nothing" if path.is_symlink() else "nothing"
        raise ImageError(
            path, expected="a NIfTI file", found=found, remedy="check the path"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ImageError(path, expected="a NIfTI file", found=found, remedy="check the path")


def _parse(path: Path, block: bytes, is_single: bool) -> Any:
    """Return nibabel's header of the version that the bytes are of."""
    kinds = (
        (nib.Nifti1Header, nib.Nifti2Header)
        if is_single
        else (nib.nifti1.Nifti1PairHeader, nib.nifti2.Nifti2PairHeader)
    )
    for kind in kinds:
        size = kind.template_dtype.itemsize
        if len(block) >= size and kind.may_contain_header(block):
            with _quiet_nibabel():
                header = kind(block[:size])
            magic = kind.single_magic if is_single else kind.pair_magic
            if header["magic"].item() == magic:
                return header
    found = f"no NIfTI header in its first {len(block)} bytes"
    remedy = "convert or copy the image again"
    raise ImageError(path, expected="a readable NIfTI", found=found, remedy=remedy)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from logging what is wrong with a header: our error is the one line to read."""
    nibabel_logger.disabled = True
    try:
        yield
    finally:
        nibabel_logger.disabled = False


def check_shape(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse what is no image of a head: two axes, or more voxels than memory.

    Raises
    ------
    ImageError
        If it is so.
    """
    found = f"shape {shape}"
    # A single slice stored with a third axis of 1 is 2D as well.
    if len(shape) not in (3, 4) or min(shape) < 1 or min(shape[:3]) < 2:
        remedy = "give a whole image, (x, y, z) or (x, y, z, frame)"
        raise ImageError(path, expected="a 3D or 4D image", found=found, remedy=remedy)
    if math.prod(shape) > MAX_VOXELS:
        expected = f"at most {MAX_VOXELS} voxels"
        raise ImageError(path, expected=expected, found=found, remedy="crop or average the image")


def _check_size(path: Path, voxel_path: Path, header: Any) -> tuple[int, int]:
    """Return where the voxels begin and end in their file, in bytes, as the header says."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        remedy = "convert it to integers or floats"
        raise ImageError(path, expected="real numbers", found=f"voxels of {dtype}", remedy=remedy)
    offset = header.get_data_offset()
    least = header.single_vox_offset if header.is_single else 0
    remedy = "copy the image again"
    if offset < least:
        expected = "voxels behind the header"
        raise ImageError(path, expected=expected, found=f"vox_offset {offset}", remedy=remedy)
    size = voxel_path.stat().st_size
    claimed = int(offset) + math.prod(header.get_data_shape()) * dtype.itemsize
    possible = size * MAX_DEFLATE_RATIO if is_gzip(voxel_path) else size
    if claimed > possible:
        expected = f"{claimed} bytes, as its header says"
        found = f"a file of {size} bytes"
        raise ImageError(path, expected=expected, found=found, remedy=remedy)
    return int(offset), claimed


def _world_affine(path: Path, header: Any) -> tuple[Affine, str | None]:
    """Return the affine, (i, j, k, 1) to RAS+ mm, and a note where sform and qform disagree."""
    remedy = "give the image an orientation (sform or qform), for example by converting it again"
    # Without either code NIfTI does not say which side is left; guessing may mirror a patient.
    codes = [int(header[name]) for name in ("sform_code", "qform_code")]
    if max(codes) <= 0:
        found = "sform_code 0 and qform_code 0"
        raise ImageError(path, expected="a known orientation", found=found, remedy=remedy)
    affine = np.array(header.get_sform() if codes[0] > 0 else header.get_qform(), np.float64)
    if not _has_rank_3(affine):
        found = "less" if np.isfinite(affine).all() else "NaN or infinity in it"
        raise ImageError(path, expected="an affine of rank 3", found=found, remedy=remedy)
    note = None
    if min(codes) > 0:
        note = _compare_forms(path, header, affine)
    affine[:3] *= _MM_PER_UNIT[header.get_xyzt_units()[0]]
    check_extent(path, affine, header.get_data_shape()[:3])
    return affine, note


def affine_of(image: Any, path: Path) -> Affine:
    """Return the affine of a nibabel image in memory, (i, j, k, 1) to RAS+ mm, checked.

    Raises
    ------
    ImageError
        If it has none that says where left is, or one that no scanner has.
    """
    header = image.header
    if isinstance(header, nib.Nifti1Header):  # NIfTI-2 is a kind of it
        affine, _ = _world_affine(path, header)
        return affine
    affine = np.full((4, 4), np.nan) if image.affine is None else np.array(image.affine, np.float64)
    if not _has_rank_3(affine):
        remedy = "give the image an affine that places it in the world"
        raise ImageError(path, expected="an affine of rank 3", found="none", remedy=remedy)
    check_extent(path, affine, image.shape[:3])
    return affine


def _has_rank_3(affine: Affine) -> bool:
    if not np.isfinite(affine).all():
        return False
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    # Of the directions: the lengths of the axes may well differ by orders of magnitude.
    return bool(edges.min() > 0 and np.linalg.matrix_rank(affine[:3, :3] / edges, tol=1e-3) == 3)


def _corners(shape: tuple[int, ...]) -> Affine:
    """Return the corners of the image, (4, 8): (i, j, k, 1)."""
    ends = [(-0.5, size - 0.5) for size in shape]
    return np.array([[*corner, 1.0] for corner in itertools.product(*ends)]).T


def _compare_forms(path: Path, header: Any, sform: Affine) -> str | None:
    try:
        qform = np.array(header.get_qform(), np.float64)
    except (nib.spatialimages.HeaderDataError, ValueError):
        return None  # it says nothing that could contradict
    if not _has_rank_3(qform):
        return None
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0:
        raise ImageError(
            path,
            expected="one handedness in sform and qform",
            found="one that mirrors the other, so that left and right are not known",
            remedy="find out which is right and set both to it",
        )
    shape = header.get_data_shape()[:3]
    corners = _corners(shape)
    # In voxels: where the qform puts a corner, as seen by the sform.
    shift = np.abs(np.linalg.inv(sform) @ (qform @ corners) - corners)[:3].max()
    if shift <= _HALF_A_VOXEL:
        return None
    return f"sform and qform disagree by up to {shift:.1f} voxels; the sform is used"


def check_extent(path: Path, affine: Affine, shape: tuple[int, ...]) -> None:
    """Refuse voxel sizes and places that no scanner has.

    Parameters
    ----------
    affine, shape : (4, 4), (i, j, k, 1) to RAS+ mm, and the three sizes

    Raises
    ------
    ImageError
        If they are so.
    """
    remedy = "check voxel sizes, their unit and the affine in the header"
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges.min() < EDGE_MM[0] or edges.max() > EDGE_MM[1]:
        expected = f"voxels of {EDGE_MM[0]:g} to {EDGE_MM[1]:g} mm"
        found = " x ".join(map(_in_short, edges)) + " mm"
        raise ImageError(path, expected=expected, found=found, remedy=remedy)
    world = (affine @ _corners(shape))[:3]
    extents, distance = np.ptp(world, axis=1), float(np.abs(world).max())
    is_small = extents.max() <= MAX_EXTENT_MM and extents.prod() <= MAX_BOX_MM3
    if not is_small or distance > MAX_DISTANCE_MM:
        expected = f"an image of at most {MAX_EXTENT_MM:g} mm near the scanner's centre"
        expected += f", in a box of {MAX_BOX_MM3 / 1e9:g} m3"
        found = " x ".join(map(_in_short, extents))
        found += f" mm, up to {_in_short(distance)} mm away"
        raise ImageError(path, expected=expected, found=found, remedy=remedy)


def _in_short(value: float) -> str:
    """Three digits that count, without an exponent below a million."""
    return f"{float(f'{value:.3g}'):g}"
