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
FLOORS = {
    4: {"train", "prepare", "evaluate", "infer", "cli", "doctor", "inspection"},
    3: {"engines", "checkpoint", "predict", "derivatives", "report"},
    2: {"losses", "metrics", "telemetry"},
    1: {"data", "models"},
    0: {"config", "tracers", "errors"},
}
# The rooms of one folder, in the order in which they may see each other: each sees those before it.
# Names in one set do not see each other.
DATA_ORDER = (
    {"volume"},
    {"nifti"},
    {"conform", "layouts", "index", "phantom", "reference", "pipeline"},
    {"loader"},
)
ONLY_IMPORTERS = {
    "deepspeed": {"engines", "doctor"},
    "prometheus_client": {"telemetry"},
    "nvidia": {"data.pipeline", "data.loader", "doctor"},
}
# cli starts the other verbs; that is what it is for.
MAY_SEE_ITS_OWN_FLOOR = {"cli"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    for floor, names in FLOORS.items():
        if top in names:
            return floor
    raise AssertionError(f"ganbert/{top}.py stands on no floor: enter it in {Path(__file__).name}")


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
    for room in imported_rooms(MODULES[module]):
        if module.split(".")[0] == room.split(".")[0]:
            continue  # inside one folder: see test_order_inside_data
        lower = floor_of(room) < floor_of(module)
        sibling = floor_of(room) == floor_of(module) and module in MAY_SEE_ITS_OWN_FLOOR
        assert lower or sibling, f"{module} must not import {room}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("data.")])
def test_order_inside_data(module: str) -> None:
    def place(name: str) -> int:
        places = [i for i, names in enumerate(DATA_ORDER) if name.removeprefix("data.") in names]
        assert places, f"{name} has no place in the order of data/"
        return places[0]

    for room in imported_rooms(MODULES[module]):
        if room.startswith("data."):
            assert place(room) < place(module), f"{module} must not import {room}"


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
