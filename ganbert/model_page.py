"""`MODEL_CARD.md`: what an exported model is, was trained on and is worth, from its run's records.

It states what is written down, and "not recorded" where nothing is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ganbert import __version__
from ganbert.atomic import write_text
from ganbert.config import ModelCard
from ganbert.run_folder import name_method
from ganbert.tracers import get_tracer

PAGE_NAME = "MODEL_CARD.md"
_TEMPLATES = Path(__file__).parent / "templates"
_UNKNOWN = "not recorded"


def write_model_page(
    folder: Path,
    card: ModelCard,
    description: Mapping[str, Any],
    metrics: Sequence[Mapping[str, str]] = (),
    subjects: str = "",
) -> Path:
    """Write the page into the folder of an export, whole or not at all.

    Parameters
    ----------
    folder : of the export
    card : of the model
    description : content of the run's or the checkpoint's `run.json`
    metrics : lines with reference, mask, metric, ours and baseline; of these weights, or none
    subjects : whom the metrics are of, in words

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701 - Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    versions = description.get("versions")
    text = environment.get_template(f"{PAGE_NAME}.j2").render(
        card=card,
        tracer=get_tracer(card.tracer),
        method=name_method(dict(description)),
        recipe_name=description.get("recipe_name", _UNKNOWN),
        versions=", ".join(f"{name} {number}" for name, number in versions.items())
        if isinstance(versions, dict)
        else _UNKNOWN,
        metrics=metrics,
        subjects=subjects,
        version=__version__,
    )  # fmt: skip
    file = folder / PAGE_NAME
    write_text(file, text)
    return file
