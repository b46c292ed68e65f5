"""The group level of `infer`: tables and a page about all synthetic PETs of an output folder.

    group_pet.tsv       a line an image: flags, measures, burden where it can be read
    group_regions.tsv   a line for each image, frame and region of a segmentation
    group_pet.html      the same for people, those with warnings first

A segmentation is a `_dseg.nii[.gz]` on the subject's T1w, with the table of its regions beside or
above it, in the dataset, in its `derivatives/`, or in a folder that is named. It needs no model.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from ganbert import derivatives
from ganbert.atomic import replacing
from ganbert.burden import BurdenPlan, composite_suvr, plan_burden
from ganbert.data.nifti import read_volume, resample
from ganbert.data.regions import read_region_names
from ganbert.data.volume import FloatArray, Volume
from ganbert.errors import ConfigError, DatasetError, GanbertError
from ganbert.report.inference import Made, find_made, write_group
from ganbert.scales import centiloid
from ganbert.tables import Line, write_tsv
from ganbert.tracers import get_tracer

PET_TABLE, REGION_TABLE = "group_pet.tsv", "group_regions.tsv"
_ON_T1W = ("", "T1w", "orig")
_MEASURES = (
    "coverage", "voxel_mm", "mean", "std", "foreground", "brightness", "contrast", "core", "skew",
    "black", "pet_mean", "pet_p99", "mri_token_overflow", "pet_token_overflow", "below_range",
    "above_range",
)  # fmt: skip


def infer_group(
    bids_dir: Path,
    out_dir: Path,
    participant_labels: Sequence[str] | None,
    segmentations: Sequence[Path],
    console: Console,
) -> Path:
    """Write the tables and the page of the group.

    Parameters
    ----------
    bids_dir : the dataset that the images were made from
    out_dir : output of the participant level
    participant_labels : with or without `sub-`; none: all
    segmentations : further datasets with `_dseg` images
    console : where progress and what was written go

    Returns
    -------
    path of the page

    Raises
    ------
    DatasetError
        If there is no synthetic PET, or a sidecar cannot be read.
    OutputError
        If a file cannot be written.
    """
    description = _read_description(out_dir)
    made = find_made(out_dir)
    if participant_labels:
        wanted = {f"sub-{label.removeprefix('sub-')}" for label in participant_labels}
        made = [each for each in made if each.subject in wanted]
    if not made:
        raise DatasetError(
            out_dir,
            expected="synthetic PET of the participant level",
            found="none",
            remedy="run it with `participant` first",
        )
    folders = _segmentation_folders(bids_dir, segmentations)
    lines: list[Line] = []
    region_lines: list[Line] = []
    for each in track(made, description="group", console=console):
        line, regions, problem = _measure(each, folders)
        lines.append(line)
        region_lines += regions
        if problem:
            _say(console, f"{each.label}: no regional values: {problem}")
    tables = [PET_TABLE]
    _write_table(out_dir / PET_TABLE, lines)
    if region_lines:
        tables.append(REGION_TABLE)
        _write_table(out_dir / REGION_TABLE, region_lines)
    else:
        (out_dir / REGION_TABLE).unlink(missing_ok=True)
    page = write_group(out_dir, made, region_lines, derivatives.model_facts(description), tables)
    with_regions = len({(line["subject"], line["session"]) for line in region_lines})
    _say(console, f"{len(made)} images, {with_regions} with regional values: {page}")
    return page


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _read_description(out_dir: Path) -> dict[str, Any]:
    file = out_dir / derivatives.DESCRIPTION_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or "no JSON"
        remedy = "give the output folder of the participant level"
        raise DatasetError(
            file, expected="a derivative dataset", found=found, remedy=remedy
        ) from error
    if not isinstance(content, dict) or derivatives.MODEL_KEY not in content:
        remedy = "give the output folder of the participant level"
        found = "another dataset"
        raise DatasetError(file, expected="output of `ganbert infer`", found=found, remedy=remedy)
    return content


def _write_table(file: Path, lines: Sequence[Line]) -> None:
    with replacing(file) as temporary:
        write_tsv(temporary, lines)


def _segmentation_folders(bids_dir: Path, more: Sequence[Path]) -> list[Path]:
    for folder in more:
        if not folder.is_dir():
            remedy = "give a folder that holds sub-*/[ses-*/]anat/*_dseg.nii.gz"
            raise DatasetError(folder, expected="a folder", found="none", remedy=remedy)
    below = sorted(path for path in (bids_dir / "derivatives").glob("*") if path.is_dir())
    return [*more, *below, bids_dir]


def _measure(made: Made, folders: Sequence[Path]) -> tuple[Line, list[Line], str | None]:
    """Lines of both tables for one image, and why there are no regional values."""
    entities = dict(part.split("-", 1) for part in made.image.name.split("_") if "-" in part)
    tracer = str(model_tracer(made))
    identity: Line = {
        "subject": f"sub-{entities['sub']}",
        "session": f"ses-{entities['ses']}" if "ses" in entities else "n/a",
        "tracer": tracer,
        "unit": str(made.sidecar.get("Units", "n/a")),
    }
    measures = made.quality.get("Measures", {})
    line: Line = {
        **identity,
        "num_warnings": made.num_warnings,
        "flags": ",".join(dict.fromkeys(flag["Name"] for flag in made.flags)) or "none",
        **{name: float(measures.get(name, math.nan)) for name in _MEASURES},
        "burden_suvr": math.nan,
        "burden_centiloid": math.nan,
    }
    try:
        found = find_segmentation(folders, entities["sub"], entities.get("ses"))
        if found is None:
            return line, [], None
        dseg, names = found
        pet = read_volume(made.image, identity["unit"])
        labels = read_volume(dseg)
        regions = list(region_lines(identity, pet, labels, names, dseg.name))
        plan = plan_burden(tracer, names)
        if plan is not None:
            line |= _burden(pet, labels, plan)
    except GanbertError as error:
        return line, [], str(error)
    return line, regions, None


def model_tracer(made: Made) -> str:
    """Short name of an image's tracer, from its name."""
    label = next(p for p in made.image.name.split("_") if p.startswith("trc-"))
    return get_tracer(label.removeprefix("trc-")).name


