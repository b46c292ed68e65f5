"""NIfTI: axes, orientation and scaling of what is read; bytes of what is written; bad files."""

import gzip
import itertools
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ganbert.data.nifti import (
    HEADER_BYTES,
    check_header,
    read_cache,
    read_volume,
    resample,
    write_cache,
    write_volume,
)
from ganbert.data.volume import Volume
from ganbert.errors import ImageError, OutputError

RAS_AFFINE = np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 1.5, 2], [0, 0, 0, 1]])
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def asymmetric() -> np.ndarray:
    """(X, Y, Z), each voxel different, each axis of another length."""
    return np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


def pet_volume() -> Volume:
    array = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    affine = np.array([[0, 0, 2.0, 1], [3, 0, 0, 2], [0, 4, 0, 3], [0, 0, 0, 1]])
    return Volume(array, affine, "SUVR")


def whole_file(tmp_path: Path, suffix: str) -> bytes:
    path = tmp_path / f"whole{suffix}"
    nib.Nifti1Image(asymmetric(), RAS_AFFINE).to_filename(path)
    return path.read_bytes()


def test_there_are_48_orientations() -> None:
    assert len(ORIENTATIONS) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_voxel_keeps_value_and_place_in_any_orientation(
    orientation: np.ndarray, tmp_path: Path
) -> None:
    array = asymmetric()
    nib.Nifti1Image(array, RAS_AFFINE).as_reoriented(orientation).to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    # By hand: x = 3, y = 1, z = 2 is w = 3, d = 1, h = 2, at (2*3-5, 3*1+7, 1.5*2+2) mm.
    assert volume.array[0, 1, 2, 3] == array[3, 1, 2]
    np.testing.assert_allclose(volume.affine @ [1, 2, 3, 1], [1, 10, 5, 1])
    assert volume.spacing_mm == (3.0, 1.5, 2.0)
    assert volume.array.flags.c_contiguous


def test_a_size_that_is_refused_is_said_without_an_exponent(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([2000.0, 2.0, 1500.4, 1.0]))
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(ImageError, match="found 2000 x 2 x 1500 mm"):
        read_volume(tmp_path / "a.nii")


def test_slope_intercept_and_metres_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((2, 3, 4), 10, np.int16), RAS_AFFINE / 1000)
    image.header.set_slope_inter(0.5, 3)
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "scaled.nii.gz")
    stored = nib.load(tmp_path / "scaled.nii.gz")
    volume = read_volume(tmp_path / "scaled.nii.gz")
    np.testing.assert_allclose(volume.array[0], stored.get_fdata().transpose(1, 2, 0))
    np.testing.assert_allclose(volume.spacing_mm, (3.0, 1.5, 2.0))


@pytest.mark.parametrize(
    ("shape", "num_frames"), [((4, 5, 6), 1), ((4, 5, 6, 1), 1), ((4, 5, 6, 3), 3)]
)
def test_three_and_four_axes(shape: tuple[int, ...], num_frames: int, tmp_path: Path) -> None:
    nib.Nifti1Image(np.ones(shape, np.float32), RAS_AFFINE).to_filename(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii", "Bq/mL").array.shape == (num_frames, 5, 6, 4)
    assert read_volume(tmp_path / "a.nii", "Bq/mL").unit == "Bq/mL"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_written_for_people_is_read_back_and_is_xyzt(suffix: str, tmp_path: Path) -> None:
    volume, path = pet_volume(), tmp_path / f"pet{suffix}"
    write_volume(path, volume)
    again = read_volume(path, "SUVR")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine)
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.get_fdata(), volume.array.transpose(3, 1, 2, 0))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_one_frame_is_written_as_3d(tmp_path: Path) -> None:
    volume = pet_volume()
    write_volume(tmp_path / "a.nii", Volume(volume.array[:1], volume.affine, "SUVR"))
    assert nib.load(tmp_path / "a.nii").shape == (5, 3, 4)


