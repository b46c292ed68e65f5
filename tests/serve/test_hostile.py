"""Two hundred hostile uploads: each is refused with a reason, and the service is none the worse."""

import gzip
import io
import socket
import zipfile
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest

from tests.serve.images import t1w
from tests.serve.running import OCTETS, RunningService

pytestmark = pytest.mark.slow  # starts the service itself

PLAIN, PACKED = t1w(0, packed=False), t1w(0)
DIM, DATATYPE, BITPIX, VOX_OFFSET, MAGIC, SFORM, SROW = 40, 70, 72, 108, 344, 254, 280
BODY_WITH_PATH = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../../etc/cron.d/x"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + PACKED + b"\r\n--x--\r\n"
)


def patched(offset: int, *values: object, dtype: str) -> bytes:
    """Return the T1w with another value in its header."""
    content = bytearray(PLAIN)
    new = np.array(values, dtype).tobytes()
    content[offset : offset + len(new)] = new
    return bytes(content)


def wrong_types() -> Iterator[tuple[str, bytes]]:
    """Files of other kinds."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../t1w.nii", PLAIN)
    others = {
        "zip": archive.getvalue(), "nothing": b"", "a byte": b"\x00", "text": b"hello " * 100,
        "json": b'{"a": 1}', "html": b"<script>alert(1)</script>" * 50,
        "png": b"\x89PNG\r\n\x1a\n" + bytes(2000), "dicom": bytes(128) + b"DICM" + bytes(2000),
        "elf": b"\x7fELF" + bytes(2000), "pickle": b"\x80\x04\x95" + bytes(600),
        "zeros": bytes(5000), "ones": b"\xff" * 5000, "shell": b"#!/bin/sh\nrm -rf /\n" * 40,
    }  # fmt: skip
    for name, content in others.items():
        yield name, content
        yield f"{name}, packed", gzip.compress(content)
    yield "packed twice", gzip.compress(PACKED)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that say they are large, or become it."""
    yield "a tail of 300 MB", gzip.compress(PLAIN) + gzip.compress(bytes(300 << 20), 9)
    claims = patched(DIM, 3, 500, 500, 500, dtype="<i2")
    yield "125 MB claimed and 120 there", gzip.compress(claims + bytes(120 << 20), 9)
    yield "100000 empty streams", PACKED[:2000] + gzip.compress(b"", mtime=0) * 100_000
    yield "nothing but empty streams", gzip.compress(b"", mtime=0) * 100_000
    for edge in (1000, 2000, 32767):
        for packed in (False, True):
            content = patched(DIM, 3, edge, edge, edge, dtype="<i2")
            name = f"{edge}^3 voxels, packed {packed}"
            yield name, gzip.compress(content) if packed else content


def broken_headers() -> Iterator[tuple[str, bytes]]:
    """Fields that contradict the file, or make no sense."""
    for number in (0, -1, 1, 2, 5, 7, 8, 255, -32768):
        yield f"dim[0] = {number}", patched(DIM, number, dtype="<i2")
    for axis in (1, 2, 3):
        for size in (0, -1, 1, 32767):
            yield f"dim[{axis}] = {size}", patched(DIM + 2 * axis, size, dtype="<i2")
    yield "two frames", patched(DIM, 4, 16, 18, 7, 2, dtype="<i2")
    for code in (0, 1, 32, 128, 1792, 2304, 9999, -1):
        yield f"datatype {code}", patched(DATATYPE, code, dtype="<i2")
    for offset in (-1, 0, 10, 1e9, 1e30, np.nan, np.inf):
        yield f"vox_offset {offset}", patched(VOX_OFFSET, offset, dtype="<f4")
    for magic in (b"ni1\0", b"xxxx", b"n+3\0", b"\0\0\0\0"):
        yield f"magic {magic!r}", PLAIN[:MAGIC] + magic + PLAIN[MAGIC + 4 :]
    for value in (0, np.nan, np.inf, 1e20, -1e-30):
        yield f"a row of the affine is {value}", patched(SROW, *[value] * 4, dtype="<f4")
    yield "no orientation", patched(SFORM - 2, 0, 0, dtype="<i2")


