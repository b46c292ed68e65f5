"""Rules for every test: markers follow from the folder, and a skip says what is missing.

`tests/unit/...` gets the marker `unit`, `tests/gpu/...` gets `gpu`, and so on (`tests/numerics/...`
counts as unit); only `slow` is written by hand. Tests that need hardware or a program that is not
here skip with that reason, which pytest lists at the end of the run (`-ra`).
"""

import gc
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is no failure: 200 ms for an example, hypothesis's own limit, is soon gone on one.
settings.register_profile("ganbert", deadline=None)
settings.load_profile("ganbert")

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
    "images",
    "monitoring",
)
# What their tests start (images, a service, a cohort) is shared: each folder runs in one process.
# Of the others each file does.
SHARED = (
    *("browser", "chaos", "cluster", "distributed", "gpu", "images", "kubernetes", "monitoring"),
    "serve",
)
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


def _missing_containers() -> str | None:
    from tests.images.containers import missing

    return missing()


REQUIREMENTS = {
    "cluster": _missing_hosts,
    "gpu": _missing_gpu,
    "browser": _missing_browser,
    "kubernetes": _missing_kubectl,
    "serve": _missing_service,
    "images": _missing_containers,
}


class _ByFolder(LoadScopeScheduling):
    """Hands a worker a whole folder of SHARED, or a file of another one.

    Not by `xdist_group`, which pytest-xdist 3.8 writes into an attribute that pytest 9.2 does not
    read: each test went its own way, and each worker made all images.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = Path(file).parts[1]
        return folder if folder in SHARED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFolder:
    """Share the tests out by what they share."""
    return _ByFolder(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the collector of garbage away from what is imported and collected: it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set each test's marker from its folder, and skip what this machine cannot run."""
    missing: dict[str, str | None] = {}
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"{item.path}: tests stand in one of {', '.join(FOLDERS)}")
        item.add_marker("unit" if folder == "numerics" else folder)
        if folder in REQUIREMENTS:
            if folder not in missing:
                missing[folder] = REQUIREMENTS[folder]()
            if missing[folder] is not None:
                item.add_marker(pytest.mark.skip(reason=missing[folder]))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Images late, when what makes them beside the tests is done; unit tests last: short files.

    With short ones at the end no worker is at a long one while the other has nothing left.
    """
    folder = item.path.relative_to(TESTS).parts[0]
    return {"images": 1, "numerics": 2, "unit": 2}.get(folder, 0)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test draws the same numbers alone and among others."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return TESTS.parent


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder of an untrained generator on the tiny grids. Copy it to damage it."""
    import torch

    from ganbert.checkpoint import export_generator
    from ganbert.config import GRIDS, GeneratorConfig
    from ganbert.models.generator import build_generator

    config, (mri_grid, pet_grid) = GeneratorConfig(channels=(4, 8)), GRIDS["tiny"]
    torch.manual_seed(0)
    card = {
        "ganbert_version": "0",
        "generator": config,
        "mri_grid": mri_grid,
        "pet_grid": pet_grid,
        "intensity_ratio": 0.01,
        "tracer": "AV45",
        "unit": "SUVR",
        "data_range": (0.0, 3.0),
        "frame_start_s": (3000.0, 3300.0),
        "frame_duration_s": (300.0, 300.0),
        "num_steps": 1,
        "num_training_rows": 1,
        "index_sha256": "0" * 64,
    }
    weights = build_generator(config, mri_grid, pet_grid).state_dict()
    return export_generator(tmp_path_factory.mktemp("run"), weights, card)
