"""`ganbert infer`: a BIDS-App that writes a synthetic PET for every T1w of a dataset.

A T1w alone is enough. A run that was stopped is continued: what one earlier run with the same model
and the same input has finished is kept, anything else in the output folder is refused. One bad
image does not cost the others their result; it is reported at the end.
"""

import difflib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ganbert import derivatives
from ganbert.atomic import make_folder, output_error, write_text
from ganbert.data.bids_index import index_bids
from ganbert.data.nifti import check_header, read_volume, write_volume
from ganbert.data.volume import Volume
from ganbert.errors import ConfigError, DatasetError, ImageError, OutputError
from ganbert.predict import Predictor, load_predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """One T1w to synthesise from; `path` is relative to the dataset."""

    subject: str
    session: str | None
    path: PurePosixPath

    @property
    def label(self) -> str:
        """BIDS labels, for progress and messages."""
        return f"sub-{self.subject}" + (f" ses-{self.session}" if self.session else "")


def _query_t1w(bids_dir: Path) -> list[Scan]:
    layout = index_bids(bids_dir)
    files = layout.get(datatype="anat", suffix="T1w", extension=[".nii", ".nii.gz"])
    root = Path(layout.root)
    return [
        Scan(
            file.entities["subject"],
            file.entities.get("session"),
            PurePosixPath(Path(file.path).relative_to(root).as_posix()),
        )
        for file in files
        if "subject" in file.entities
    ]


def _choose_one_each(scans: Sequence[Scan]) -> list[Scan]:
    """Keep one T1w per subject and session: the one with the fewest entities, then by name."""
    groups: dict[tuple[str, str], list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[scan.subject, scan.session or ""].append(scan)
    chosen = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda scan: (scan.path.name.count("_"), scan.path.name))
        chosen.append(group[0])
        if len(group) > 1:
            first = group[0]
            log.warning("%s: %d T1w, %s is used", first.label, len(group), first.path.name)
    return chosen


def _near_misses(bids_dir: Path) -> str:
    """Name what is there instead of a T1w, at most three files."""
    images = sorted(path for path in bids_dir.rglob("*.nii*") if path.is_file())
    if not images:
        return "no NIfTI file at all"
    names = ", ".join(path.relative_to(bids_dir).as_posix() for path in images[:3])
    return f"{len(images)} NIfTI files and no T1w among them, for example {names}"


def _select(scans: Sequence[Scan], labels: Sequence[str], bids_dir: Path) -> list[Scan]:
    wanted = [label.removeprefix("sub-") for label in labels]
    there = {scan.subject for scan in scans}
    for label in wanted:
        if label not in there:
            near = difflib.get_close_matches(label, sorted(there), n=3, cutoff=0.5)
            options = ", ".join(f"sub-{name}" for name in near or sorted(there)[:3])
            raise DatasetError(
                bids_dir,
                expected=f"a T1w of sub-{label}",
                found="none",
                remedy=f"choose from those that have one, such as {options}",
            )
    return [scan for scan in scans if scan.subject in wanted]


def find_scans(bids_dir: Path, participant_labels: Sequence[str] | None = None) -> list[Scan]:
    """Find the T1w images of a BIDS dataset, one per subject and session.

    Parameters
    ----------
    bids_dir : the dataset; needs no `dataset_description.json`
    participant_labels : with or without `sub-`; none: all subjects

    Raises
    ------
    DatasetError
        If the folder is missing, holds no T1w, or lacks one of a subject that was asked for.
    """
    if not bids_dir.is_dir():
        found = "a file" if bids_dir.exists() else "nothing"
        remedy = "check the path"
        raise DatasetError(bids_dir, expected="a BIDS folder", found=found, remedy=remedy)
    scans = _choose_one_each(_query_t1w(bids_dir))
    if not scans:
        raise DatasetError(
            bids_dir,
            expected="sub-*/[ses-*/]anat/sub-*_T1w.nii[.gz]",
            found=_near_misses(bids_dir),
            remedy="name the images as BIDS does, or point to the top folder of the dataset",
        )
    if participant_labels:
        return _select(scans, participant_labels, bids_dir)
    folders = {path.name for path in bids_dir.glob("sub-*") if path.is_dir()}
    without = sorted(folders - {f"sub-{scan.subject}" for scan in scans})
    if without:
        log.warning("no T1w, left out: %s", ", ".join(without))
    return scans


