"""Names of what lies in the folder of a run, and the readers of its JSON, first its description.

RUN/run.json                       what was asked for: settings, data, versions
RUN/export/generator.json          the model card
RUN/export/generator.safetensors   the weights
"""

import json
from pathlib import Path
from typing import Any, TypedDict

from ganbert.errors import CheckpointError, GanbertError


class Held(TypedDict):
    """What `folder_lock` says of a folder that another process holds."""

    expected: str
    remedy: str


DESCRIPTION_NAME = "run.json"
EXPORT_NAME = "export"
CARD_NAME = "generator.json"
WEIGHTS_NAME = "generator.safetensors"
# What a run trains, by its discriminator. Files of `evaluate` call all of them "ganbert".
_METHOD_NAMES = {
    "bert": "GANBERT",
    "bert_patchgan": "GANBERT with CNN-D",
    "patchgan": "pix2pix (PatchGAN)",
    "none": "L1 alone",
}
# What is said of a RUN that another training holds.
RUN_HELD: Held = {
    "expected": "a run that nobody else is training",
    "remedy": "wait for it or stop it; after a kill its ranks may still be running",
}
_EXPECTED = "the description of a run"
_REMEDY = "give the output folder of `ganbert train`, or restore the file"
# What the readers of a description rely on; a dot leads into a section.
_NEEDED = (
    "data",
    "index_sha256",
    "intensity_ratio",
    "recipe.run.discriminator",
    "recipe.run.generator",
    "tracer",
    "unit",
)


def read_description(run: Path) -> dict[str, Any]:
    """Read `run.json`.

    Parameters
    ----------
    run : output folder of the training

    Raises
    ------
    CheckpointError
        If it is missing, not a JSON object, or lacks what every run says of itself.
    """
    file = run / DESCRIPTION_NAME
    content = read_object(file, expected=_EXPECTED, remedy=_REMEDY)
    missing = [name for name in _NEEDED if not _has(content, name)]
    if missing:
        found = f"one without {', '.join(missing)}"
        raise CheckpointError(file, expected=_EXPECTED, found=found, remedy=_REMEDY)
    return content


def discriminator_kind(description: dict[str, Any]) -> str:
    """Kind of a run's discriminator, by its description; "" where that is missing."""
    try:
        return str(description["recipe"]["run"]["discriminator"]["kind"])
    except (KeyError, TypeError):
        return ""


def name_method(description: dict[str, Any]) -> str:
    """Return what people call the method that a run trains.

    >>> name_method({"recipe": {"run": {"discriminator": {"kind": "none"}}}})
    'L1 alone'
    """
    return _METHOD_NAMES.get(discriminator_kind(description), "The generator")


def _has(content: dict[str, Any], name: str) -> bool:
    section: Any = content
    for key in name.split("."):
        if not isinstance(section, dict) or section.get(key) is None:
            return False
        section = section[key]
    return True


def read_object(
    file: Path, *, expected: str, remedy: str, kind: type[GanbertError] = CheckpointError
) -> dict[str, Any]:
    """Read a file with one JSON object.

    Parameters
    ----------
    expected, remedy : what the error says
    kind : of the error

    Raises
    ------
    GanbertError
        Of `kind`, if it cannot be read, is cut off or damaged, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise kind(file, expected=expected, found=describe_damage(error), remedy=remedy) from error
    if not isinstance(content, dict):
        found = f"a JSON {type(content).__name__}"
        raise kind(file, expected=expected, found=found, remedy=remedy)
    return content


def describe_damage(error: Exception) -> str:
    """Say in plain words why a file could not be read, for the `found` of an error.

    >>> describe_damage(KeyError("split"))
    "one without 'split'"
    """
    if isinstance(error, OSError):
        return error.strerror or "one that cannot be read"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON (cut off or damaged in line {error.lineno})"
    if isinstance(error, UnicodeDecodeError):
        return "no text (damaged)"
    if isinstance(error, KeyError):
        return f"one without {error.args[0]!r}"
    return "one with a value of another kind, or cut off"
