"""What `ganbert serve` does with its options, and what it says where its packages are missing."""

from pathlib import Path

from ganbert.errors import PlatformError
from ganbert.serve.settings import Limits, Settings, check_exposure, read_token

_PACKAGES = ("fastapi", "starlette", "uvicorn")


def run(
    model: Path,
    *,
    host: str,
    port: int,
    device: str,
    token_file: Path | None,
    insecure: bool,
    work_dir: Path | None,
    limits: Limits,
) -> None:
    """Serve until told to stop; see `ganbert serve --help` for the parameters.

    Raises
    ------
    GanbertError
        Before anything listens: without a token where others can connect, for a model that cannot
        be read, without the packages of the extra `serve`.
    """
    token = read_token(token_file)
    check_exposure(host, token, insecure=insecure)
    try:
        import ganbert.serve.server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        remedy = "install it with: pip install 'ganbert[serve]'"
        raise PlatformError(
            "ganbert serve", expected="the package", found=f"no {error.name}", remedy=remedy
        ) from error
    devices = ganbert.serve.server.choose_devices(device)
    settings = Settings(model, devices, host, port, token, work_dir, limits)
    ganbert.serve.server.serve(settings)
