"""One atomic checkpoint of the whole run, and the export of the generator.

A checkpoint is a folder `step-00000100`: both engines as DeepSpeed saves them (weights, optimiser,
schedule, loss scale) and `state.json` (counters, and what they were counted on). It is written
under another name and renamed when every rank is done, so a folder with that name is whole. Neither
the loader nor the random numbers need a state of their own: both are functions of (seed, step,
rank).
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from ganbert.config import ModelCard
from ganbert.data.index import file_sha256
from ganbert.errors import CheckpointError, OutputError

_NAME = re.compile(r"step-(\d{8})")
_ENGINE_TAG = "engine"
WEIGHTS_NAME = "generator.safetensors"
CARD_NAME = "generator.json"


class SavableEngine(Protocol):
    """What a checkpoint needs of a DeepSpeed engine."""

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> Any:
        """Write the engine's state below `save_dir`; a collective call."""

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, Any]:
        """Read it back; (None, ...) where there is nothing to read."""


class TrainingState(BaseModel):
    """What a resumed run must know and cannot compute.

    Attributes
    ----------
    step : optimiser steps done
    samples_seen : volumes taken from the sample order by all ranks together
    index_sha256 : of the index trained on
    seed : of the run, from which sample order and random numbers follow
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    samples_seen: int
    index_sha256: str
    seed: int


def _checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """Newest checkpoint of RUN, or None for a new run.

    Raises
    ------
    OutputError
        If RUN holds anything and may not be resumed, or was never a run.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if resume == "none" or not (output / "run.json").is_file():
        raise OutputError(
            output,
            expected="a new or empty folder" if resume == "none" else "a run or an empty folder",
            found="a folder with something in it" if output.is_dir() else "a file",
            remedy="give another --output, or --resume auto to go on with a run",
        )
    checkpoints = list_checkpoints(output)
    return checkpoints[-1] if checkpoints else None


def _prune(run: Path, keep: int) -> None:
    for folder in list_checkpoints(run)[:-keep]:
        shutil.rmtree(folder)


def save_checkpoint(
    run: Path, engines: dict[str, SavableEngine], state: TrainingState, *, keep: int
) -> Path:
    """Save both engines and the state; every rank calls this at the same step.

    Parameters
    ----------
    engines : by name, "generator" and "discriminator"
    keep : how many checkpoints stay, the newest ones

    Returns
    -------
    The folder, which exists under this name only when it is whole.
    """
    final = _checkpoint_folder(run, state.step)
    partial = final.with_name(final.name + ".partial")
    first = torch.distributed.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    for name, engine in engines.items():
        engine.save_checkpoint(str(partial / name), tag=_ENGINE_TAG, save_latest=False)
    torch.distributed.barrier()
    if first:
        (partial / "state.json").write_text(state.model_dump_json(indent=1) + "\n")
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _prune(run, keep)
    torch.distributed.barrier()
    return final


def _read_state(folder: Path) -> TrainingState:
    file = folder / "state.json"
    try:
        return TrainingState.model_validate_json(file.read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(
            file,
            expected="the state of a training run",
            found=str(error).splitlines()[0],
            remedy="remove this checkpoint to go on from the one before",
        ) from error


def load_checkpoint(
    folder: Path, engines: dict[str, SavableEngine], *, index_sha256: str, seed: int
) -> TrainingState:
    """Bring both engines to where the checkpoint left them.

    Raises
    ------
    CheckpointError
        If it is incomplete, or was trained on another index or with another seed.
    """
    state = _read_state(folder)
    for name, saved, now in (
        ("index", state.index_sha256, index_sha256),
        ("seed", state.seed, seed),
    ):
        if saved != now:
            raise CheckpointError(
                folder,
                expected=f"a checkpoint of this {name} ({now})",
                found=str(saved),
                remedy="give the data and recipe of that run, or another --output",
            )
    for name, engine in engines.items():
        loaded, _ = engine.load_checkpoint(str(folder / name), tag=_ENGINE_TAG)
        if loaded is None:
            raise CheckpointError(
                folder / name,
                expected="the state of an engine",
                found="nothing DeepSpeed can load",
                remedy="remove this checkpoint to go on from the one before",
            )
    return state


def export_generator(run: Path, weights: dict[str, torch.Tensor], card: dict[str, Any]) -> Path:
    """Write RUN/export: the generator's weights (safetensors, no pickle) and its card.

    Parameters
    ----------
    weights : the generator's state_dict; saved as float32
    card : the fields of `ModelCard` but for `weights_sha256`

    Returns
    -------
    The export folder.
    """
    folder = run / "export"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.items()}
    temporary = folder / f".{WEIGHTS_NAME}.tmp"
    save_file(tensors, temporary)
    full_card = ModelCard(**card, weights_sha256=file_sha256(temporary))
    card_temporary = folder / f".{CARD_NAME}.tmp"
    card_temporary.write_text(json.dumps(full_card.model_dump(mode="json"), indent=1) + "\n")
    os.replace(temporary, folder / WEIGHTS_NAME)
    os.replace(card_temporary, folder / CARD_NAME)
    return folder
