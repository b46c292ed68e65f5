"""What this machine has, what each part is used for, and why a part is not used.

Only looks: nothing is compiled, allocated on a GPU or written. Every probe answers with a
`Finding`; if one finds something required missing, `run_doctor` ends with one line and exit code 2.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from ganbert.errors import PlatformError

Status = Literal["used", "not used", "warning", "missing"]
_COLOURS: dict[Status, str] = {
    "used": "green",
    "not used": "dim",
    "warning": "yellow",
    "missing": "red",
}
_MINIMUM_PYTHON = (3, 11)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_MINIMUM_SHARED_BYTES = 2**30
_DALI_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes
    ----------
    part : what was looked for
    status : "missing" means that GANBERT cannot run without it
    found : what is there
    use : what it is used for, or why it is not
    """

    part: str
    status: Status
    found: str
    use: str


def _command_output(*command: str) -> str:
    """Return the output of a command, or nothing if it is absent or fails."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    answer = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_python() -> Finding:
    """Look at the interpreter."""
    version = platform.python_version()
    if sys.version_info < _MINIMUM_PYTHON:
        return Finding("Python", "missing", version, "3.11 or newer is needed")
    return Finding("Python", "used", version, f"runs everything ({sys.executable})")


def find_gpus() -> Iterator[Finding]:
    """Look at the GPUs that torch sees, and whether its build has kernels for them."""
    if not torch.cuda.is_available():
        found = _command_output("nvidia-smi", "-L").splitlines()
        if found and torch.version.cuda is None:
            use = "torch is a CPU build: install a CUDA build (TORCH_INDEX in the Makefile)"
            yield Finding("GPU", "warning", f"{len(found)}, unseen by torch", use)
        else:
            yield Finding("GPU", "not used", "none", "training and inference run on the CPU")
        return
    kernels = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        found_device = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
        capability = f"sm_{device.major}{device.minor}"
        # A build for sm_80 also runs on sm_86: binaries hold within one major version.
        if any(re.fullmatch(rf"(sm|compute)_{device.major}\d[a-z]?", name) for name in kernels):
            yield Finding(
                f"GPU {number}", "used", found_device, f"training, inference ({capability})"
            )
        else:
            use = f"this torch has no kernels for {capability}, only {' '.join(kernels)}"
            yield Finding(f"GPU {number}", "warning", found_device, use)


def find_cuda() -> Finding:
    """Look at the CUDA of the driver, of torch and of the toolkit."""
    driver = re.search(r"CUDA[A-Za-z ]*Version:\s*([\d.]+)", _command_output("nvidia-smi"))
    toolkit = re.search(r"release ([\d.]+)", _command_output("nvcc", "--version"))
    found = (
        f"driver {driver[1] if driver else 'none'}, torch {torch.version.cuda or 'none'}, "
        f"toolkit {toolkit[1] if toolkit else 'none'}"
    )
    if not torch.cuda.is_available():
        return Finding("CUDA", "not used", found, "no GPU that torch can use")
    if toolkit is None:
        return Finding(
            "CUDA", "used", found, "GPU kernels; without nvcc no fused DeepSpeed operation"
        )
    return Finding("CUDA", "used", found, "GPU kernels; nvcc compiles DeepSpeed's fused operations")


def find_torch() -> Finding:
    """Look at torch and at the precision that suits the machine."""
    if torch.cuda.is_available():
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    else:
        cpu_flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        native = "amx_bf16" in cpu_flags or "avx512_bf16" in cpu_flags
        precision = "fp32 (bf16 also runs)" if native else "fp32 (bf16 only emulated, far slower)"
    return Finding(
        "torch", "used", torch.__version__, f"networks and autograd; recipes: {precision}"
    )


def _deepspeed_operations() -> tuple[list[str], list[str]]:
    """Names of the operations that are installed, and of those that this machine can build."""
    versions = importlib.import_module("deepspeed.git_version_info")
    builders = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
    compatible = []
    for name, builder in builders.items():
        instance = builder() if isinstance(builder, type) else builder
        if name != "deepspeed_not_implemented" and instance.is_compatible(verbose=False):
            compatible.append(name)
    return [name for name, is_there in versions.installed_ops.items() if is_there], compatible


def find_deepspeed() -> Iterator[Finding]:
    """Look at DeepSpeed and its compiled operations."""
    if not torch.cuda.is_available():
        # Says what DeepSpeed would find out by itself, with a warning on every start.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    version = _package_version("deepspeed")
    if version is None:
        yield Finding("DeepSpeed", "missing", "nothing", "launcher and engines of the training")
        return
    yield Finding("DeepSpeed", "used", version, "launcher and engines of the training")
    installed, compatible = _deepspeed_operations()
    found = f"{len(installed)} installed, {len(compatible)} compatible"
    use = "built on first use: " + (", ".join(compatible) or "none")
    yield Finding("DeepSpeed operations", "used" if compatible else "not used", found, use)


def find_dali() -> Finding:
    """Look at DALI and at the path that the images take through it."""
    package = next((name for name in _DALI_PACKAGES if _package_version(name)), None)
    if package is None:
        use = "streams the images; install the extra cuda12 or cuda13"
        return Finding("DALI", "missing", "nothing", use)
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        return Finding(
            "DALI", "missing", f"{package}, which fails to load: {error}", "streams the images"
        )
    where = "the GPU" if torch.cuda.is_available() else "the CPU (no GPU)"
    found = f"{package} {_package_version(package)}"
    return Finding("DALI", "used", found, f"streams and normalises the images on {where}")


def find_shared_memory(folder: Path = _SHARED_MEMORY) -> Finding:
    """Look at the memory that processes share, of which a container has 64 MB unless told."""
    use = "images of processes that read without a cache; NCCL"
    try:
        size = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding(str(folder), "warning", error.strerror or "nothing", f"{use}; mount a tmpfs")
    found = f"{size / 2**30:.2f} GiB"
    if size < _MINIMUM_SHARED_BYTES:
        remedy = (
            "at least 1 GiB: docker run --shm-size=1g (or --ipc=host); Kubernetes: an emptyDir "
            f"with medium: Memory on {folder}"
        )
        return Finding(str(folder), "warning", found, f"{use}; {remedy}")
    return Finding(str(folder), "used", found, use)


def find_apex() -> Finding:
    """Look at NVIDIA apex, and tell it from the other project of that name."""
    version = _package_version("apex")
    if importlib.util.find_spec("apex") is None:
        return Finding(
            "apex", "not used", "nothing", "not needed: torch's own layer norm and Adam serve"
        )
    if importlib.util.find_spec("apex.optimizers") is None:
        use = "this is not NVIDIA apex; uninstall it, or build NVIDIA's from its source"
        return Finding("apex", "warning", f"another package, {version or 'unknown'}", use)
    return Finding("apex", "not used", version or "NVIDIA apex", "detected, not used yet")


def find_communication() -> Finding:
    """Look at what carries gradients between processes."""
    distributed = torch.distributed
    if torch.cuda.is_available() and distributed.is_nccl_available():
        version = ".".join(str(part) for part in torch.cuda.nccl.version())
        return Finding("NCCL", "used", version, "gradients between GPUs")
    if distributed.is_available() and distributed.is_gloo_available():
        return Finding(
            "gloo", "used", f"of torch {torch.__version__}", "gradients between CPU processes"
        )
    return Finding("NCCL or gloo", "missing", "nothing", "gradients between processes")


def find_compiler() -> Iterator[Finding]:
    """Look at what DeepSpeed compiles its operations with."""
    use = "compiles DeepSpeed's operations on first use"
    remedy = "; apt-get install -y "
    compiler = os.environ.get("CXX", "g++")
    version = _command_output(compiler, "--version").splitlines()
    if version:
        yield Finding("C++ compiler", "used", version[0], use)
    else:
        yield Finding("C++ compiler", "missing", "nothing", f"{use}{remedy}g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.exists():
        yield Finding("Python headers", "used", str(header.parent), use)
    else:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        yield Finding("Python headers", "missing", "nothing", f"{use}{remedy}{package}")
    ninja = _package_version("ninja")
    status: Status = "used" if ninja else "missing"
    yield Finding("ninja", status, ninja or "nothing", use)


def find_libraries() -> Iterator[Finding]:
    """Look at the libraries that each serve one purpose."""
    for name, use in (
        ("transformers", "BERT, the discriminator"),
        ("nibabel", "reads and writes NIfTI"),
        ("isal", "decompresses .nii.gz"),
        ("pybids", "finds the images of a BIDS dataset"),
        ("nilearn", "anatomy of the phantom, figures"),
        ("torchmetrics", "PSNR and SSIM in 3D"),
        ("prometheus-client", "/metrics of a training"),
    ):
        version = _package_version(name)
        yield Finding(name, "used" if version else "missing", version or "nothing", use)
    for name in ("tensorboard", "wandb"):
        version = _package_version(name)
        use = f"a training's curves, if generator.json asks for {name}"
        yield Finding(name, "used" if version else "not used", version or "nothing", use)


def examine() -> list[Finding]:
    """Run every probe, in the order of the table."""
    single: tuple[Callable[[], Finding], ...] = (find_python, find_torch, find_cuda)
    findings = [probe() for probe in single]
    findings += find_gpus()
    findings += find_deepspeed()
    findings += [find_dali(), find_shared_memory(), find_apex(), find_communication()]
    findings += find_compiler()
    findings += find_libraries()
    return findings


def run_doctor() -> None:
    """Print the table.

    Raises
    ------
    PlatformError
        If something that GANBERT cannot run without is missing.
    """
    findings = examine()
    table = Table(title="GANBERT doctor", title_justify="left")
    for column in ("part", "", "found", "used for, or why not"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.part, f"[{colour}]{finding.status}[/]", finding.found, finding.use)
    Console().print(table)
    missing = [finding.part for finding in findings if finding.status == "missing"]
    if missing:
        raise PlatformError(
            "doctor",
            expected="everything that GANBERT needs",
            found=f"no {', no '.join(missing)}",
            remedy="the table above says what to install",
        )
