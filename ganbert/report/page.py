"""`report.html`: one self-contained page about a run, for people.

It opens with the answer, then shows numbers, images, distributions, training and settings. It reads
only the run folder and the prepared folder that `run.json` names; what is missing is said in its
place. Of a subject it shows nothing beyond the BIDS labels.
"""

import os
import shlex
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ganbert import __version__
from ganbert.errors import GanbertError
from ganbert.report.charts import draw_training
from ganbert.report.pictures import Pictures, draw_pictures, draw_subjects
from ganbert.report.run import (
    METRICS_NAME,
    SETTINGS_NAME,
    SUMMARY_NAME,
    MetricRow,
    check_run,
    read_log,
    read_metrics,
    read_object,
)
from ganbert.report.scores import (
    headline_rows,
    judge,
    make_tables,
    name_subjects,
    score_tiles,
    training_tiles,
)

REPORT_NAME = "report.html"
TEMPLATES = Path(__file__).parents[1] / "templates"
# Keys of run.json that the settings table shows, with their names for people.
_FACTS = {
    "tracer": "Tracer",
    "unit": "Unit of the PET",
    "recipe_name": "Recipe",
    "world_size": "Ranks (world size)",
    "device": "Device",
    "intensity_ratio": "Intensity ratio (section 3.1)",
    "data": "Prepared folder",
    "index_sha256": "Index, SHA-256",
    "ganbert_version": "GANBERT version",
}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all.

    Parameters
    ----------
    run : output folder of training; `evaluation/` in it may be missing

    Returns
    -------
    path of the page

    Raises
    ------
    CheckpointError
        If `run` is not a run folder, or its settings or log are torn.
    DatasetError
        If `metrics.tsv` is torn.
    """
    check_run(run)
    page = _render(run)
    file = run / REPORT_NAME
    temporary = file.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, file)
    return file


def _render(run: Path) -> str:
    settings, log, rows = read_object(run / SETTINGS_NAME), read_log(run), read_metrics(run)
    split = str(read_object(run / SUMMARY_NAME).get("split", "test"))
    headline = headline_rows(rows)
    pictures, missing = _try_pictures(run, settings, headline)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: f"{value:+.0f}".replace("-", "\u2212")
    return environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        tracer=settings.get("tracer", ""),
        verdict=judge(headline, split),
        tiles=score_tiles(headline, split) + training_tiles(log),
        tables=make_tables(rows, str(settings.get("unit", ""))),
        by_subject=draw_subjects(headline, str(settings.get("unit", ""))),
        subjects=name_subjects(len({row.subject for row in headline}), split),
        pictures=pictures,
        missing=missing,
        charts=draw_training(log.steps, log.columns),
        facts=_facts(settings),
        recipe=yaml.safe_dump(settings["recipe"], sort_keys=False) if "recipe" in settings else "",
        commands=_commands(run, settings),
        evaluate_command=shlex.join(["ganbert", "evaluate", str(run)]),
        version=__version__,
    )


def _try_pictures(
    run: Path, settings: dict[str, Any], rows: list[MetricRow]
) -> tuple[Pictures | None, str]:
    """Draw the pictures, or say in one line why there are none."""
    if not rows:
        return None, f"there is no {METRICS_NAME} in this run"
    if "data" not in settings:
        return None, "run.json does not name the prepared folder"
    try:
        return draw_pictures(run, Path(settings["data"]), rows), ""
    except GanbertError as error:
        return None, str(error)


def _facts(settings: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [(name, str(settings[key])) for key, name in _FACTS.items() if key in settings]
    versions = settings.get("versions")
    if isinstance(versions, dict):
        facts.append(("Packages", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return facts


def _commands(run: Path, settings: dict[str, Any]) -> str:
    """Return the shell commands that repeat the run."""
    data = str(settings.get("data", "PREPARED"))
    recipe = f"ds_configs/{settings.get('recipe_name', 'RECIPE')}"
    ranks = str(settings.get("world_size", 1))
    lines = (
        ["deepspeed", "--num_gpus", ranks, "ganbert/train.py",
         "--config", recipe, "--data", data, "--output", str(run)],
        ["ganbert", "evaluate", str(run)],
        ["ganbert", "report", str(run)],
    )  # fmt: skip
    return "\n".join(shlex.join(line) for line in lines)
