"""What lies in RUN/checkpoints, which of it is whole, and which of it is kept.

step-00000100/manifest.json    size and SHA-256 of every file below; written last
step-00000100/state.json       counters, and what they were counted on
step-00000100/run.json         what was asked for: settings, data, versions, and the model card
step-00000100/generator/       the engines, as DeepSpeed saves them
step-00000100.partial/         being written, or left by a kill: nobody reads it
step-00000100.damaged/         was passed over by a resumed run: for whoever wants to know why
"""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ganbert.atomic import SUFFIX, to_disk
from ganbert.data.index import file_sha256
from ganbert.errors import CheckpointError, OutputError
from ganbert.folder_lock import LOCK_NAME
from ganbert.run_folder import DESCRIPTION_NAME, EXPORT_NAME, describe_damage, read_object

MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 1
# A checkpoint that is being removed.
_DOOMED = ".old.partial"


class TrainingState(BaseModel):
    """What a resumed run must know and cannot compute.

    Attributes
    ----------
    step : optimiser steps done
    samples_seen : volumes taken from the sample order by all ranks together
    index_sha256 : of the index trained on
    seed : of the run, from which sample order and random numbers follow
    validation_l1 : of the generator on validation subjects, normalised; None if not measured
    validation_subjects : how many those were, of the first of the split; None if not measured
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    samples_seen: int
    index_sha256: str
    seed: int
    validation_l1: float | None = None
    validation_subjects: int | None = None


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first; see `find_damage` for whether one still is."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def read_state(folder: Path) -> TrainingState:
    """Read the counters of a checkpoint.

    Raises
    ------
    CheckpointError
        If they are missing or torn.
    """
    file = folder / STATE_NAME
    try:
        return TrainingState.model_validate_json(file.read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(
            file,
            expected="the state of a training run",
            found=str(error).splitlines()[0],
            remedy="remove this checkpoint to go on from the one before",
        ) from error


def write_manifest(folder: Path, files: Mapping[str, tuple[str, int]]) -> None:
    """Write down what a checkpoint consists of.

    Parameters
    ----------
    files : (SHA-256, bytes) by path below `folder`
    """
    listed = {name: {"sha256": sha, "bytes": size} for name, (sha, size) in sorted(files.items())}
    content = {"format": _FORMAT, "files": listed}
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n")


def measure(file: Path) -> tuple[str, int]:
    """SHA-256 and bytes of a file."""
    return file_sha256(file), file.stat().st_size


def find_damage(folder: Path) -> str | None:
    """Compare a checkpoint with its manifest; return what is wrong in a few words, if anything."""
    try:
        manifest = read_object(folder / MANIFEST_NAME, expected="", remedy="")
        files = {str(k): (str(v["sha256"]), int(v["bytes"])) for k, v in manifest["files"].items()}
        is_known = manifest["format"] == _FORMAT and STATE_NAME in files
    except CheckpointError as error:
        return f"{MANIFEST_NAME}: {error.found}"
    except (AttributeError, KeyError, TypeError, ValueError):
        is_known = False
    if not is_known:
        return f"{MANIFEST_NAME}: damaged, or of another version"
    try:
        # All sizes first: they cost nothing.
        for name, (_, size) in files.items():
            if (found := (folder / name).stat().st_size) != size:
                return f"{name}: {found} bytes, not {size}"
        for name, (sha256, _) in files.items():
            if file_sha256(folder / name) != sha256:
                return f"{name}: another SHA-256 than when it was written"
    except OSError as error:
        return f"{name}: {describe_damage(error)}"
    return None


def newest_whole(checkpoints: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """Return the newest checkpoint that is whole, and a line for each that was passed over.

    Parameters
    ----------
    checkpoints : oldest first, at least one

    Raises
    ------
    CheckpointError
        If none is whole: a run that had got somewhere is never started over unasked.
    """
    damages: dict[str, str] = {}
    for folder in reversed(checkpoints):
        damage = find_damage(folder)
        if damage is None:
            return folder, tuple(
                f"warning: checkpoint {name} is damaged ({what}); going on from {folder.name}"
                for name, what in damages.items()
            )
        damages[folder.name] = damage
    raise CheckpointError(
        checkpoints[-1].parent,
        expected="a whole checkpoint to go on from",
        found=", ".join(f"{name} damaged ({what})" for name, what in damages.items()),
        remedy="restore one from a copy, or train from the start into another folder",
    )


def find_checkpoint(output: Path, resume: str) -> tuple[Path | None, tuple[str, ...]]:
    """Newest whole checkpoint of RUN, or None for a new run; and what to say of damaged ones.

    Raises
    ------
    OutputError
        If RUN holds anything and may not be resumed, or was never a run.
    CheckpointError
        If RUN is finished and its checkpoints are gone: a new run would replace its export. If it
        has checkpoints and none is whole.
    """
    if is_new(output, resume):
        return None, ()
    checkpoints = list_checkpoints(output)
    if not checkpoints and (output / EXPORT_NAME).exists():
        raise CheckpointError(
            output / "checkpoints",
            expected="a checkpoint to go on from",
            found="none, though the run has an export",
            remedy="restore the checkpoints, or give another --output",
        )
    return newest_whole(checkpoints) if checkpoints else (None, ())


def is_new(output: Path, resume: str) -> bool:
    """Whether RUN has nothing in it yet.

    Raises
    ------
    OutputError
        If RUN holds anything and may not be resumed, or was never a run.
    """
    if not output.exists() or (output.is_dir() and not _has_content(output)):
        return True
    if resume == "none" or not (output / DESCRIPTION_NAME).is_file():
        raise OutputError(
            output,
            expected="a new or empty folder" if resume == "none" else "a run or an empty folder",
            found="a folder with something in it" if output.is_dir() else "a file",
            remedy="give another --output, or --resume auto to go on with a run"
            if resume == "none" and (output / DESCRIPTION_NAME).is_file()
            else "give another --output",
        )
    return False


def _has_content(output: Path) -> bool:
    # A kill in the very first write leaves a temporary file.
    return any(
        path.name != LOCK_NAME and not path.name.endswith(SUFFIX) for path in output.iterdir()
    )


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation L1, the oldest of equals; None if none has one.

    Of those that were validated on as many subjects as the newest of them: L1 on others says
    nothing of which is better.
    """
    known: dict[Path, TrainingState] = {}
    for folder in list_checkpoints(run):
        # A damaged one is not the best, and is dealt with when the run is resumed.
        with contextlib.suppress(CheckpointError):
            state = read_state(folder)
            if state.validation_l1 is not None:
                known[folder] = state
    if not known:
        return None
    last = known[max(known)].validation_subjects
    scores = {
        folder: state.validation_l1
        for folder, state in known.items()
        if state.validation_subjects == last and state.validation_l1 is not None
    }
    return min(scores, key=lambda folder: scores[folder])


