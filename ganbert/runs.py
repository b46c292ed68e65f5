"""A training run: what was asked for, checked before any work, and its description in RUN.

RUN holds run.json (this module), log.jsonl (`telemetry`), checkpoints/ and export/ (`checkpoint`),
evaluation/ (`evaluate`) and report.html (`report`).
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ganbert
from ganbert.atomic import make_folder, write_text
from ganbert.config import ModelCard
from ganbert.data.index import (
    Index,
    ReadIndex,
    Row,
    check_alike,
    frame_timing,
    suggested_ratio,
    training_tracer,
)
from ganbert.folder_lock import held
from ganbert.recipe import Recipe
from ganbert.resuming import announce, changed_settings, check_resumable
from ganbert.run_folder import DESCRIPTION_NAME, RUN_HELD, read_description
from ganbert.seen import measure_training
from ganbert.tracers import declared_data_range

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
    tracer : whose rows alone it is trained and judged on
    intensity_ratio : paper, section 3.1; resolved from "auto"
    resume_from : checkpoint to go on from, if any
    changed : settings that are not those of the run that is resumed: [old, new] by name
    changes : of all times that the run was resumed with other settings, this one included
    passed_over : a line for each damaged checkpoint that is newer than `resume_from`
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
    changed: Mapping[str, list[Any]] = field(default_factory=dict)
    changes: tuple[Mapping[str, Any], ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def training_rows(self) -> list[Row]:
        """Rows of the training split that show the run's tracer."""
        return self.index.select("train", self.tracer)

    def build_labels(self, device: str) -> dict[str, str]:
        """What tells two runs apart on a dashboard; no path, and nobody's name."""
        versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")}
        recipe = self.recipe_path.resolve()
        return {
            "version": ganbert.__version__,
            "recipe": recipe.parent.name if recipe.is_file() else recipe.name,
            "tracer": self.tracer,
            "device": device,
            **versions,
        }

    def remarks(self) -> list[str]:
        """What whoever started the run should know, a line each."""
        changed = announce(self.changed) if self.changed else None
        no_cache = "no cache: images are read from the dataset and conformed anew, which is slow"
        slow = None if self.index.cached else no_cache
        lines = (changed, self._ratio_warning(), self._gradient_warning(), slow)
        return [*self.passed_over, *(line for line in lines if line is not None)]

    def _gradient_warning(self) -> str | None:
        discriminator = self.recipe.run.discriminator
        if not discriminator.has_bert or discriminator.gradient != "none":
            return None
        return (
            "warning: discriminator.gradient none: BERT learns, and the generator learns nothing "
            "from it: an ablation"
        )

    def _ratio_warning(self) -> str | None:
        suggested = self.index.intensity_ratio.get(self.tracer)
        if suggested is None or 1 / _FAR < self.intensity_ratio / suggested < _FAR:
            return None
        # Measured for the paper's 0.1 in SUVR: docs/architecture.md, "The tenth is a unit".
        too_large = self.intensity_ratio > suggested
        ill = "crowd into few ids" if too_large else "overflow into 500 ids that others have, too"
        return (
            f"warning: intensity_ratio {self.intensity_ratio:g} is far from the {suggested:.3g} "
            f"that fits these {self.training_rows[0].unit} images: most tokens will {ill}; "
            "`intensity_ratio: auto` in run.yaml takes the one that fits"
        )

    def card(self, num_steps: int, *, with_seen: bool = True) -> dict[str, object]:
        """What a generator trained for `num_steps` must say of itself (see `ModelCard`).

        Parameters
        ----------
        with_seen : read a few training MRIs to say what they were like
        """
        rows = self.training_rows
        unit = rows[0].unit
        starts, durations = frame_timing(rows)
        return {
            "ganbert_version": ganbert.__version__,
            "generator": self.recipe.run.generator,
            "mri_grid": self.index.mri_grid,
            "pet_grid": self.index.pet_grid,
            "intensity_ratio": self.intensity_ratio,
            "tracer": self.tracer,
            "unit": unit,
            "data_range": declared_data_range(self.tracer, unit, [r.pet.p999 for r in rows]),
            "frame_start_s": starts,
            "frame_duration_s": durations,
            "num_steps": num_steps,
            "num_training_rows": len(rows),
            "index_sha256": self.index_sha256,
            "seen": measure_training(self.data, self.index, rows) if with_seen else None,
        }


