"""The house stands: imports go strictly down, and each third party has one door.

The table below is the architecture. A new module must be entered here, which is the moment to think
about where it belongs (docs/architecture.md).
"""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ganbert"
# From the ground up: each floor sees those before it, and nothing of its own.
FLOORS = (
    {"errors"},
    {"cores", "strict"},
    {
        "atomic",
        "bids_options",
        "config",
        "exchange",
        "gpu_arch",
        "infiniband",
        "run_folder",
        "scrapes",
        "step_stats",
        "supervisor",
        "tables",
        "tracers",
        "umask",
        "weights_only",
    },
    {"exporter", "folder_lock", "monitor", "recipe", "train_options", "workers"},
    {"data", "models", "engine_keys"},  # two columns that never see each other
    {
        "agreement",
        "alarm",
        "checkpoint_files",
        "engine_config",
        "engine_files",
        "infer_inputs",
        "infer_log",
        "loss_scale",
        "losses",
        "meeting",
        "metrics",
        "model_card",
        "model_page",
        "ranks",
        "resuming",
        "sample_log",
        "scales",
        "seen",
        "stragglers",
        "telemetry",
        "token_bands",
    },
    {
        "burden",
        "checkpoint",
        "derivatives",
        "engines",
        "infer_outcome",
        "predict",
        "preflight",
        "prepared_folder",
        "quality",
        "report",
        "runs",
        "score_table",
    },
    {"synthesis"},
    {"export", "infer_group", "infer_output", "pair_checks", "planning", "steps", "validation"},
    {
        "train",
        "launch",
        "prepare",
        "evaluate",
        "infer",
        "cli",
        "doctor",
        "inspection",
        "model_table",
        "serve",
    },
    {"container"},
)
# The same inside data/.
DATA_FLOORS = (
    {"volume", "index", "regions", "refusals", "sample_order", "inflate"},
    {"nifti_header", "sidecar", "pairing", "frames", "units", "augmentation", "split"},
    {"nifti_voxels"},
    {"nifti", "phantom_template", "bids_index", "columns"},
    {"phantom_anatomy", "recast", "bids_tables", "layout_adni", "layout_table"},
    {"phantom_uptake", "phantom_scanner", "layout_bids"},
    {"phantom_bids"},
    {"conform", "layouts", "phantom", "pipeline", "row_record"},
    {"row_images", "reference", "image_streams"},
    {"direct"},
    {"cache"},
    {"loader"},
)
# And inside serve/.
SERVE_FLOORS = (
    {"settings", "measures", "folder", "problems", "jobs", "schemas", "pages"},
    {"uploads", "wire", "worker", "worker_process"},
    {"pool"},
    {"routes"},
    {"application"},
    {"server"},
    {"command"},
)
# And inside cli/.
CLI_FLOORS = (
    {"options", "verbs"},
    {"cohort", "training", "trained", "machine"},
    {"application"},
    {"__main__"},
)
PACKAGES = {"data.": DATA_FLOORS, "serve.": SERVE_FLOORS, "cli.": CLI_FLOORS}
ONLY_IMPORTERS = {
    "fastapi": {"serve.application", "serve.pages", "serve.problems", "serve.routes"},
    "starlette": {
        "serve.pages",
        "serve.problems",
        "serve.routes",
        "serve.uploads",
        "serve.wire",
    },
    "uvicorn": {"serve.server"},
    "isal": {"data.inflate"},
    "deepspeed": {"engines", "engine_config", "engine_files", "monitor", "doctor"},
    "prometheus_client": {"exporter", "serve.measures", "serve.routes"},
    "nvidia": {"data.pipeline", "data.loader", "doctor"},
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def floor_of(name: str, floors: tuple[set[str], ...] = FLOORS) -> int:
    for floor, names in enumerate(floors):
        if name in names:
            return floor
    raise AssertionError(f"{name} stands on no floor: enter it in {Path(__file__).name}")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            assert node.module is not None
            if f"{node.module}.".startswith("ganbert."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def imported_rooms(path: Path) -> set[str]:
    """Modules of ganbert that a file imports, without the leading `ganbert.`."""
    rooms = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "ganbert":
            continue
        for length in range(len(parts), 1, -1):
            if ".".join(parts[1:length]) in MODULES:
                rooms.add(".".join(parts[1:length]))
                break
    return rooms


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    own = module.split(".")[0]
    for room in imported_rooms(MODULES[module]):
        top = room.split(".")[0]
        if top != own:
            # cli starts the other verbs; that is what it is for.
            height = floor_of(own) + (own == "cli")
            assert floor_of(top) < height, f"{module} must not import {room}"


@pytest.mark.parametrize("module", [n for n in MODULES if n.startswith(tuple(PACKAGES))])
def test_imports_go_down_inside_a_package(module: str) -> None:
    package = module.split(".")[0] + "."
    floors = PACKAGES[package]
    height = floor_of(module.removeprefix(package), floors)
    for room in imported_rooms(MODULES[module]):
        if room.startswith(package):
            lower = floor_of(room.removeprefix(package), floors) < height
            assert lower, f"{module} must not import {room}"


def test_models_do_not_import_in_circles() -> None:
    graph = {m: imported_rooms(p) for m, p in MODULES.items() if m.startswith("models.")}
    while graph:
        leaves = {m for m, rooms in graph.items() if not rooms & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {m: rooms for m, rooms in graph.items() if m not in leaves}


@pytest.mark.parametrize("package", ONLY_IMPORTERS)
def test_each_third_party_has_one_door(package: str) -> None:
    importers = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == package for name in imported(path))
    }
    assert importers <= ONLY_IMPORTERS[package]


def test_no_module_hides_another_package() -> None:
    """`deepspeed ganbert/train.py` puts ganbert/ first on sys.path."""
    ours = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    ours -= {"__init__", "__pycache__"}
    assert not ours & sys.stdlib_module_names
    installed = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if "ganbert" not in owners
    }
    assert not ours & installed


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_no_room_without_a_subject(name: str) -> None:
    assert not list(PACKAGE.rglob(f"{name}.py"))
