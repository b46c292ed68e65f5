"""The output folder of `infer`: whose it is, what makes it a dataset, and how an image gets in.

An image is finished when its sidecar is there: it is written last. Several processes may work in
one folder, on one subject one at a time.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ganbert import derivatives
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.config import ModelCard
from ganbert.data.nifti import write_volume
from ganbert.errors import OutputError
from ganbert.folder_lock import HeldError, held
from ganbert.infer_log import LOGS, citation
from ganbert.report.inference import figure_path, frame_names, save_figures
from ganbert.report.overlay import UNCERTAINTY_KEY, draw_layers
from ganbert.synthesis import Synthesis


def check_output(out_dir: Path, description: dict[str, Any]) -> None:
    """Refuse an output folder that is someone else's, or cannot be written.

    Parameters
    ----------
    description : of the dataset that is to be written, see `derivatives.dataset_description`

    Raises
    ------
    OutputError
        If it is so.
    """
    try:
        is_used = _is_used(out_dir)
    except OSError as error:
        raise output_error(out_dir, error) from error
    if not is_used:
        return
    try:
        found = json.loads((out_dir / derivatives.DESCRIPTION_NAME).read_text())
    except (OSError, ValueError):
        found = {}
    if not derivatives.is_continuation(found if isinstance(found, dict) else {}, description):
        raise OutputError(
            out_dir,
            expected="an empty folder, or the output of this model for this dataset",
            found="other files",
            remedy="choose an empty or new folder",
        )


def _is_used(out_dir: Path) -> bool:
    """Whether there is anything in the folder, which must be one that can be written."""
    existing = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        found = "a file" if existing.is_file() else "no permission to write"
        remedy = "choose another output folder"
        raise OutputError(existing, expected="a writable folder", found=found, remedy=remedy)
    # Another process that has begun just now may have made no more than its lock.
    names = (path.name for path in out_dir.iterdir()) if out_dir.is_dir() else ()
    return not all(name.startswith(derivatives.LOCK_PREFIX) for name in names)


@contextlib.contextmanager
def claimed(out_dir: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Make the output folder, and hold a subject in it for this process.

    Parameters
    ----------
    name : of the subject, `sub-01`, or of what else one process at a time may write
    wait : for whoever holds it

    Yields
    ------
    Whether it is held; False: another process has it.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    file = f"{derivatives.LOCK_PREFIX}{name}"
    with contextlib.ExitStack() as stack:
        try:
            words = {"expected": f"no other `ganbert infer` at {name}", "remedy": "wait for it"}
            stack.enter_context(held(out_dir, name=file, wait=wait, **words))
        except HeldError:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                (out_dir / file).unlink(missing_ok=True)


def start_dataset(out_dir: Path, description: dict[str, Any], card: ModelCard, passes: int) -> None:
    """Write what makes a folder a BIDS derivative, unless it is one, and the text to cite.

    Parameters
    ----------
    passes : augmented passes for the map of uncertainty

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with claimed(out_dir, "dataset", wait=True):
        _write_citation(out_dir, card, passes)
        if not (out_dir / derivatives.DESCRIPTION_NAME).exists():
            write_text(out_dir / "README", derivatives.readme(card))
            write_text(out_dir / ".bidsignore", derivatives.ignore_file())
            derivatives.write_json(out_dir / derivatives.DESCRIPTION_NAME, description)


def _write_citation(out_dir: Path, card: ModelCard, passes: int) -> None:
    # One that tells of a map stays, since an earlier run has made it.
    file = make_folder(out_dir / LOGS) / "CITATION.md"
    if passes or not file.exists():
        write_text(file, citation(card, passes))


def is_finished(image: Path, *, with_std: bool) -> bool:
    """Whether an image is there as a whole, with its map of uncertainty if it is to have one."""
    images = [image, _std_of(image)] if with_std else [image]
    return all(each.is_file() and _sidecar_of(each).is_file() for each in images)


def write_image(
    image: Path, card: ModelCard, t1w: PurePosixPath, made: Synthesis, passes: int
) -> None:
    """Write all of an image: itself, its map of uncertainty, its pictures, and last its sidecar.

    Parameters
    ----------
    t1w : relative to the input dataset
    passes : augmented passes that the map was made from

    Raises
    ------
    OutputError
        If it cannot be written; the image is then not finished.
    """
    make_folder(image.parent)
    # What an earlier run has left must not lie beside an image that it does not belong to.
    std = _std_of(image)
    for file in (_sidecar_of(image), _sidecar_of(std), std, figure_path(image, UNCERTAINTY_KEY)):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(file, error) from error
    write_volume(image, made.pet)
    if made.uncertainty is not None:
        write_volume(std, made.uncertainty)
        derivatives.write_json(_sidecar_of(std), derivatives.std_sidecar(card, t1w, passes))
    frames = frame_names(card.frame_start_s, card.frame_duration_s)
    mri = made.conformed.volume
    save_figures(image, draw_layers(mri, made.pet, made.uncertainty, frames, card.data_range))
    sidecar = derivatives.pet_sidecar(card, t1w, made.quality.as_json())
    derivatives.write_json(_sidecar_of(image), sidecar)


def _sidecar_of(image: Path) -> Path:
    return image.with_name(derivatives.sidecar_path(PurePosixPath(image.name)).name)


def _std_of(image: Path) -> Path:
    name = image.name.replace(f"_desc-{derivatives.DESC_PET}_", f"_desc-{derivatives.DESC_STD}_")
    return image.with_name(name)
