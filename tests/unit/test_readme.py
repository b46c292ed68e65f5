"""Commands in the pages are commands: they parse, their targets and their files exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ganbert.cli import app

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/container.md",
    "docs/data.md",
    "docs/inference.md",
    "docs/operations.md",
    "docs/reliability.md",
    "docs/service.md",
)
KNOWN_PROGRAMS = ("ganbert", "deepspeed", "make", ".venv/bin/pre-commit")


def commands(page: str) -> Iterator[str]:
    """Lines of the blocks that are marked as bash."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        yield from (line.split("  #")[0].strip() for line in block.splitlines() if line.strip())


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def starting_with(program: str) -> pytest.MarkDecorator:
    lines = [command for _, command in COMMANDS if shlex.split(command)[0] == program]
    return pytest.mark.parametrize("command", lines)


def test_every_command_is_of_a_program_that_is_checked_here() -> None:
    assert COMMANDS
    assert {shlex.split(command)[0] for _, command in COMMANDS} <= set(KNOWN_PROGRAMS)


@starting_with("ganbert")
def test_ganbert_commands_parse(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    typer.main.get_command(app).commands[verb].make_context(verb, arguments)


@starting_with("deepspeed")
def test_train_commands_parse(command: str) -> None:
    from ganbert.train_options import parse_options

    words = shlex.split(command)
    script = words.index("ganbert/train.py")
    options = parse_options(words[script + 1 :], {"GANBERT_DATA": "d", "GANBERT_OUTPUT": "o"})
    assert (ROOT / options.config / "run.yaml").is_file()


@starting_with("make")
def test_make_targets_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(command)[1:]:
        pattern = rf"^{word.split('=')[0]} \?=" if "=" in word else rf"^{word}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"make knows no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_recipes_that_are_named_exist(page: str) -> None:
    for name in re.findall(r"ds_configs/(\w+)\b(?!\.)", (ROOT / page).read_text()):
        assert (ROOT / "ds_configs" / name / "run.yaml").is_file(), name


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "ganbert").rglob("*.py"):
        is_part = path.parent.name == "report" or path.stem.startswith("phantom_")
        if path.name != "__init__.py" and not is_part:
            assert path.name in text, f"docs/architecture.md does not name {path.name}"


def test_the_page_of_metrics_is_made_from_the_code() -> None:
    from ganbert.exporter import page

    # Else: python -m ganbert.exporter > docs/metrics.md
    assert (ROOT / "docs" / "metrics.md").read_text() == page()
