"""Whether the GPUs here can run what torch was compiled for, before anything else is tried.

A torch without code for a GPU imports, sees the device and fails at its first kernel, on every rank
at once and without saying why: torch's CUDA 13 builds on a V100.
"""

import re
from collections.abc import Iterable, Sequence

from ganbert.errors import PlatformError, one_line_errors

Capability = tuple[int, int]


def runs_on(capability: Capability, architectures: Iterable[str]) -> bool:
    """Say whether code for one of `architectures` runs on a GPU.

    Parameters
    ----------
    capability : of the GPU, as torch.cuda.get_device_capability gives it
    architectures : as torch.cuda.get_arch_list gives them

    Notes
    -----
    The rules of compatibility (CUDA C++ Programming Guide): `sm_XY` runs on the same major and no
    smaller minor, `compute_XY` is compiled by the driver for anything as new or newer, and a
    trailing `a` means that very architecture alone (`f`: its family, here its major).
    """
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if match is None:
            continue
        kind, suffix = match[1], match[4]
        built_for = int(match[2]), int(match[3])
        if suffix == "a":
            fits = capability == built_for
        elif kind == "compute" and not suffix:
            fits = capability >= built_for
        else:
            fits = capability[0] == built_for[0] and capability >= built_for
        if fits:
            return True
    return False


def require_code_for(
    gpus: Sequence[tuple[str, Capability]], architectures: Sequence[str], torch_version: str
) -> None:
    """Refuse GPUs that torch has no code for.

    Parameters
    ----------
    gpus : name and capability of each
    architectures : as torch.cuda.get_arch_list gives them

    Raises
    ------
    PlatformError
        Naming the first such GPU, what torch was built for, and what to do.
    """
    for number, (name, (major, minor)) in enumerate(gpus):
        if not runs_on((major, minor), architectures):
            raise PlatformError(
                f"GPU {number} ({name})",
                expected=f"a torch with code for sm_{major}{minor}",
                found=f"torch {torch_version} for {', '.join(architectures) or 'nothing'}",
                remedy="use the image of this GPU's generation (docs/container.md)",
            )


def check_gpus() -> None:
    """Check every GPU that torch sees; see `require_code_for`."""
    import torch

    if torch.cuda.is_available():
        numbers = range(torch.cuda.device_count())
        gpus = [
            (torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in numbers
        ]
        require_code_for(gpus, torch.cuda.get_arch_list(), torch.__version__)


if __name__ == "__main__":
    with one_line_errors():
        check_gpus()
