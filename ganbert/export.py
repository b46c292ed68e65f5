"""`ganbert export`: the generator of any checkpoint of a run, as safetensors, and its model card.

Training exports the generator that it ends with. This makes the export of another checkpoint, or of
a run that has not ended: of the best on the validation subjects, the newest, or a step.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ganbert.checkpoint import export_generator, read_generator
from ganbert.checkpoint_files import (
    best_checkpoint,
    checkpoint_folder,
    find_damage,
    list_checkpoints,
    newest_whole,
)
from ganbert.config import SeenImages
from ganbert.data.index import file_sha256, index_path, load_index
from ganbert.errors import CheckpointError, GanbertError
from ganbert.model_card import read_card
from ganbert.model_page import write_model_page
from ganbert.run_folder import DESCRIPTION_NAME, read_object
from ganbert.seen import measure_training


def choose_checkpoint(run: Path, which: str) -> Path:
    """Return a checkpoint of a run that is whole.

    Parameters
    ----------
    which : "last", "best", the number of a step or the name of its folder

    Raises
    ------
    CheckpointError
        If there is no such checkpoint, or it is damaged.
    """
    checkpoints = list_checkpoints(run)
    steps = ", ".join(str(int(folder.name.rpartition("-")[2])) for folder in checkpoints)
    if which == "last" and checkpoints:
        folder, _ = newest_whole(checkpoints)
        return folder
    step = re.fullmatch(r"(?:step-)?(\d{1,8})", which)
    chosen = checkpoint_folder(run, int(step[1])) if step else None
    if which == "best":
        chosen = best_checkpoint(run)
    if chosen not in checkpoints:
        expected = {"best": "a checkpoint that was validated", "last": "a checkpoint"}
        raise CheckpointError(
            run / "checkpoints",
            expected=expected.get(which, f"a checkpoint of step {which}"),
            found=f"steps {steps}" if steps else "none",
            remedy="give --checkpoint last, best or one of the steps"
            if steps
            else "give the folder of a run, or train it further",
        )
    damage = find_damage(chosen)
    if damage is not None:
        raise CheckpointError(
            chosen,
            expected="a whole checkpoint",
            found=f"a damaged one ({damage})",
            remedy="choose another with --checkpoint",
        )
    return chosen


def export(run: Path, which: str = "last") -> Path:
    """Write RUN/export from a checkpoint; see `choose_checkpoint`.

    Returns
    -------
    The export folder.

    Raises
    ------
    CheckpointError
        If there is no such checkpoint, or it cannot be read.
    OutputError
        If the export cannot be written.
    """
    folder = choose_checkpoint(run, which)
    file = folder / DESCRIPTION_NAME
    expected, remedy = "the description of a run with its model card", "choose another checkpoint"
    description = read_object(file, expected=expected, remedy=remedy)
    weights = read_generator(folder)
    try:
        card = {**description["card"], "seen": _seen(description)}
        exported = export_generator(run, weights, card)
    except (KeyError, TypeError, ValidationError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(file, expected=expected, found=found, remedy=remedy) from error
    metrics, subjects = _evaluation(run)
    write_model_page(exported, read_card(exported), description, metrics, subjects)
    return exported


def _evaluation(run: Path) -> tuple[list[dict[str, str]], str]:
    """Return lines of the evaluation of the weights that the run has now, and whom it is of."""
    from ganbert.report.run import compare_weights, read_summary  # slow to import
    from ganbert.report.scores import BASELINE, OURS

    summary = read_summary(run)
    if summary is None or compare_weights(run, summary):
        return [], ""
    means = {
        (score.reference, score.mask, score.metric, score.method): score.interval
        for score in summary.scores
    }
    units = {"psnr": " dB", "rmse": f" {summary.unit}", "mae": f" {summary.unit}"}

    def show(interval: object, metric: str) -> str:
        mean = getattr(interval, "mean", None)
        return "n/a" if mean is None else f"{mean:.3g}{units.get(metric, '')}"

    lines = [
        {
            "reference": reference,
            "mask": mask,
            "metric": metric,
            "ours": show(interval, metric),
            "baseline": show(means.get((reference, mask, metric, BASELINE)), metric),
        }
        for (reference, mask, metric, method), interval in means.items()
        if method == OURS
    ]
    return lines, f"mean over the subjects of the {summary.split} split"


def _seen(description: dict[str, Any]) -> SeenImages | None:
    """What the training images were like; None if their folder has moved or changed since."""
    try:
        data = Path(description["data"])
        index = load_index(data)
    except (GanbertError, KeyError):
        return None
    if file_sha256(index_path(data)) != description.get("index_sha256"):
        return None
    return measure_training(data, index, index.select("train", description["tracer"]))