def keep_newest_and_best(run: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best."""
    checkpoints = list_checkpoints(run)
    spared = {*checkpoints[-keep:], best_checkpoint(run)}
    for folder in checkpoints:
        if folder not in spared:
            discard(folder)


def set_aside_newer(run: Path, than: Path) -> None:
    """Take damaged checkpoints out of the way of those that a resumed run will write.

    Raises
    ------
    CheckpointError
        If one of them is whole: the ranks of a launcher that died saved it since this start looked.
    """
    for folder in list_checkpoints(run):
        if folder.name > than.name:
            if find_damage(folder) is None:
                raise CheckpointError(
                    folder,
                    expected=f"no checkpoint newer than {than.name}",
                    found="a whole one, saved since by ranks that were left of an earlier start",
                    remedy="give the same command again",
                )
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def discard(folder: Path) -> None:
    """Remove a checkpoint, if it is there."""
    # Renamed first: a kill in the middle must not leave a torn folder under a whole one's name.
    if folder.exists():
        doomed = folder.with_name(folder.name + _DOOMED)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        # What a reader holds open a network file system keeps; the next save clears it away.
        shutil.rmtree(doomed, ignore_errors=True)


def discard_unfinished(run: Path) -> None:
    """Remove what is left of checkpoints that were not finished, as far as the system lets it."""
    for stale in run.glob("checkpoints/*.partial"):
        # Renamed first: its writer may be about to give it a whole one's name.
        doomed = stale.with_name(f"{stale.name.removesuffix(_DOOMED)}{_DOOMED}")
        with contextlib.suppress(OSError):
            stale.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sync(folder: Path) -> None:
    """Bring everything below `folder` to the disk, so that a rename cannot overtake it."""
    for path in (*folder.rglob("*"), folder):
        to_disk(path)
