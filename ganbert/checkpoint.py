"""One atomic checkpoint of the whole run, and the export of the generator.

A checkpoint is a folder `step-00000100`: both engines as DeepSpeed saves them (weights, optimiser,
schedule, loss scale) and `state.json` (counters, and what they were counted on). It is written
under another name and renamed when every rank is done, so a folder with that name is whole. Neither
the loader nor the random numbers need a state of their own: both are functions of (seed, step,
rank).
"""

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from ganbert.atomic import make_folder, replacing, write_text
from ganbert.config import ModelCard
from ganbert.data.index import file_sha256
from ganbert.errors import CheckpointError, OutputError
from ganbert.run_folder import CARD_NAME, DESCRIPTION_NAME, EXPORT_NAME, WEIGHTS_NAME

_NAME = re.compile(r"step-(\d{8})")
_ENGINE_TAG = "engine"


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


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def _has_content(output: Path) -> bool:
    return any(path.name != ".lock" for path in output.iterdir())


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """Newest checkpoint of RUN, or None for a new run.

    Raises
    ------
    OutputError
        If RUN holds anything and may not be resumed, or was never a run.
    CheckpointError
        If RUN is finished and its checkpoints are gone: a new run would replace its export.
    """
    if not output.exists() or (output.is_dir() and not _has_content(output)):
        return None
    if resume == "none" or not (output / DESCRIPTION_NAME).is_file():
        raise OutputError(
            output,
            expected="a new or empty folder" if resume == "none" else "a run or an empty folder",
            found="a folder with something in it" if output.is_dir() else "a file",
            remedy="give another --output, or --resume auto to go on with a run",
        )
    checkpoints = list_checkpoints(output)
    if not checkpoints and (output / EXPORT_NAME).exists():
        raise CheckpointError(
            output / "checkpoints",
            expected="a checkpoint to go on from",
            found="none, though the run has an export",
            remedy="restore the checkpoints, or give another --output",
        )
    return checkpoints[-1] if checkpoints else None


def read_state(folder: Path) -> TrainingState:
    """Read the counters of a checkpoint.

    Raises
    ------
    CheckpointError
        If they are missing or torn.
    """
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


def check_state(
    folder: Path,
    state: TrainingState,
    *,
    index_sha256: str,
    seed: int,
    max_steps: int,
    samples_per_micro_step: int,
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Parameters
    ----------
    samples_per_micro_step : micro-batch times ranks, now

    Raises
    ------
    CheckpointError
        If it was trained on another index or seed, has more steps than are asked for, or stopped
        at a sample where no micro-step of that many ranks begins.
    """
    another = "give the data, recipe and number of ranks of that run, or another --output"
    for name, saved, now in (
        ("index", state.index_sha256, index_sha256),
        ("seed", state.seed, seed),
    ):
        if saved != now:
            raise CheckpointError(
                folder,
                expected=f"a checkpoint of this {name} ({now})",
                found=str(saved),
                remedy=another,
            )
    if state.step > max_steps:
        raise CheckpointError(
            folder,
            expected=f"at most max_steps = {max_steps} steps done",
            found=str(state.step),
            remedy="raise max_steps, or give another --output",
        )
    if state.samples_seen % samples_per_micro_step:
        raise CheckpointError(
            folder,
            expected=f"micro-batch x ranks that divides the {state.samples_seen} samples seen",
            found=str(samples_per_micro_step),
            remedy=another,
        )


def _discard(folder: Path) -> None:
    # Renamed first: a kill in the middle must not leave a torn folder under a whole one's name.
    if folder.exists():
        doomed = folder.with_name(folder.name + ".old.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    """Bring everything below `folder` to the disk, so that a rename cannot overtake it."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard_unfinished(run: Path) -> None:
    """Remove what is left of checkpoints that were not finished, as far as the system lets it."""
    for stale in run.glob("checkpoints/*.partial"):
        shutil.rmtree(stale, ignore_errors=True)


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

    Raises
    ------
    OutputError
        If it cannot be written, a full disk included; nothing whole is lost then.
    """
    final = run / "checkpoints" / f"step-{state.step:08d}"
    partial = final.with_name(final.name + ".partial")
    first = torch.distributed.get_rank() == 0
    try:
        if first:
            discard_unfinished(run)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        for name, engine in engines.items():
            engine.save_checkpoint(str(partial / name), tag=_ENGINE_TAG, save_latest=False)
        torch.distributed.barrier()
        if first:
            (partial / "state.json").write_text(state.model_dump_json(indent=1) + "\n")
            _sync(partial)
            _discard(final)
            partial.rename(final)
            _sync(final.parent)
            for folder in list_checkpoints(run)[:-keep]:
                _discard(folder)
        torch.distributed.barrier()
    except (OSError, RuntimeError) as error:
        found = _of_writing(error)
        if found is None:
            raise
        raise OutputError(
            partial,
            expected="room and permission for a checkpoint",
            found=found,
            remedy="free space or mend the permissions; the checkpoints before are whole",
        ) from error
    return final


def _of_writing(error: OSError | RuntimeError) -> str | None:
    """Why writing failed, or None if an error is of something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # A full disk is a RuntimeError of torch's zip writer, which does not give the reason.
    return "a file that ends too soon" if "inline_container" in str(error) else None


def load_checkpoint(folder: Path, engines: dict[str, SavableEngine]) -> None:
    """Bring both engines to where the checkpoint left them.

    Raises
    ------
    CheckpointError
        If it is incomplete or torn.
    """
    for name, engine in engines.items():
        found = "nothing DeepSpeed can load"
        try:
            loaded, _ = engine.load_checkpoint(str(folder / name), tag=_ENGINE_TAG)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            loaded, found = None, str(error).partition("\n")[0]
        if loaded is None:
            raise CheckpointError(
                folder / name,
                expected="the state of an engine",
                found=found,
                remedy="remove this checkpoint to go on from the one before",
            )


def export_generator(run: Path, weights: dict[str, torch.Tensor], card: dict[str, Any]) -> Path:
    """Write RUN/export: the generator's weights (safetensors, no pickle) and its card.

    Parameters
    ----------
    weights : the generator's state_dict; saved as float32
    card : the fields of `ModelCard` but for `weights_sha256`

    Returns
    -------
    The export folder.

    Raises
    ------
    OutputError
        If it cannot be written; an export before it stays as it was.
    """
    folder = make_folder(run / EXPORT_NAME)
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.items()}
    with replacing(folder / WEIGHTS_NAME) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            raise OutputError(
                folder / WEIGHTS_NAME,
                expected="room and permission for the weights",
                found=str(error).rpartition(": ")[2],
                remedy="free space or mend the permissions, and run again: all steps are saved",
            ) from error
        full_card = ModelCard(**card, weights_sha256=file_sha256(temporary))
        # The card first: weights that it does not describe are refused, so a crash in between
        # leaves an export that says that it is torn.
        write_text(folder / CARD_NAME, full_card.model_dump_json(indent=1) + "\n")
    return folder
