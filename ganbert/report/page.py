"""`report.html`: one self-contained page about a run, for people.

It opens with the answer, then shows numbers, images, distributions, training and settings. It reads
only the run folder and the prepared folder; what is missing is said in its place. It is made to
be passed on: of a subject it shows nothing beyond the BIDS labels, of this machine no path.
"""

import shlex
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

from ganbert import __version__
from ganbert.atomic import write_text
from ganbert.errors import GanbertError
from ganbert.report.agreement import read_subjects
from ganbert.report.charts import draw_training
from ganbert.report.pictures import Pictures, draw_pictures, draw_subjects
from ganbert.report.run import (
    METRICS_NAME,
    MetricRow,
    Summary,
    check_run,
    compare_weights,
    read_log,
    read_metrics,
    read_settings,
    read_summary,
)
from ganbert.report.scores import (
    format_number,
    headline_rows,
    judge,
    make_tables,
    name_subjects,
    score_tiles,
    training_tiles,
)
from ganbert.run_folder import discriminator_kind, name_method

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


def write_report(run: Path, *, data: Path | None = None, console: Console | None = None) -> Path:
    """Write `report.html` into a run folder, whole or not at all.

    Parameters
    ----------
    run : output folder of training; `evaluation/` in it may be missing
    data : the prepared folder, if it has moved since the training
    console : where to say that the evaluation is of other weights; default: standard error

    Returns
    -------
    path of the page

    Raises
    ------
    CheckpointError
        If `run` is not a run folder, or its settings, log or model card are torn.
    DatasetError
        If `metrics.tsv`, `burden.tsv` or `summary.json` is torn.
    OutputError
        If the page cannot be written.
    """
    check_run(run)
    file, summary = run / REPORT_NAME, read_summary(run)
    stale = compare_weights(run, summary)
    write_text(file, _render(run, data, summary, stale))
    if stale:
        console = console or Console(stderr=True)
        console.print(f"warning: {stale}", soft_wrap=True, markup=False, highlight=False)
    return file


def _render(run: Path, data: Path | None, summary: Summary | None, stale: str) -> str:
    settings, log = read_settings(run), read_log(run)
    if data is None and "data" in settings:
        data = Path(settings["data"])
    headline = headline_rows(read_metrics(run), summary.headline_mask if summary else "")
    unit, ours = summary.unit if summary else "", name_method(settings)
    # Before the pictures, which take time: what is torn shows at once.
    agreement = read_subjects(run, unit, ours)
    subjects = name_subjects(len({r.subject for r in headline}), summary.split if summary else "")
    pictures, missing = _try_pictures(run, data, headline)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: format_number(value, 0, signed=True)
    return environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        tracer=settings.get("tracer", ""),
        verdict=judge(summary, ours, agreement.suvr if agreement else None),
        stale=stale,
        tiles=score_tiles(summary) + training_tiles(log),
        tables=make_tables(summary, ours),
        by_subject=draw_subjects(headline, unit, ours),
        kind=discriminator_kind(settings),
        subjects=subjects,
        agreement=agreement,
        pictures=pictures,
        missing=missing,
        charts=draw_training(log.steps, log.columns),
        facts=_facts(settings),
        recipe=yaml.safe_dump(settings["recipe"], sort_keys=False) if "recipe" in settings else "",
        commands=_commands(settings),
        version=__version__,
    )


def _try_pictures(
    run: Path, data: Path | None, rows: list[MetricRow]
) -> tuple[Pictures | None, str]:
    """Draw the pictures, or say in one line why there are none."""
    if not rows:
        return None, f"there is no {METRICS_NAME} in this run"
    if data is None:
        return None, "there is no run.json that names the prepared folder (give it with --data)"
    try:
        return draw_pictures(run, data, rows), ""
    except GanbertError as error:
        return None, _without_folders(error)


def _without_folders(error: GanbertError) -> str:
    where = error.where.name if isinstance(error.where, Path) else error.where
    text = f"{where}: expected {error.expected}, found {error.found}; {error.remedy}"
    return " ".join(text.split())


def _facts(settings: dict[str, Any]) -> list[tuple[str, str]]:
    shown = settings | ({"data": Path(settings["data"]).name} if "data" in settings else {})
    facts = [("Method", name_method(settings))] if discriminator_kind(settings) else []
    facts += [(name, str(shown[key])) for key, name in _FACTS.items() if key in shown]
    versions = settings.get("versions")
    if isinstance(versions, dict):
        facts.append(("Packages", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return facts


def _commands(settings: dict[str, Any]) -> str:
    """Return the shell commands that repeat the run; words in capitals are the reader's folders."""
    ranks = str(settings.get("world_size", 1))
    lines = (
        ["deepspeed", "--num_gpus", ranks, "ganbert/train.py",
         "--config", "RECIPE", "--data", "PREPARED", "--output", "RUN"],
        ["ganbert", "evaluate", "RUN"],
        ["ganbert", "report", "RUN"],
    )  # fmt: skip
    return "\n".join(shlex.join(line) for line in lines)
