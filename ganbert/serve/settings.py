"""What an operator decides: where the service listens, who may use it, and every limit.

A limit guards one resource each: disk (upload), memory (voxels), time (upload, job), places in the
queue, and how long a person's image lies here.
"""

import hmac
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from ganbert.errors import ConfigError

TOKEN_VARIABLE = "GANBERT_SERVE_TOKEN"  # noqa: S105
LEAST_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Limits:
    """What one upload, and all of them together, may cost.

    Attributes
    ----------
    upload_bytes : of the file as it is sent
    image_bytes : of the file decompressed; against gzip bombs
    voxels : of the image; a worker takes some 30 bytes a voxel
    queue : uploads that are being received or wait; one more is told to come back (429)
    upload_seconds : that an upload may take
    job_seconds : that a worker may take for one image before it is killed
    keep_seconds : that a result is kept after its job has ended
    drain_seconds : after SIGTERM, for what is queued and for results to be fetched
    """

    upload_bytes: int = 256_000_000
    image_bytes: int = 1 << 30
    voxels: int = 512**3
    queue: int = 16
    upload_seconds: float = 120.0
    job_seconds: float = 600.0
    keep_seconds: float = 3600.0
    drain_seconds: float = 300.0


@dataclass(frozen=True)
class Settings:
    """Everything that `ganbert serve` was asked for.

    Attributes
    ----------
    model : a run, its export, or a file of the export
    devices : of torch, one worker process each
    host, port : to listen on; port 0: a free one
    token : that every request for data must carry; None: anybody who can connect may use it
    work_dir : in which the private folder is made; None: the system's folder for temporary files
    """

    model: Path
    devices: tuple[str, ...] = ("cpu",)
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    work_dir: Path | None = None
    limits: Limits = Limits()

    def accepts(self, token: str | None) -> bool:
        """Whether a request with this token may see data; takes as long for any wrong one."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment; None where there is neither.

    Never an option of the command line, which every user of the machine can read.

    Raises
    ------
    ConfigError
        If the file cannot be read, or the token is short, not ASCII or of several words.
    """
    where = str(file) if file else f"${TOKEN_VARIABLE}"
    remedy = "write a random one, for example that of `openssl rand -hex 32`"
    try:
        text = file.read_text() if file else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "no text"
        raise ConfigError(where, expected="a token", found=found, remedy=remedy) from error
    if text is None:
        return None
    token = text.strip()
    if len(token) < LEAST_TOKEN_LENGTH or not token.isascii() or len(token.split()) != 1:
        expected = f"one word of at least {LEAST_TOKEN_LENGTH} ASCII characters"
        raise ConfigError(where, expected=expected, found="another text", remedy=remedy)
    return token


def check_exposure(host: str, token: str | None, *, insecure: bool) -> None:
    """Refuse to offer images of people to a network without a token, unless told to.

    Raises
    ------
    ConfigError
        If the address is not one of this machine alone, there is no token, and not `insecure`.
    """
    if token is None and not insecure and not is_loopback(host):
        raise ConfigError(
            f"--host {host}",
            expected="a token, since others can reach this address",
            found="none",
            remedy=f"give --token-file or ${TOKEN_VARIABLE}, listen on 127.0.0.1, or say "
            "--insecure if something before the service asks who is there",
        )


def is_loopback(host: str) -> bool:
    """Whether every address that `host` stands for is of this machine alone.

    Raises
    ------
    ConfigError
        If the name stands for no address.
    """
    if not host:
        return False  # every address that there is
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}", expected="an address of this machine", found="none of that name",
            remedy="give 127.0.0.1, 0.0.0.0 or an address that `ip address` lists",
        ) from error  # fmt: skip
    return all(ipaddress.ip_address(str(line[4][0]).split("%")[0]).is_loopback for line in found)
