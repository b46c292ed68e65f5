"""Recipes: a folder of `run.yaml`, `generator.json` and `discriminator.json`, or what differs.

A recipe may name another one as its `base` (in run.yaml, relative to its own folder) and say only
what differs: a file that is not there is the base's, a top-level key that is there replaces the
base's whole, and one of null takes it away. Nothing is merged deeper: a section stands in one file,
to be read in one place.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from ganbert.config import RunConfig
from ganbert.errors import ConfigError
from ganbert.strict import Strict, read_strictly

RUN_FILE = "run.yaml"
GENERATOR_FILE, DISCRIMINATOR_FILE = "generator.json", "discriminator.json"
_BASE = "base"
Contents = dict[str, dict[str, Any]]


class Recipe(Strict):
    """How to train: GANBERT's settings, and DeepSpeed's for each engine.

    Attributes
    ----------
    run : the typed run configuration
    generator_engine, discriminator_engine : the DeepSpeed configurations, as they stand in JSON
    """

    run: RunConfig
    generator_engine: dict[str, Any]
    discriminator_engine: dict[str, Any]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe folder, or the folder that holds the given `run.yaml`.

    Raises
    ------
    ConfigError
        If a file is missing, wrong, or has a base that is.
    """
    run_file = _run_file(path)
    contents = read_contents(path)
    return Recipe(
        run=read_strictly(run_file, contents[RUN_FILE], RunConfig),
        generator_engine=contents[GENERATOR_FILE],
        discriminator_engine=contents[DISCRIMINATOR_FILE],
    )


def read_contents(path: Path) -> Contents:
    """Return what a recipe's three files say by their names, its bases included; not yet checked.

    Raises
    ------
    ConfigError
        If a file is missing or no YAML or JSON, or a recipe is its own base.
    """
    return _read_contents(_run_file(path), ())


def _read_contents(run_file: Path, above: tuple[Path, ...]) -> Contents:
    if run_file.resolve() in above:
        raise ConfigError(
            f"{above[0]}: {_BASE}",
            expected="a recipe that ends in one without a base",
            found="a circle",
            remedy="name another one",
        )
    settings, base = _read_settings(run_file)
    own, below = {RUN_FILE: settings}, Contents()
    if base is not None:
        below = _read_contents(_run_file(base), (*above, run_file.resolve()))
    for name in (GENERATOR_FILE, DISCRIMINATOR_FILE):
        file = run_file.with_name(name)
        if base is None or file.exists():
            own[name] = _read_engine(file)
    return {
        name: _replace(below.get(name, {}), own.get(name, {}))
        for name in (RUN_FILE, GENERATOR_FILE, DISCRIMINATOR_FILE)
    }


def _replace(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    if not base:  # null without a base is a mistake, and is found where values are checked
        return own
    return {key: value for key, value in {**base, **own}.items() if value is not None}


def _run_file(path: Path) -> Path:
    return path if path.suffix in (".yaml", ".yml") else path / RUN_FILE


def _read_settings(run_file: Path) -> tuple[dict[str, Any], Path | None]:
    """Return what stands in a run.yaml, and the folder of its base, if it has one."""
    try:
        content = yaml.load(_read_text(run_file), _OnceLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        found = " ".join(str(error).split())
        raise ConfigError(
            run_file, expected="YAML", found=found, remedy="mend the syntax"
        ) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError(
            run_file, expected="a mapping", found=found, remedy="write 'key: value' lines"
        )
    if _BASE not in content:
        return content, None
    base = content.pop(_BASE)
    if not isinstance(base, str) or not _run_file(run_file.parent / base).is_file():
        raise ConfigError(
            f"{run_file}: {_BASE}",
            expected=f"the folder of a recipe, as seen from {run_file.parent}",
            found=repr(base),
            remedy=f"name a folder that holds {RUN_FILE}, such as ../demo",
        )
    return content, run_file.parent / base


def _read_engine(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file), object_pairs_hook=_once)
    except ValueError as error:  # of JSON, or a key that stands there twice
        raise ConfigError(
            file, expected="JSON", found=str(error), remedy="mend the syntax"
        ) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError(file, expected="a JSON object", found=found, remedy="see ds_configs/demo")
    return content


class _OnceLoader(yaml.SafeLoader):
    """A key that stands twice in one mapping is an error; YAML would take the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} for the second time", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} twice in one object")
    return dict(pairs)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            path,
            expected="a readable file of the recipe",
            found=getattr(error, "strerror", None) or "bytes that are not text",
            remedy=f"a recipe holds {RUN_FILE}, {GENERATOR_FILE} and {DISCRIMINATOR_FILE}, "
            f"or has a `{_BASE}` that does",
        ) from error
