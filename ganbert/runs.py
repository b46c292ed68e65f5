"""A training run: what was asked for, checked before any work, and its description in RUN.

RUN holds run.json (this module), log.jsonl (`telemetry`), checkpoints/ and export/ (`checkpoint`),
evaluation/ (`evaluate`) and report.html (`report`).
"""

import contextlib
import fcntl
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import ganbert
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import DiscriminatorConfig, GeneratorConfig, Recipe
from ganbert.data.index import Index, Row, file_sha256, index_path, load_index
from ganbert.errors import CheckpointError, DatasetError, OutputError
from ganbert.metrics import declared_data_range
from ganbert.run_folder import DESCRIPTION_NAME, read_description

# A ratio this many times off leaves most ids unused, or most tokens beyond them.
_FAR = 3.0
_VERSIONED = ("torch", "deepspeed", "transformers", "numpy", "nibabel", "prometheus_client")


@dataclass(frozen=True)
class Run:
    """A training run: what was asked for, and where its results go.

    Attributes
    ----------
    data : the prepared folder
    output : RUN, the folder of results
    intensity_ratio : paper, section 3.1; resolved from "auto"
    resume_from : checkpoint to go on from, if any
    """

    recipe: Recipe
    recipe_path: Path
    data: Path
    output: Path
    index: Index
    index_sha256: str
    tracer: str
    intensity_ratio: float
    resume_from: Path | None

    @property
    def training_rows(self) -> list[Row]:
        """Rows of the training split."""
        return self.index.select("train")

    def ratio_warning(self) -> str | None:
        """Say so where the intensity ratio puts the PET far from where the vocabulary has ids."""
        suggested = self.index.intensity_ratio.get(self.tracer)
        if suggested is None or 1 / _FAR < self.intensity_ratio / suggested < _FAR:
            return None
        return (
            f"warning: intensity_ratio {self.intensity_ratio:g} is far from the {suggested:.3g} "
            f"that fits these {self.training_rows[0].unit} images: most tokens will be aliased; "
            "`intensity_ratio: auto` in run.yaml takes the one that fits"
        )

    def card(self, num_steps: int) -> dict[str, object]:
        """What a generator trained for `num_steps` must say of itself (see `ModelCard`)."""
        rows = self.training_rows
        unit = rows[0].unit
        return {
            "ganbert_version": ganbert.__version__,
            "generator": self.recipe.run.generator,
            "mri_grid": self.index.mri_grid,
            "pet_grid": self.index.pet_grid,
            "intensity_ratio": self.intensity_ratio,
            "tracer": self.tracer,
            "unit": unit,
            "data_range": declared_data_range(self.tracer, unit, [r.pet.p999 for r in rows]),
            "frame_start_s": rows[0].frame_start_s,
            "frame_duration_s": rows[0].frame_duration_s,
            "num_steps": num_steps,
            "num_training_rows": len(rows),
            "index_sha256": self.index_sha256,
        }


def plan_run(
    recipe: Recipe,
    *,
    recipe_path: Path,
    data: Path,
    output: Path,
    resume_from: Path | None,
    world_size: int = 1,
) -> Run:
    """Read what the run depends on, and refuse what cannot work.

    Raises
    ------
    DatasetError
        If `data` was not prepared, or has no training rows of a single tracer.
    CheckpointError
        If `resume_from` belongs to a run with other networks or units.
    """
    index = load_index(data)
    tracer = _only_tracer(data, index)
    ratio = recipe.run.intensity_ratio
    run = Run(
        recipe=recipe,
        recipe_path=recipe_path,
        data=data.resolve(),
        output=output,
        index=index,
        index_sha256=file_sha256(index_path(data)),
        tracer=tracer,
        intensity_ratio=_suggested(data, index, tracer) if ratio == "auto" else ratio,
        resume_from=resume_from,
    )
    if resume_from is not None:
        check_same_run(run, world_size)
    return run


@contextlib.contextmanager
def claim(output: Path) -> Iterator[None]:
    """Make RUN, and hold it: no second training may write into it at the same time.

    Raises
    ------
    OutputError
        If RUN cannot be written, or another process holds it.
    """
    make_folder(output)
    try:
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise output_error(output, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                output,
                expected="a run that nobody else is training",
                found="another process that holds it",
                remedy="wait for it or stop it; after a kill its ranks may still be running",
            ) from error
        yield


