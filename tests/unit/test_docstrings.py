"""The house style that a machine can check: docstrings, sizes, ASCII."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ganbert"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
# The loop reads top to bottom; a loop cut into pieces does not.
LONGER = {("train.py", "train"): 90}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def definitions(path: Path) -> Iterator[Definition]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Definition):
            yield node


def public_definitions(node: ast.AST) -> Iterator[Definition]:
    """Public functions and classes, and public methods of public classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child)


def is_inherited(node: Definition) -> bool:
    """Whether the base class documents it: `forward` of a module, or a marked override."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    return bool(decorators & {"override", "typing.override", "typing_extensions.override"})


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name_of(path)}: no module docstring"
    bare = [
        node.name
        for node in public_definitions(tree)
        if not is_inherited(node) and not ast.get_docstring(node)
    ]
    assert not bare, f"{name_of(path)}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for node in definitions(path):
        if isinstance(node, ast.ClassDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        limit = LONGER.get((path.name, node.name), MAX_FUNCTION_LINES)
        assert lines <= limit, f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_and_ascii(path: Path) -> None:
    text = path.read_text()
    assert text.isascii(), f"{name_of(path)} is not ASCII"
    assert len(text.splitlines()) <= MAX_FILE_LINES, name_of(path)


def test_no_blind_except() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name_of(path)}:{node.lineno}: bare except"