def torn() -> Iterator[tuple[str, bytes]]:
    """Files that end early, or whose bytes have changed on the way."""
    rng = np.random.default_rng(0)
    for length in sorted(rng.integers(1, len(PLAIN), 30)):
        yield f"{length} bytes", PLAIN[:length]
    for length in sorted(rng.integers(2, len(PACKED), 40)):
        yield f"{length} packed bytes", PACKED[:length]
    for place in sorted(rng.integers(len(PACKED) // 4, len(PACKED) - 8, 40)):
        changed = bytearray(PACKED)
        changed[place : place + 4] = bytes(byte ^ 0xFF for byte in changed[place : place + 4])
        yield f"damaged at {place}", bytes(changed)


def wrong_requests() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """A sound image, sent in a way that is not taken."""
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    yield "a form whose file name is a path", BODY_WITH_PATH, form
    for kind in ("application/x-www-form-urlencoded", "text/plain", "image/png", "", "*/*", "a/b;"):
        yield f"Content-Type {kind!r}", PACKED, {"Content-Type": kind}
    yield "9 MB", bytes(9_000_000), OCTETS


UPLOADS = [
    (name, content, OCTETS)
    for family in (wrong_types, bombs, broken_headers, torn)
    for name, content in family()
] + list(wrong_requests())
PATHS = [
    f"/v1/jobs/{name}{end}"
    for name in ("..", "../../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..", "%00",
                 "a" * 3000, "~root", "%25s%25n", "'; drop table jobs", "%ff%fe")
    for end in ("", "/pet.nii.gz", "/events")
]  # fmt: skip


def test_two_hundred_hostile_uploads(service: RunningService) -> None:
    assert len(UPLOADS) >= 200
    workers = {process.pid for process in service.workers}
    service.finish(service.upload(PACKED).json["id"])
    memory, files = service.memory(), service.files()
    wrong = []
    for name, content, headers in UPLOADS:
        answer = service.ask("POST", "/v1/jobs", content, headers)
        if not 400 <= answer.status < 500 or len(answer.json["detail"]) < 20:
            wrong.append((name, answer.status, answer.body[:200]))
        assert str(service.work_dir) not in answer.body.decode(), name
    assert not wrong
    assert service.files() == files
    assert {process.pid for process in service.workers} == workers
    assert service.memory() - memory < 64 << 20
    job = service.finish(service.upload(PACKED).json["id"])
    assert job["state"] == "done"
    assert service.metric('ganbert_serve_failures_total{kind="internal"}') == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_only_ever_the_id_of_a_job(service: RunningService, path: str) -> None:
    answer = service.ask("GET", path.replace(" ", "%20"))
    assert answer.status == 404
    assert b"root:" not in answer.body


def test_values_that_only_a_worker_sees_fail_the_job_with_a_reason(service: RunningService) -> None:
    flat = PLAIN[:352] + bytes(len(PLAIN) - 352)
    bad = PLAIN[:352] + np.full((len(PLAIN) - 352) // 4, np.nan, "<f4").tobytes()
    for content, reason in ((flat, "contrast"), (bad, "NaN")):
        job = service.finish(service.upload(content).json["id"])
        assert job["state"] == "failed"
        assert job["failure"]["kind"] == "image"
        assert reason in job["failure"]["reason"]
        assert str(service.work_dir) not in job["failure"]["reason"]
        answer = service.ask("GET", job["links"]["pet"])
        assert answer.status == 422
        assert reason in answer.json["detail"]


def talk(service: RunningService, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(text)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_an_announced_length_is_refused_before_a_byte_is_sent(service: RunningService) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    answer = talk(service, head + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    for length in (b"-1", b"1e3", b"0x10", b"12, 13"):
        answer = talk(service, head + b"Content-Length: " + length + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 4"), length


def test_a_body_in_chunks_is_counted(service: RunningService) -> None:
    def chunks() -> Iterator[bytes]:
        yield PACKED
        for _ in range(100):
            yield bytes(100_000)

    answer = service.ask("POST", "/v1/jobs", chunks(), OCTETS, encode_chunked=True)
    assert answer.status == 413
    good = service.ask("POST", "/v1/jobs", iter([PACKED]), OCTETS, encode_chunked=True)
    assert good.status == 202
    service.finish(good.json["id"])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_image_whose_sender_goes_is_deleted_and_not_computed(
    service: RunningService, share: float
) -> None:
    """Where all was sent it is being looked through, and nobody has an id to delete the job by."""
    volume = np.random.default_rng(0).integers(0, 5, (220, 220, 220), np.int16)
    body = gzip.compress(nib.Nifti1Image(volume, np.eye(4)).to_bytes(), 1)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"

    def counts() -> dict[str, str]:
        lines = service.ask("GET", "/metrics").body.decode().splitlines()
        names = ('ganbert_serve_requests_total{code="', "ganbert_serve_failures_total")
        found = dict(line.split() for line in lines if line.startswith(names))
        return {name: value for name, value in found.items() if "metrics" not in name}

    before, files = counts(), service.files()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        connection.sendall(body[: round(share * len(body))])
    gone = 'ganbert_serve_requests_total{code="499",method="POST",route="/v1/jobs"}'
    num_gone = float(before.pop(gone, "0"))
    service.wait_until(lambda: float(counts().get(gone, "0")) > num_gone)
    after = counts()
    after.pop(gone)
    assert after == before
    assert service.files() == files
    assert "Traceback" not in service.log.read_text()