def test_integers_are_rounded_and_clipped(tmp_path: Path) -> None:
    array = np.array([-3.0, 1.4, 1.6, 254.6, 300.0, 7.0, 8.0, 9.0], np.float32).reshape(1, 2, 2, 2)
    write_volume(tmp_path / "a.nii", Volume(array, np.eye(4), "arbitrary"), dtype=np.uint8)
    assert read_volume(tmp_path / "a.nii").array.size == 8
    stored = np.sort(nib.load(tmp_path / "a.nii").get_fdata().ravel())
    np.testing.assert_array_equal(stored, [0, 1, 2, 7, 8, 9, 255, 255])


def test_the_same_volume_gives_the_same_bytes_without_text(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, pet_volume())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    header = nib.load(tmp_path / "a.nii.gz").header
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        assert header[field].item() == b""


def test_the_payload_of_a_cache_file_is_the_array(tmp_path: Path) -> None:
    volume, path = pet_volume(), tmp_path / "a.nii"
    write_cache(path, volume, dtype=np.float32)
    assert path.read_bytes()[HEADER_BYTES:] == volume.array.tobytes()
    for again in (read_cache(path, "SUVR"), read_volume(path, "SUVR")):
        np.testing.assert_array_equal(again.array, volume.array)
        np.testing.assert_allclose(again.affine, volume.affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_a_cache_file_can_be_mapped_into_memory(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_cache(path, pet_volume(), dtype=dtype)
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    assert isinstance(image.dataobj.get_unscaled(), np.memmap)
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    # Aligned, in memory that is the file: what is written to the file is in the array.
    assert array.flags.aligned
    assert HEADER_BYTES % 16 == 0
    with path.open("r+b") as stream:
        stream.seek(HEADER_BYTES)
        stream.write(np.array(77, dtype).tobytes())
    assert array[0, 0, 0, 0] == 77


@pytest.mark.parametrize("name", ["a.nii.gz", "a.img"])
def test_a_cache_is_not_compressed(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not compressed"):
        write_cache(tmp_path / name, pet_volume(), dtype=np.float32)


@pytest.mark.parametrize(("num_frames", "units"), [(1, ("mm", "unknown")), (2, ("mm", "sec"))])
def test_the_header_names_the_units_of_its_axes(
    num_frames: int, units: tuple[str, str], tmp_path: Path
) -> None:
    volume = pet_volume()
    write_volume(tmp_path / "a.nii", Volume(volume.array[:num_frames], volume.affine, "SUVR"))
    assert nib.load(tmp_path / "a.nii").header.get_xyzt_units() == units


@pytest.mark.parametrize("name", ["a.mgz", "missing/a.nii"])
def test_what_cannot_be_written_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_volume(tmp_path / name, pet_volume())
    assert list(tmp_path.iterdir()) == []


def test_resampling_onto_its_own_grid_changes_nothing() -> None:
    volume = pet_volume()
    again = resample(volume, volume.affine, volume.shape)
    np.testing.assert_allclose(again.array, volume.array, atol=1e-6)


def test_resampling_interpolates_and_is_zero_outside() -> None:
    array = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    shifted = np.eye(4)
    shifted[2, 3] = 0.5  # half a voxel along w
    result = resample(Volume(array, np.eye(4), "SUVR"), shifted, (2, 2, 4))
    # By hand: 0.5 between 0 and 1; then half of the last voxel; then nothing.
    np.testing.assert_allclose(result.array[0, 0, 0], [0.5, 0.5, 0.0, 0.0])


def zero_dimension(content: bytes) -> bytes:
    return content[:42] + b"\0\0" + content[44:]


def dimensions(*sizes: int) -> Callable[[bytes], bytes]:
    claim = np.array([len(sizes), *sizes, *[1] * (7 - len(sizes))], "<i2").tobytes()
    return lambda content: content[:40] + claim + content[56:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "readable NIfTI"),
    "truncated": (lambda content: content[:-8], "as its header says"),
    "wrong magic": (lambda content: b"x" * len(content), "readable NIfTI"),
    "wrong version": (lambda content: content[:344] + b"zz1\0" + content[348:], "readable NIfTI"),
    "zero size": (zero_dimension, "3D or 4D"),
    "negative size": (dimensions(-4, 5, 6), "3D or 4D"),
    "2D": (dimensions(4, 30), "3D or 4D"),
    "one slice": (dimensions(4, 30, 1), "3D or 4D"),
    "5D": (dimensions(4, 5, 2, 1, 3), "3D or 4D"),
    "larger than any image": (dimensions(30000, 30000, 30000), "at most"),
    "larger than the file": (dimensions(1000, 1000, 1000), "as its header says"),
    "unknown type": (lambda content: content[:70] + b"\xe7\x03" + content[72:], "readable NIfTI"),
    "no orientation": (lambda content: content[:252] + b"\0" * 4 + content[256:], "orientation"),
    "flat affine": (lambda content: content[:280] + content[296:312] + content[296:], "rank 3"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_clear_line(
    damage: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, message = DAMAGES[damage]
    path = tmp_path / f"bad{suffix}"
    content = change(whole_file(tmp_path, ".nii"))
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(ImageError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert "\n" not in str(caught.value)
    assert not caplog.records


@pytest.mark.parametrize("keep", [0, 1, 30, -40, -4])
def test_a_truncated_gzip_is_one_clear_line(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(whole_file(tmp_path, ".nii.gz")[:keep])
    with pytest.raises(ImageError, match="readable NIfTI"):
        read_volume(path)


def test_a_flipped_bit_in_a_gzip_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.nii.gz"
    content = bytearray(whole_file(tmp_path, ".nii.gz"))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError, match="readable NIfTI"):
        read_volume(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_voxels_that_are_not_finite(value: float, everywhere: bool, tmp_path: Path) -> None:
    array = asymmetric()
    array[slice(None) if everywhere else (0, 0, 0)] = value
    nib.Nifti1Image(array, RAS_AFFINE).to_filename(tmp_path / "a.nii")
    count = array.size if everywhere else 1
    with pytest.raises(ImageError, match=f"found {count} of {array.size} that are NaN"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colours_and_complex_numbers_are_refused(dtype: object, tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((4, 5, 6), dtype), RAS_AFFINE).to_filename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="real numbers"):
        read_volume(tmp_path / "a.nii")


def test_nothing_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found nothing"):
        read_volume(tmp_path / "none.nii")
    with pytest.raises(ImageError, match="found a folder"):
        read_volume(tmp_path)


def test_another_format_is_named(tmp_path: Path) -> None:
    nib.MGHImage(asymmetric(), RAS_AFFINE).to_filename(tmp_path / "a.mgz")
    with pytest.raises(ImageError, match="found a MGHImage"):
        read_volume(tmp_path / "a.mgz")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_versions_and_byte_orders(kind: type, endianness: str, suffix: str, tmp_path: Path) -> None:
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype("i2").newbyteorder(endianness))
    header.set_slope_inter(0.25, -3.0)
    image = kind(4 * asymmetric() + 12, RAS_AFFINE, header)
    # By hand: (4 a + 12) / 4 - 3 = a.
    image.header.set_slope_inter(0.25, -3.0)
    image.to_filename(tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(volume.array[0], asymmetric().transpose(1, 2, 0))
    np.testing.assert_allclose(volume.spacing_mm, (3.0, 1.5, 2.0))


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.nifti2.Nifti2Pair])
@pytest.mark.parametrize("named", [".hdr", ".img"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_header_and_voxels_in_two_files(
    kind: type, named: str, packed: str, tmp_path: Path
) -> None:
    kind(asymmetric(), RAS_AFFINE).to_filename(tmp_path / f"a.img{packed}")
    volume = read_volume(tmp_path / f"a{named}{packed}")
    np.testing.assert_array_equal(volume.array[0], asymmetric().transpose(1, 2, 0))
    (tmp_path / f"a.img{packed}").unlink()
    with pytest.raises(ImageError, match="found nothing"):
        read_volume(tmp_path / f"a{named}{packed}")


def test_analyze_knows_no_left_and_right(tmp_path: Path) -> None:
    nib.AnalyzeImage(asymmetric(), None).to_filename(tmp_path / "a.img")
    with pytest.raises(ImageError, match="no NIfTI header"):
        read_volume(tmp_path / "a.img")


def two_forms(tmp_path: Path, shift_mm: float, mirror: float = 1.0) -> Path:
    """An image whose qform is shifted along x against the sform, or mirrored; voxels of 2 mm."""
    image = nib.Nifti1Image(asymmetric(), RAS_AFFINE)
    other = RAS_AFFINE.copy()
    other[0, 3] += shift_mm
    other[0] *= mirror
    image.set_sform(RAS_AFFINE, "aligned")
    image.set_qform(other, "scanner")
    image.to_filename(tmp_path / "a.nii")
    return tmp_path / "a.nii"


def test_where_the_forms_disagree_the_sform_counts_and_that_is_noted(tmp_path: Path) -> None:
    assert check_header(two_forms(tmp_path, 0.9)) is None
    path = two_forms(tmp_path, 12.0)
    assert check_header(path) == "sform and qform disagree by up to 6.0 voxels; the sform is used"
    np.testing.assert_allclose(read_volume(path).affine @ [0, 0, 0, 1], [-5, 7, 2, 1])


def test_forms_that_mirror_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="left and right are not known"):
        check_header(two_forms(tmp_path, 0.0, mirror=-1.0))


@pytest.mark.parametrize(
    ("scale", "message"), [(1e4, "voxels of"), (1e-3, "voxels of"), (49.0, "at most 2500 mm")]
)
def test_sizes_that_no_scanner_has_are_refused(scale: float, message: str, tmp_path: Path) -> None:
    array = np.zeros((60, 2, 2), np.float32)
    nib.Nifti1Image(array, np.diag([scale, 1.5, 1.5, 1.0])).to_filename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=message):
        check_header(tmp_path / "a.nii")


def test_a_place_far_off_is_refused(tmp_path: Path) -> None:
    matrix = RAS_AFFINE.copy()
    matrix[1, 3] = 1e7
    nib.Nifti1Image(asymmetric(), matrix).to_filename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="near the scanner's centre"):
        check_header(tmp_path / "a.nii")


def test_values_beyond_any_unit_are_refused(tmp_path: Path) -> None:
    nib.Nifti1Image(asymmetric() * 1e34, RAS_AFFINE).to_filename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"at most 1e\+30"):
        read_volume(tmp_path / "a.nii")


def test_a_stream_that_goes_on_behind_the_voxels_is_left_early(tmp_path: Path) -> None:
    content = whole_file(tmp_path, ".nii")
    path = tmp_path / "padded.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(1000)))
    assert read_volume(path).shape == (5, 6, 4)
    path.write_bytes(gzip.compress(content + bytes(2 << 20)) + b"not even gzip")
    with pytest.raises(ImageError, match="more in the compressed stream"):
        read_volume(path)


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    with pytest.raises(ImageError, match="found a link to nothing"):
        read_volume(tmp_path / "a.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="symbolic links"):
        read_volume(tmp_path / "a.nii")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="a device or pipe"):
        read_volume(tmp_path / "a.nii")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *rest: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    whole_file(tmp_path, ".nii")
    # The administrator may read everything, so the mode of the file is no test.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match="found Permission denied"):
        check_header(tmp_path / "whole.nii")


def test_a_claim_that_the_stream_does_not_bear_out_costs_no_memory(tmp_path: Path) -> None:
    header = dimensions(500, 500, 500)(whole_file(tmp_path, ".nii"))  # 500 MB of float32
    noise = np.random.default_rng(0).bytes(1 << 20)
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(gzip.compress(header + noise, compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="500000352 bytes, as its header says, found 1049408"):
            read_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