def _suggested(data: Path, index: Index, tracer: str) -> float:
    if tracer not in index.intensity_ratio:
        raise DatasetError(
            data,
            expected=f"a suggested intensity_ratio for {tracer}",
            found="none",
            remedy="set intensity_ratio in run.yaml, or run `ganbert prepare` again",
        )
    return index.intensity_ratio[tracer]


def _only_tracer(data: Path, index: Index) -> str:
    # One unit and frame timing too: a generator cannot tell which of several is asked for.
    rows = index.select("train")
    for name, values in (
        ("tracer", {row.tracer for row in rows}),
        ("unit", {row.unit for row in rows}),
        ("frame timing", {(row.frame_start_s, row.frame_duration_s) for row in rows}),
    ):
        if len(values) != 1:
            raise DatasetError(
                data,
                expected=f"training rows of one {name}",
                found=", ".join(sorted(map(str, values))) or "no training row",
                remedy="prepare a dataset that agrees in it",
            )
    return rows[0].tracer


def check_same_run(run: Run, world_size: int) -> None:
    """Refuse to resume what the checkpoint does not hold, or cannot be loaded into.

    Raises
    ------
    CheckpointError
        If the recipe's generator, discriminator, intensity ratio, ZeRO stages or precisions
        changed, or the number of ranks did while ZeRO 1 splits the optimiser's state over them.
    """
    before = read_description(run.output)
    recipe_before, recipe = before["recipe"], run.recipe.model_dump(mode="json")
    facts = {
        "generator": [_section(GeneratorConfig, r, "generator") for r in (recipe_before, recipe)],
        "discriminator": [
            _section(DiscriminatorConfig, r, "discriminator") for r in (recipe_before, recipe)
        ],
        "intensity_ratio": [before["intensity_ratio"], run.intensity_ratio],
        "zero_optimization.stage": [_zero_stages(r) for r in (recipe_before, recipe)],
        "precision": [_precisions(r) for r in (recipe_before, recipe)],
    }
    if any(_zero_stages(recipe).values()):
        facts["number of ranks"] = [before.get("world_size"), world_size]
    for name, (old, new) in facts.items():
        if old != new:
            raise CheckpointError(
                run.output,
                expected=f"{name} as in the run that is resumed: {_difference(old, new)}",
                found=_difference(new, old),
                remedy="restore the recipe and the number of ranks, or give another --output",
            )


def _section(model: type[BaseModel], recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a network; keys that an older version did not write have their defaults."""
    written: dict[str, Any] = recipe["run"][name]
    try:
        return model.model_validate(written).model_dump(mode="json")
    except ValidationError:
        return written


def _zero_stages(recipe: Mapping[str, Any]) -> dict[str, int]:
    engines = {name: recipe[f"{name}_engine"] for name in ("generator", "discriminator")}
    return {n: e.get("zero_optimization", {}).get("stage", 0) for n, e in engines.items()}


def _precisions(recipe: Mapping[str, Any]) -> dict[str, str]:
    engines = {name: recipe[f"{name}_engine"] for name in ("generator", "discriminator")}
    return {
        name: next((p for p in ("fp16", "bf16") if e.get(p, {}).get("enabled")), "fp32")
        for name, e in engines.items()
    }


def _difference(of: object, other: object) -> str:
    if not isinstance(of, Mapping) or not isinstance(other, Mapping):
        return str(of)
    return ", ".join(f"{k} {v}" for k, v in of.items() if v != other.get(k)) or "nothing else"


def describe_run(run: Run, world_size: int, device: str) -> dict[str, object]:
    """Everything needed to tell this run from another, as JSON (`run.json`)."""
    return {
        "ganbert_version": ganbert.__version__,
        "recipe_name": run.recipe_path.resolve().name,
        "recipe": run.recipe.model_dump(mode="json"),
        "data": str(run.data),
        "index_sha256": run.index_sha256,
        "tracer": run.tracer,
        "unit": run.training_rows[0].unit,
        "intensity_ratio": run.intensity_ratio,
        "world_size": world_size,
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
    }


def write_description(run: Run, world_size: int, device: str) -> None:
    """Write `run.json` into RUN (rank 0)."""
    make_folder(run.output)
    text = json.dumps(describe_run(run, world_size, device), indent=1) + "\n"
    write_text(run.output / DESCRIPTION_NAME, text)
