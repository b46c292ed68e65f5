"""Voxels are what nibabel reads, bit for bit, whatever their type, scaling and order."""

import gzip
import hashlib
import itertools
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from ganbert.data.nifti import read_volume
from ganbert.data.nifti_header import open_image
from ganbert.data.nifti_voxels import MAX_TRAILING_BYTES, read_stored
from ganbert.errors import ImageError

TYPES = ("u1", "i1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<f4", ">f4", "<f8")


def stored_image(
    dtype: str, shape: tuple[int, ...], slope: float, intercept: float
) -> nib.Nifti1Image:
    """An image with just these numbers on disk, so that slope and intercept have work to do."""
    rng, kind = np.random.default_rng(0), np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        array = rng.integers(limits.min, limits.max, shape, kind.newbyteorder("="), endpoint=True)
    else:
        array = rng.normal(0, 1e4, shape)
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(kind)
    # int64 would otherwise be refused as ambiguous.
    image = nib.Nifti1Image(array.astype(kind), np.diag([2.0, 2, 2, 1]), header, dtype=kind)
    image.header["scl_slope"], image.header["scl_inter"] = slope, intercept
    return image


def write_stored(path: Path, image: nib.Nifti1Image) -> None:
    content = image.header.copy()
    content["vox_offset"] = 352
    content["magic"] = b"n+1"
    voxels = np.asarray(image.dataobj).tobytes(order="F")
    whole = content.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(whole, 1) if path.suffix == ".gz" else whole)


@given(
    dtype=st.sampled_from(TYPES),
    shape=st.sampled_from([(2, 3, 4), (17, 2, 33), (5, 16, 15, 3)]),
    slope=st.sampled_from([1.0, 0.5, -0.037, 123.456, 1e-5, 0.0]),
    intercept=st.sampled_from([0.0, 3.0, -1024.0, 0.1]),
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_values_are_those_of_nibabel(
    dtype: str,
    shape: tuple[int, ...],
    slope: float,
    intercept: float,
    axes: list[int],
    flips: tuple[int, int, int],
    suffix: str,
    tmp_path: Path,
) -> None:
    image = stored_image(dtype, shape, slope, intercept)
    orientation = np.column_stack([axes, flips])
    turned = image.affine @ inv_ornt_aff(orientation, shape[:3])
    image.header.set_sform(turned, "scanner")
    path = tmp_path / f"a{suffix}"
    write_stored(path, image)
    expected = np.asarray(nib.load(path).dataobj, np.float32)
    found = read_volume(path)
    # To the closest RAS+ order by nibabel itself, then to (C, D, H, W).
    expected = apply_orientation(expected, nib.io_orientation(turned))
    expected = expected.reshape((*expected.shape, 1)[:4]).transpose(3, 1, 2, 0)
    np.testing.assert_array_equal(found.array, expected)
    assert found.array.flags.c_contiguous


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii.gz"):
        path = tmp_path / name
        write_stored(path, stored_image("<i2", (5, 6, 7), 1.0, 0.0))
        # Zeros that some writers append belong to the file as well.
        path.write_bytes(path.read_bytes() + bytes(3 << 20 if name == "a.nii" else 100))
        digest = hashlib.sha256()
        read_stored(open_image(path), digest)
        assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_memory_is_what_is_stored_and_the_result(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    shape = (160, 160, 160)
    write_stored(path, stored_image("<i2", shape, 0.5, 1.0))
    num = int(np.prod(shape))
    tracemalloc.start()
    try:
        read_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # int16 and float32; a growing buffer takes an eighth ahead; tiles and pieces of the file.
    assert peak < (2 * 9 / 8 + 4) * num + (6 << 20)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_stored(path, stored_image("<i2", (5, 6, 7), 1.0, 0.0))
    image = open_image(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ImageError, match="772 bytes, as its header says, found 762 in the file"):
        read_stored(image)


def test_voxels_far_behind_the_header_cost_no_memory(tmp_path: Path) -> None:
    image = stored_image("u1", (4, 5, 6), 1.0, 0.0)
    path = tmp_path / "a.nii.gz"
    content = image.header.copy()
    content["vox_offset"], content["magic"] = 352 + (64 << 20), b"n+1"
    voxels = np.asarray(image.dataobj).tobytes(order="F")
    path.write_bytes(gzip.compress(content.binaryblock + bytes(4 + (64 << 20)) + voxels, 1))
    tracemalloc.start()
    try:
        volume = read_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert volume.array.size == 120
    assert peak < 8 << 20


@pytest.mark.parametrize("members", [1, 2, 5])
def test_a_stream_of_several_members_is_one_image(members: int, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_stored(path, stored_image("<i2", (5, 6, 7), 1.0, 0.0))
    whole = path.read_bytes()
    cuts = np.linspace(0, len(whole), members + 1).astype(int)
    packed = b"".join(gzip.compress(whole[a:b]) for a, b in itertools.pairwise(cuts))
    (tmp_path / "b.nii.gz").write_bytes(packed + bytes(512))
    found = read_volume(tmp_path / "b.nii.gz").array
    np.testing.assert_array_equal(found, read_volume(path).array)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda packed: packed + b"text", "gzip stream"),
        (lambda packed: packed[:-4] + b"\0\0\0\0", "damaged gzip"),
        (lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:], "damaged gzip"),
        (lambda packed: packed[:-8], "cut short"),
        (lambda packed: packed + gzip.compress(bytes(MAX_TRAILING_BYTES + 1)), "more in the"),
    ],
)
def test_what_stands_behind_the_voxels_is_looked_at(
    change: object, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.nii.gz"
    write_stored(path, stored_image("<i2", (5, 6, 7), 1.0, 0.0))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ImageError, match=found):
        read_volume(path)


@pytest.mark.parametrize("content", [b"text", b"no image, but some text", b"text " * 1000])
def test_what_is_no_gzip_is_not_called_a_torn_one(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"not gzip; .*rename it to \.nii"):
        read_volume(path)