def _read_description(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_output(out_dir: Path, description: dict[str, Any]) -> None:
    """Refuse an output folder that is someone else's, or cannot be written."""
    try:
        is_used = _is_used(out_dir)
    except OSError as error:
        raise output_error(out_dir, error) from error
    if not is_used:
        return
    found_description = _read_description(out_dir / derivatives.DESCRIPTION_NAME)
    if not derivatives.is_continuation(found_description, description):
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
    return out_dir.is_dir() and any(out_dir.iterdir())


def _start_dataset(out_dir: Path, description: dict[str, Any], readme: str) -> None:
    make_folder(out_dir)
    derivatives.write_json(out_dir / derivatives.DESCRIPTION_NAME, description)
    write_text(out_dir / "README", readme)


def _synthesise(path: Path, predictor: Predictor) -> Volume:
    try:
        return predictor.predict(read_volume(path))
    except ImageError as error:
        # What only sees voxels cannot name the file.
        where = error.where if str(path) in str(error.where) else path
        raise ImageError(
            where, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error


def _write(image: Path, pet: Volume, sidecar: dict[str, Any]) -> None:
    """Write the image, then its sidecar: a sidecar says that a subject is finished."""
    make_folder(image.parent)
    write_volume(image, pet)
    derivatives.write_json(_sidecar_of(image), sidecar)


def _sidecar_of(image: Path) -> Path:
    return image.with_name(derivatives.sidecar_path(PurePosixPath(image.name)).name)


def _raise_failures(failures: Sequence[ImageError], num_scans: int, out_dir: Path) -> None:
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ImageError(
            out_dir,
            expected=f"{num_scans} readable T1w",
            found=f"{len(failures)} that are not, listed above; the first is {failures[0].where}",
            remedy="mend them and run the same command again, what is finished is kept",
        )


def _say(console: Console, text: str) -> None:
    """Print one line as it is: a path is neither markup nor broken at the edge of a terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def infer(
    bids_dir: Path,
    out_dir: Path,
    *,
    model: Path,
    participant_labels: Sequence[str] | None = None,
    level: str = "participant",
    device: str = "auto",
    console: Console | None = None,
) -> list[Path]:
    """Write a synthetic PET, as a BIDS derivative, for every T1w of a dataset.

    Parameters
    ----------
    bids_dir : dataset with T1w images; nothing else is needed
    out_dir : new, empty, or the output of an earlier run with this model and dataset: what that
        run has finished is kept and not computed again
    model : a run, its export, or a file of the export
    participant_labels : with or without `sub-`; none: all subjects
    level : "participant", the only one there is
    device : "auto", "cpu", "cuda", ...
    console : where progress and the summary go; default: standard output

    Returns
    -------
    Paths of the images, of this run and of an earlier one.

    Raises
    ------
    CheckpointError, DatasetError, OutputError
        Before anything is written.
    ImageError
        After all other subjects have their image, if a T1w cannot be used.
    """
    if level != "participant":
        remedy = "say participant, each image is synthesised on its own"
        raise ConfigError(
            "analysis level", expected="participant", found=repr(level), remedy=remedy
        )
    console = console or Console()
    predictor = load_predictor(model, device)
    scans = find_scans(bids_dir, participant_labels)
    description = derivatives.dataset_description(predictor.card, bids_dir, out_dir)
    _check_output(out_dir, description)
    return _run(scans, bids_dir, out_dir, predictor, description, console)


def _run(
    scans: Sequence[Scan],
    bids_dir: Path,
    out_dir: Path,
    predictor: Predictor,
    description: dict[str, Any],
    console: Console,
) -> list[Path]:
    card = predictor.card
    images: list[Path] = []
    failures: list[ImageError] = []
    num_kept = 0
    with _progress(console) as progress:
        for scan in progress.track(scans, description="infer"):
            name = derivatives.pet_path(scan.subject, scan.session, card.tracer)
            image = out_dir / name
            if image.is_file() and _sidecar_of(image).is_file():
                num_kept += 1
                images.append(image)
                continue
            try:
                note = check_header(bids_dir / scan.path)
                if note:
                    _say(console, f"{scan.label}: {note}")
                pet = _synthesise(bids_dir / scan.path, predictor)
            except ImageError as error:
                failures.append(error)
                _say(console, f"{scan.label}: {error}")
                continue
            if not (out_dir / derivatives.DESCRIPTION_NAME).exists():
                _start_dataset(out_dir, description, derivatives.readme(card))
            _write(image, pet, derivatives.pet_sidecar(card, scan.path))
            images.append(image)
    kept = f" ({num_kept} from an earlier run)" if num_kept else ""
    _say(console, f"{len(images)} of {len(scans)} synthetic PET in {out_dir}{kept}")
    _raise_failures(failures, len(scans), out_dir)
    return images