def find_segmentation(
    folders: Sequence[Path], subject: str, session: str | None
) -> tuple[Path, dict[int, str]] | None:
    """Find the segmentation of a subject's T1w that names the most regions.

    Parameters
    ----------
    folders : datasets, the first one that has any counts
    subject, session : BIDS labels without `sub-` and `ses-`

    Returns
    -------
    the image, and label -> name; None if there is none with a table

    Raises
    ------
    DatasetError
        If a table is broken.
    """
    for folder in folders:
        top = folder / f"sub-{subject}"
        places = [top / f"ses-{session}" / "anat", top / "anat"] if session else [top / "anat"]
        for place in places:
            found = []
            for image in sorted(place.glob("*_dseg.nii*")):
                table = _table_of(image, folder)
                if table is not None and _space_of(image) in _ON_T1W:
                    found.append((image, read_region_names(table)))
            if found:
                return max(found, key=lambda pair: len(pair[1]))
    return None


def _space_of(image: Path) -> str:
    spaces = [p.removeprefix("space-") for p in image.name.split("_") if p.startswith("space-")]
    return spaces[0] if spaces else ""


def _table_of(image: Path, dataset: Path) -> Path | None:
    """Return the nearest `_dseg.tsv` by inheritance: its entities are all among the image's."""
    own = set(image.name.split(".")[0].split("_"))
    place = image.parent
    while True:
        tables = [
            table
            for table in sorted(place.glob("*dseg.tsv"))
            if set(table.name.removesuffix(".tsv").split("_")) <= own
        ]
        if tables:
            return max(tables, key=lambda table: table.name.count("_"))
        if place == dataset or place == place.parent:
            return None
        place = place.parent


def region_lines(
    identity: Line, pet: Volume, labels: Volume, names: Mapping[int, str], source: str
) -> Iterator[Line]:
    """Mean of a PET in each region and frame, at the voxels of the segmentation.

    The PET, the coarser image, is interpolated; labels are never.

    Parameters
    ----------
    identity : first columns
    pet : (T, D, H, W)
    labels : (1, D, H, W), on the T1w
    names : label -> name
    source : name of the segmentation's file

    Returns
    -------
    Lines of `group_regions.tsv`. `mean` counts only voxels inside the field of view of the PET;
    `inside` is their share, 0..1, and mean is NaN where it is 0.
    """
    array = np.rint(labels.array[0]).astype(np.int64)
    where = np.flatnonzero(np.isin(array, list(names)))
    found = array.ravel()[where]
    index = np.array(np.unravel_index(where, array.shape), np.float64)
    to_pet = np.linalg.inv(pet.affine) @ labels.affine
    points = to_pet[:3, :3] @ index + to_pet[:3, 3:]
    ends = np.array(pet.shape, np.float64)[:, None] - 0.5
    inside = ((points >= -0.5) & (points <= ends)).all(axis=0)
    values = [
        ndimage.map_coordinates(frame, points[:, inside], order=1, mode="nearest")
        for frame in pet.array
    ]
    voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    for label, name in sorted(names.items()):
        own = found == label
        own_inside = found[inside] == label
        if not own.any():
            continue
        for frame, sampled in enumerate(values):
            yield {
                **identity,
                "frame": frame,
                "index": label,
                "region": name,
                "mean": _mean(sampled[own_inside]),
                "volume_ml": float(own.sum()) * voxel_ml,
                "inside": float(own_inside.sum() / own.sum()),
                "segmentation": source,
            }


def _mean(values: FloatArray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def _burden(pet: Volume, labels: Volume, plan: BurdenPlan) -> Line:
    """SUVR of the tracer's composite over its own reference region, and Centiloid."""
    on_pet = resample(labels, pet.affine, pet.shape, order=0)
    regions: npt.NDArray[np.int64] = np.rint(on_pet.array[0]).astype(np.int64)
    value = composite_suvr(pet.array, regions, plan)
    line: Line = {"burden_suvr": value}
    if plan.is_standard and math.isfinite(value):
        with contextlib.suppress(ConfigError):  # no amyloid tracer: no such scale
            line["burden_centiloid"] = centiloid(value, plan.tracer)
    return line
