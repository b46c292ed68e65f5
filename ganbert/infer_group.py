"""The group level of `infer`: tables and a page about all synthetic PETs of an output folder.

    group_pet.tsv       a line an image: flags, measures, burden where it can be read
    group_regions.tsv   a line for each image, frame and region of a segmentation
    group_regions.json  what its columns mean, the images that are not in it, labels without a name
    group_pet.html      the same for people, those with warnings first

A segmentation is a `_dseg.nii[.gz]` on the subject's T1w, with the table of its regions beside or
above it, in the dataset, in its `derivatives/`, or in a folder that is named. It needs no model.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
REGION_SIDECAR = "group_regions.json"
_NO_SEGMENTATION = "no segmentation (_dseg with the table of its regions)"
_MOST_NAMED = 20
_COLUMNS = {
    "frame": "Number of the frame, from 1 on, as in the names of the pictures",
    "index": "Label in the segmentation",
    "region": "Name of the label in the segmentation's table",
    "mean": "Mean of the synthetic PET over the region's voxels in its field of view, in `unit`",
    "volume_ml": "Volume of the whole region",
    "inside": "Share of the region's voxels in the field of view of the PET, 0 to 1",
    "segmentation": "File name of the segmentation",
}
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
    shown = track(made, description="group", console=console)
    measured = [_measure(each, folders) for each in shown]
    regions = [line for each in measured for line in each.regions]
    tables = [PET_TABLE]
    _write_table(out_dir / PET_TABLE, [each.line for each in measured])
    if regions:
        tables += [REGION_TABLE, REGION_SIDECAR]
        _write_table(out_dir / REGION_TABLE, regions)
        derivatives.write_json(out_dir / REGION_SIDECAR, _region_sidecar(measured))
    else:
        for name in (REGION_TABLE, REGION_SIDECAR):
            (out_dir / name).unlink(missing_ok=True)
    remarks = _remarks(measured)
    for remark in remarks:
        _say(console, f"warning: {remark}")
    facts = derivatives.model_facts(description)
    page = write_group(out_dir, made, regions, facts, tables, remarks)
    with_regions = sum(bool(each.regions) for each in measured)
    _say(console, f"{len(made)} images, {with_regions} with regional values: {page}")
    return page


@dataclass(frozen=True)
class _Measured:
    """What was read of one image.

    Attributes
    ----------
    line : of `group_pet.tsv`
    regions : lines of `group_regions.tsv`
    missing : why there are no regional values
    unnamed : label that the segmentation has and its table has not -> number of voxels
    segmentation : its file name
    """

    label: str
    line: Line
    regions: list[Line] = field(default_factory=list)
    missing: str | None = None
    unnamed: Mapping[int, int] = field(default_factory=dict)
    segmentation: str = ""


def _remarks(measured: Sequence[_Measured]) -> list[str]:
    """What a reader of the table of regions would not see: who and what is not in it, and why."""
    remarks = []
    for each in measured:
        if each.unnamed:
            labels = _shorten([str(label) for label in each.unnamed])
            num = sum(each.unnamed.values())
            remarks.append(
                f"{each.label}: labels of {each.segmentation} that its table does not name are "
                f"left out: {labels} ({num} voxels)"
            )
    has_any = any(each.regions for each in measured)
    reasons: dict[str, list[str]] = {}
    for each in measured:
        # That nobody has a segmentation is no remark: the summary and the page say so.
        if each.missing and (has_any or each.missing != _NO_SEGMENTATION):
            reasons.setdefault(each.missing, []).append(each.label)
    remarks += [f"no regional values of {_shorten(who)}: {why}" for why, who in reasons.items()]
    return remarks


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _region_sidecar(measured: Sequence[_Measured]) -> dict[str, Any]:
    missing = {each.label: each.missing for each in measured if each.missing}
    unnamed = {
        each.label: {str(label): num for label, num in each.unnamed.items()}
        for each in measured
        if each.unnamed
    }
    columns = {name: {"Description": text} for name, text in _COLUMNS.items()}
    return {**columns, "ImagesWithoutRegions": missing, "VoxelsOfUnnamedLabels": unnamed}


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


def _measure(made: Made, folders: Sequence[Path]) -> _Measured:
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
            return _Measured(made.label, line, missing=_NO_SEGMENTATION)
        dseg, names = found
        pet = read_volume(made.image, identity["unit"])
        labels = read_volume(dseg)
        regions = list(region_lines(identity, pet, labels, names, dseg.name))
        unnamed = _unnamed_labels(labels, names)
        plan = plan_burden(tracer, names)
        if plan is not None:
            line |= _burden(pet, labels, plan)
    except GanbertError as error:
        return _Measured(made.label, line, missing=str(error))
    missing = None if regions else f"no voxel of {dseg.name} has a label that its table names"
    return _Measured(made.label, line, regions, missing, unnamed, dseg.name)


def _unnamed_labels(labels: Volume, names: Mapping[int, str]) -> dict[int, int]:
    found, nums = np.unique(np.rint(labels.array[0]).astype(np.int64), return_counts=True)
    pairs = zip(found.tolist(), nums.tolist(), strict=True)
    return {label: num for label, num in pairs if label and label not in names}


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
    Lines of `group_regions.tsv`, frames from 1 on. `mean` counts only voxels inside the field of
    view of the PET; `inside` is their share, 0..1, and mean is NaN where it is 0.
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
        for frame, sampled in enumerate(values, start=1):
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
