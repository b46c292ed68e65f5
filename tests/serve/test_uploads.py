"""An upload is as long as its header says: what is behind the voxels, and what is padding."""

import gzip
from pathlib import Path

import nibabel as nib
import pytest
from starlette.exceptions import HTTPException

from ganbert.data.nifti import read_volume
from ganbert.serve.settings import Limits
from ganbert.serve.uploads import look_through
from tests.serve.images import t1w

PLAIN = t1w(0, packed=False)
FILL = -len(PLAIN) % 512


def extended() -> bytes:
    """Return the T1w with a header extension, behind which the voxels begin later."""
    image = nib.Nifti1Image.from_bytes(PLAIN)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 700))
    return image.to_bytes()


def refusal(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    try:
        look_through(path, Limits())
    except HTTPException as error:
        return error.detail if error.status_code == 422 else f"{error.status_code}"
    return None


TOO_LONG = {
    "500 bytes": b"x" * 500,
    "500 zeros that end no block": bytes(500),
    "a block of zeros too much": bytes(FILL + 512),
    "100000 bytes": b"x" * 100_000,
    "a block filled up with text": b"x" * FILL,
    "one byte": b"\0",
}


@pytest.mark.parametrize("tail", TOO_LONG.values(), ids=TOO_LONG)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_extension", [False, True])
def test_what_is_longer_than_its_header_says_is_refused_with_both_numbers(
    with_extension: bool, packed: bool, tail: bytes, tmp_path: Path
) -> None:
    whole = extended() if with_extension else PLAIN
    if with_extension and set(tail) == {0}:
        tail = bytes(-len(whole) % 512 + (512 if len(tail) > 511 else 1))
    content = gzip.compress(whole + tail) if packed else whole + tail
    text = refusal(tmp_path / f"t1w.nii{'.gz' if packed else ''}", content)
    assert text is not None
    assert f"expected {len(whole)} bytes" in text
    is_counted = len(tail) < 512 or not packed
    assert f"found {len(whole) + len(tail) if is_counted else 'more'};" in text


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_as_long_as_it_says_or_padded_to_a_block_is_taken(
    packed: bool, tmp_path: Path
) -> None:
    assert FILL > 0
    path = tmp_path / f"t1w.nii{'.gz' if packed else ''}"
    for content in (PLAIN, PLAIN + bytes(FILL), extended()):
        assert refusal(path, gzip.compress(content) if packed else content) is None
        read_volume(path)
    if packed:  # gzip passes over zeros behind its stream
        assert refusal(path, gzip.compress(PLAIN) + bytes(5000)) is None


@pytest.mark.parametrize("tail", [b"some garbage", b"x" * 100_000])
def test_what_is_behind_a_gzip_stream_is_named(tail: bytes, tmp_path: Path) -> None:
    text = refusal(tmp_path / "t1w.nii.gz", gzip.compress(PLAIN) + tail)
    assert text is not None
    assert "behind its gzip stream" in text
