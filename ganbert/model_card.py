"""The card of an exported generator (`generator.json`): everything but its weights.

Needs neither torch nor the weights, so that the report can ask which weights a run has.
"""

import json
from pathlib import Path

from pydantic import ValidationError

from ganbert.config import ModelCard
from ganbert.errors import CheckpointError
from ganbert.run_folder import CARD_NAME, read_object

FORMAT_VERSION = 1
_EXPECTED = "a model card"


def read_card(folder: Path) -> ModelCard:
    """Read the model card of an export.

    Raises
    ------
    CheckpointError
        If it is missing, not JSON, of another format version, or lacks or has extra keys.
    """
    file = folder / CARD_NAME
    remedy = "restore it, or run the training again: it exports at its end"
    content = read_object(file, expected=_EXPECTED, remedy=remedy)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            file,
            expected=f"format_version {FORMAT_VERSION}",
            found=repr(version),
            remedy="use the version of ganbert that wrote it, or export it again",
        )
    try:
        # As JSON: lists become tuples even though the models are strict about unknown keys.
        return ModelCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        found = f"{name}: {problem['msg']}"
        remedy = "give the generator.json that lies beside the weights, or export again"
        raise CheckpointError(file, expected=_EXPECTED, found=found, remedy=remedy) from error
