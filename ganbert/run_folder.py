"""Names of what lies in the folder of a run, and the one reader of its description.

RUN/run.json                       what was asked for: settings, data, versions
RUN/export/generator.json          the model card
RUN/export/generator.safetensors   the weights
"""

import json
from pathlib import Path
from typing import Any

from ganbert.errors import CheckpointError

DESCRIPTION_NAME = "run.json"
EXPORT_NAME = "export"
CARD_NAME = "generator.json"
WEIGHTS_NAME = "generator.safetensors"
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
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise _no_description(file, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise _no_description(file, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise _no_description(file, f"a JSON {type(content).__name__}")
    missing = [name for name in _NEEDED if not _has(content, name)]
    if missing:
        raise _no_description(file, f"one without {', '.join(missing)}")
    return content


def _has(content: dict[str, Any], name: str) -> bool:
    section: Any = content
    for key in name.split("."):
        if not isinstance(section, dict) or section.get(key) is None:
            return False
        section = section[key]
    return True


def _no_description(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        file,
        expected="the description of a run",
        found=found,
        remedy="give the output folder of `ganbert train`, or restore the file",
    )
