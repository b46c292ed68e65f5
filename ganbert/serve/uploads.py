"""An upload: received into a file of ours, never longer than allowed, and looked through.

What kind of file it is, its first bytes say; a name is not asked for. Looking through reads the
header, which is believed only as far as the file bears it out (`data/nifti_header`), and the whole
stream once, in small memory, so that what is truncated, damaged or a bomb is refused at the door.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.exceptions import HTTPException

from ganbert.data.inflate import GZIP_MAGIC, discard, is_gzip, open_stream
from ganbert.data.nifti_header import UNREADABLE, StoredImage, open_image, unreadable
from ganbert.errors import ImageError
from ganbert.serve.settings import Limits

_BLOCK = 512
MEDIA_TYPES = ("application/octet-stream", "application/gzip", "application/x-gzip")


def check_announcement(media_type: str | None, length: str | None, limits: Limits) -> None:
    """Refuse by the headers of the request, before a byte of the image is read.

    Only media types that no web form can send are taken, so that no foreign page can make a
    browser upload.

    Parameters
    ----------
    media_type : the Content-Type
    length : the Content-Length; None: the body comes in chunks, and is counted

    Raises
    ------
    HTTPException
        415 or 413
    """
    kind = (media_type or "").split(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        raise HTTPException(
            415,
            f"expected the image itself as the body, with Content-Type {MEDIA_TYPES[0]}, "
            "not a form; for example: curl --data-binary @T1w.nii.gz "
            f"-H 'Content-Type: {MEDIA_TYPES[0]}' ...",
        )
    if length is not None and length.isdecimal() and int(length) > limits.upload_bytes:
        raise _too_long(limits)


def _too_long(limits: Limits) -> HTTPException:
    return HTTPException(
        413, f"expected at most {limits.upload_bytes} bytes, found more; crop or compress the image"
    )


async def receive(chunks: AsyncIterator[bytes], place: Path, limits: Limits) -> Path:
    """Write the body of a request into a new file.

    Returns
    -------
    path of the file, whose name ends as its content begins: in `.nii` or `.nii.gz`

    Raises
    ------
    HTTPException
        400, 408 or 413
    """
    raw = place / "upload"
    count, head = 0, b""
    try:
        with raw.open("xb") as file:
            async with asyncio.timeout(limits.upload_seconds):
                async for chunk in chunks:
                    count += len(chunk)
                    if count > limits.upload_bytes:
                        raise _too_long(limits)
                    head = head if len(head) >= 2 else (head + chunk)[:2]
                    file.write(chunk)
    except TimeoutError as error:
        text = f"expected an upload of at most {limits.upload_seconds:g} s, found a longer one"
        raise HTTPException(408, text) from error
    if count == 0:
        raise HTTPException(400, "expected a T1w as the body, found nothing")
    return raw.rename(place / ("t1w.nii.gz" if head == GZIP_MAGIC else "t1w.nii"))


def look_through(path: Path, limits: Limits) -> tuple[str, ...]:
    """Check header and stream of an upload; no voxel is kept.

    Returns
    -------
    what the user should know although the image can be used

    Raises
    ------
    HTTPException
        413 if it is larger than the service allows, 422 if it cannot be used.
    """
    try:
        image = open_image(path)
        _check_size(image, limits)
        _check_length(image)
    except ImageError as error:
        text = f"expected {error.expected}, found {error.found}; {error.remedy}"
        raise HTTPException(422, " ".join(text.split())) from error
    return () if image.note is None else (image.note,)


def _check_size(image: StoredImage, limits: Limits) -> None:
    num_frames = math.prod(image.shape[3:])
    if num_frames != 1:
        raise ImageError(
            "T1w", expected="one volume", found=f"{num_frames} volumes",
            remedy="choose or average one",
        )  # fmt: skip
    num_voxels = math.prod(image.shape)
    if num_voxels > limits.voxels:
        text = f"expected at most {limits.voxels} voxels, found {num_voxels}; crop the image"
        raise HTTPException(413, text)
    if image.stop > limits.image_bytes:
        text = f"expected at most {limits.image_bytes} bytes decompressed, found {image.stop}"
        raise HTTPException(413, f"{text}; convert the voxels to int16")


def _check_length(image: StoredImage) -> None:
    """Read a compressed stream to its end and checksum; refuse what is shorter or longer.

    Zeros that fill up the last block of 512 bytes are padding, and no part of the image.
    """
    packed = is_gzip(image.voxel_path)
    try:
        with open_stream(image.voxel_path) as stream:
            count = discard(stream, image.stop)
            tail = stream.read(_BLOCK) if count == image.stop else b""
    except UNREADABLE as error:
        raise unreadable(image.path, error) from error
    count += len(tail)
    is_padding = len(tail) < _BLOCK and count % _BLOCK == 0 and not any(tail)
    if count == image.stop or (count > image.stop and is_padding):
        return
    if not packed:
        found = f"{image.voxel_path.stat().st_size}"
    else:
        found = f"{count}" if len(tail) < _BLOCK else "more"
    expected = f"{image.stop} bytes{' decompressed' if packed else ''}, as its header says"
    remedy = "copy or convert the image again"
    raise ImageError("T1w", expected=expected, found=found, remedy=remedy)
