"""Rules for every test: markers follow from the folder, and a skip says what is missing.

`tests/unit/...` gets the marker `unit`, `tests/gpu/...` gets `gpu`, and so on (`tests/numerics/...`
counts as unit); only `slow` is written by hand. Tests that need hardware or a program that is not
here skip with that reason, which pytest lists at the end of the run (`-ra`).
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

# Before torch, transformers or matplotlib are imported by any test or child process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

TESTS = Path(__file__).parent
FOLDERS = (
    "unit",
    "numerics",
    "integration",
    "distributed",
    "cluster",
    "chaos",
    "kubernetes",
    "gpu",
    "browser",
    "serve",
)
# Where slow tests take the whole machine (ranks, hosts, browsers): one of them at a time, beside
# those that take one core.
WHOLE_MACHINE = ("distributed", "cluster", "chaos", "kubernetes", "gpu", "browser", "serve")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device on this machine"


def _missing_browser() -> str | None:
    found = any(shutil.which(name) for name in BROWSERS)
    return None if found else "no Chromium on this machine (apt-get install -y chromium)"


def _missing_hosts() -> str | None:
    from tests.cluster.hosts import missing

    return missing()


def _missing_kubectl() -> str | None:
    from tests.kubernetes.manifests import kubectl

    found = kubectl() is not None
    return None if found else "no kubectl with kustomize 5 or newer (make kubernetes-tools)"


def _missing_service() -> str | None:
    names = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    return f"no {' and no '.join(names)} (pip install .[serve])" if names else None


REQUIREMENTS = {
    "cluster": _missing_hosts,
    "gpu": _missing_gpu,
    "browser": _missing_browser,
    "kubernetes": _missing_kubectl,
    "serve": _missing_service,