def plan_run(
    recipe: Recipe,
    *,
    recipe_path: Path,
    data: Path,
    read: ReadIndex,
    output: Path,
    resume_from: Path | None,
    passed_over: tuple[str, ...] = (),
    world_size: int = 1,
    tracer: str | None = None,
) -> Run:
    """Read what the run depends on, and refuse what cannot work.

    Parameters
    ----------
    read : the index of `data`
    tracer : to train on; None: the only one that there is

    Raises
    ------
    ConfigError
        If `data` does not have the tracer, or has several and none is given.
    DatasetError
        If `data` was not prepared, or has no training rows of the tracer that agree in unit and
        frame timing.
    CheckpointError
        If `resume_from` belongs to a run with another tracer, other networks, units or optimisers.
    """
    index = read.index
    tracer = training_tracer(data, index, tracer)
    check_alike(data, index.select("train", tracer))
    ratio = recipe.run.intensity_ratio
    run = Run(
        recipe=recipe,
        recipe_path=recipe_path,
        data=data.resolve(),
        output=output,
        index=index,
        index_sha256=read.sha256,
        tracer=tracer,
        intensity_ratio=suggested_ratio(data, index, tracer) if ratio == "auto" else ratio,
        resume_from=resume_from,
        passed_over=passed_over,
    )
    return run if resume_from is None else _resumed(run, resume_from.name, world_size)


def _resumed(run: Run, checkpoint: str, world_size: int) -> Run:
    """Compare with the description that the run has, and keep what is different."""
    before, now = read_description(run.output), _what_is_trained(run, world_size)
    check_resumable(run.output, before, now)
    changed, changes = changed_settings(before, now), tuple(before.get("changes", ()))
    if changed:
        changes += ({"resumed_from": checkpoint, "settings": changed},)
    return replace(run, changed=changed, changes=changes)


def _what_is_trained(run: Run, world_size: int) -> dict[str, Any]:
    return {
        "recipe": run.recipe.model_dump(mode="json"),
        "tracer": run.tracer,
        "intensity_ratio": run.intensity_ratio,
        "world_size": world_size,
    }


@contextlib.contextmanager
def claim(output: Path) -> Iterator[None]:
    """Make RUN, and hold it: no second training may write into it at the same time.

    Raises
    ------
    OutputError
        If RUN cannot be written, or another process holds it.
    """
    with held(output, **RUN_HELD):
        yield


def describe_run(run: Run, world_size: int, device: str) -> dict[str, object]:
    """Everything needed to tell this run from another, as JSON (`run.json`)."""
    return {
        "ganbert_version": ganbert.__version__,
        "recipe_name": run.recipe_path.resolve().name,
        **_what_is_trained(run, world_size),
        "changes": list(run.changes),
        "data": str(run.data),
        "index_sha256": run.index_sha256,
        "unit": run.training_rows[0].unit,
        "device": device,
        "versions": library_versions(),
        "cpu": cpu_arithmetic(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute or store, by name."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def cpu_arithmetic() -> dict[str, object]:
    """What the last bits of a sum depend on beside the versions: two runs may differ by it alone.

    docs/results.md, "The same numbers again": after 300 steps up to 0.6 dB of a subject.
    """
    # Not at the top: `preflight` refuses what it can before torch is loaded.
    import torch

    return {
        "maker": _cpu_maker(Path("/proc/cpuinfo")),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
        "threads": torch.get_num_threads(),
    }


def _cpu_maker(file: Path) -> str:
    """`GenuineIntel` or `AuthenticAMD`, for MKL chooses by it; elsewhere the kind of machine."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "vendor_id":
                return value.strip()
    return platform.machine()


def facts_for_all_ranks(run: Run, step: int) -> dict[str, str]:
    """What every rank must have alike, by name: code, libraries, recipe, data, where to start."""
    versions = (f"{name} {version}" for name, version in library_versions().items())
    return {
        "code of ganbert": _code_sha256()[:12],
        "versions": ", ".join(versions),
        "index": run.index_sha256,
        "tracer": run.tracer,
        "recipe": run.recipe.model_dump_json(),
        "step to start from": str(step),
    }


def _code_sha256() -> str:
    # Not the version alone: an edited checkout on one node has the same.
    package, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def describe_checkpoint(
    run: Run, world_size: int, device: str, step: int, samples_seen: int
) -> dict[str, object]:
    """What a checkpoint says of its run: the same, how far it is, and the model card."""
    card = run.card(step, with_seen=False)  # no rank waits for images to be read
    return describe_run(run, world_size, device) | {
        "epoch": samples_seen / len(run.training_rows),
        "card": ModelCard(**card, weights_sha256="").model_dump(
            mode="json", exclude={"weights_sha256"}
        ),
    }


def write_description(run: Run, world_size: int, device: str) -> None:
    """Write `run.json` into RUN (rank 0)."""
    make_folder(run.output)
    text = json.dumps(describe_run(run, world_size, device), indent=1) + "\n"
    write_text(run.output / DESCRIPTION_NAME, text)
