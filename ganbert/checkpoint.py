"""One atomic checkpoint of the whole run, and the export of the generator.

A checkpoint is a folder `step-00000100`: both engines as DeepSpeed saves them (weights, optimiser,
schedule, loss scale), the counters, what was asked for, and the checksums of all of it
(`checkpoint_files`). It is written under another name and renamed when every rank is done. Neither
the loader nor the random numbers need a state of their own: both are functions of (seed, step,
rank).
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ganbert.atomic import make_folder, replacing, to_disk, write_text
from ganbert.checkpoint_files import (
    STATE_NAME,
    TrainingState,
    checkpoint_folder,
    discard,
    discard_unfinished,
    keep_newest_and_best,
    measure,
    sync,
    write_manifest,
)
from ganbert.config import ModelCard
from ganbert.data.index import file_sha256
from ganbert.errors import CheckpointError, OutputError
from ganbert.run_folder import CARD_NAME, DESCRIPTION_NAME, EXPORT_NAME, WEIGHTS_NAME
from ganbert.weights_only import load_plain

_ENGINE_TAG = "engine"
_LITTLE_ROOM = 8 * 2**30  # some checkpoints of a BERT-base


class EngineFiles(Protocol):
    """What is known of the files that an engine writes.

    Attributes
    ----------
    written : (SHA-256, bytes) of those of this rank, by path
    """

    written: dict[Path, tuple[str, int]]


class SavableEngine(Protocol):
    """What a checkpoint needs of a DeepSpeed engine."""

    @property
    def checkpoint_engine(self) -> EngineFiles:
        """Its door to the disk."""

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> Any:
        """Write the engine's state below `save_dir`; a collective call."""

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, Any]:
        """Read it back; (None, ...) where there is nothing to read."""


class Saved(NamedTuple):
    """A checkpoint that was written.

    Attributes
    ----------
    folder : which exists under this name only when it is whole
    num_bytes : of the engines' files
    """

    folder: Path
    num_bytes: int


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


def save_checkpoint(
    run: Path,
    engines: Mapping[str, SavableEngine],
    state: TrainingState,
    *,
    keep: int,
    description: Mapping[str, Any],
) -> Saved:
    """Save both engines and the state; every rank calls this at the same step.

    Parameters
    ----------
    engines : by name, "generator" and "discriminator"
    keep : how many checkpoints stay, the newest ones; the best one stays besides
    description : of the run, as JSON

    Raises
    ------
    OutputError
        If it cannot be written, a full disk included; nothing whole is lost then.
    """
    final = checkpoint_folder(run, state.step)
    partial = final.with_name(final.name + ".partial")
    first = torch.distributed.get_rank() == 0
    try:
        if first:
            discard_unfinished(run)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        for name, engine in engines.items():
            engine.checkpoint_engine.written.clear()
            engine.save_checkpoint(str(partial / name), tag=_ENGINE_TAG, save_latest=False)
        files = _gather_written(partial, engines)
        if first:
            _finish(partial, files, state, description)
            discard(final)
            partial.rename(final)
            to_disk(final.parent)
            to_disk(run)
            keep_newest_and_best(run, keep)
        torch.distributed.barrier()
    except (OSError, RuntimeError) as error:
        found = _of_writing(error, partial)
        if found is None:
            raise
        raise OutputError(
            partial,
            expected="room and permission for a checkpoint",
            found=found,
            remedy="free space or mend the permissions; what was saved before is whole",
        ) from error
    return Saved(final, sum(size for _, size in files.values()))


def _gather_written(
    partial: Path, engines: Mapping[str, SavableEngine]
) -> dict[str, tuple[str, int]]:
    """Checksums of what all ranks have written: each has hashed its own, not rank 0 all of it."""
    own = {
        str(path.relative_to(partial)): checksum
        for engine in engines.values()
        for path, checksum in engine.checkpoint_engine.written.items()
    }
    of_all: list[dict[str, tuple[str, int]]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_all, own)
    return {name: checksum for files in of_all for name, checksum in files.items()}


def _finish(
    partial: Path,
    files: dict[str, tuple[str, int]],
    state: TrainingState,
    description: Mapping[str, Any],
) -> None:
    # DeepSpeed lays scripts beside its files. `ganbert export` does what they do, and a checkpoint
    # is no place for code.
    for script in partial.rglob("*.py"):
        script.unlink()
    (partial / STATE_NAME).write_text(state.model_dump_json(indent=1) + "\n")
    (partial / DESCRIPTION_NAME).write_text(json.dumps(description, indent=1) + "\n")
    # With a RUN of its own on each node every checkpoint would look whole and none could be loaded.
    for name, (_, size) in files.items():
        found = (partial / name).stat().st_size if (partial / name).is_file() else None
        if found != size:
            raise OutputError(
                partial / name,
                expected=f"the {size} bytes that a rank has written",
                found="no such file" if found is None else f"{found} bytes",
                remedy="give an --output that all nodes share",
            )
    own = {name: measure(partial / name) for name in (STATE_NAME, DESCRIPTION_NAME)}
    write_manifest(partial, files | own)
    sync(partial)


def _of_writing(error: OSError | RuntimeError, folder: Path) -> str | None:
    """Why writing failed, or None if an error is of something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if "inline_container" not in str(error):
        return None
    # A full disk is a RuntimeError of torch's zip writer, which does not give the reason.
    found = "a file that could not be written to its end"
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder.parent).free
        if free < _LITTLE_ROOM:  # else it is a quota, or another limit
            found += f" ({free / 2**20:,.0f} MiB free there)"
    return found


def load_checkpoint(folder: Path, engines: Mapping[str, SavableEngine]) -> None:
    """Bring both engines to where the checkpoint left them.

    Raises
    ------
    CheckpointError
        If it is incomplete or torn, or holds anything but data.
    """
    for name, engine in engines.items():
        found = "nothing DeepSpeed can load"
        try:
            loaded, _ = engine.load_checkpoint(str(folder / name), tag=_ENGINE_TAG)
        except (AssertionError, OSError, RuntimeError, KeyError) as error:
            loaded, found = None, str(error).partition("\n")[0]
        if loaded is None:
            raise CheckpointError(
                folder / name,
                expected="the state of an engine",
                found=found,
                remedy="remove this checkpoint to go on from the one before",
            )


def read_generator(folder: Path) -> dict[str, torch.Tensor]:
    """Read the generator's weights out of a checkpoint, without its engine.

    Returns
    -------
    The `state_dict`, in the precision that was trained.

    Raises
    ------
    CheckpointError
        If they are missing or torn, or there is anything but data.
    """
    file = folder / "generator" / _ENGINE_TAG / "mp_rank_00_model_states.pt"
    content = load_plain(file)
    weights = content.get("module") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(
            file,
            expected="the weights of a generator",
            found="none",
            remedy="choose another checkpoint",
        )
    return weights


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
        # safetensors makes its file for this user's eyes alone, and others infer with it.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary)
            temporary.chmod(mode)
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
