"""`ganbert evaluate`: how good a run's generator is on subjects that it has never seen.

Beside the generator always stand two baselines: the mean of the training PETs, which knows nothing
of the subject, and zero. A generator that does not beat the first has learnt nothing from the MRI.
Where the dataset has the noise-free truth (the phantom does), everything is also compared with it.

RUN/evaluation holds metrics.tsv, summary.tsv, summary.json and pet_fake/; regions.tsv and
agreement.tsv where the dataset has region labels; burden.tsv and burden_agreement.tsv where they
have names. It is written under another name and renamed when it is complete.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from ganbert import __version__
from ganbert.agreement import IMAGE_FIGURES, SHARES, agreement_lines, image_agreement
from ganbert.atomic import replacing_folder
from ganbert.burden import (
    BURDEN_KEYS,
    BurdenPlan,
    burden_lines,
    describe_burden,
    plan_burden,
    why_left_out,
)
from ganbert.config import ModelCard
from ganbert.data.direct import read_image
from ganbert.data.index import CachedImage, Index, Row, Split, file_sha256, index_path, load_index
from ganbert.data.nifti import write_volume
from ganbert.data.volume import FloatArray, Mask, Volume
from ganbert.errors import DatasetError
from ganbert.metrics import (
    METRICS,
    head_mask,
    image_metrics,
    regional_means,
    ssim_map,
    ssim_window,
    summarise,
)
from ganbert.predict import Predictor, load_predictor
from ganbert.run_folder import name_method, read_description
from ganbert.score_table import MASKS, show_burden, show_scores
from ganbert.tables import MIN_SUBJECTS, Line, finite, write_tsv

Labels = npt.NDArray[np.int32]
METHODS = ("ganbert", "mean_of_training", "zero")


def read_run(run: Path, data: Path | None = None) -> tuple[Path, Index, str]:
    """Find the prepared folder that a run was trained on.

    Parameters
    ----------
    run : output folder of the training
    data : the prepared folder, if it has moved since

    Returns
    -------
    Folder, index and SHA-256 of the index.

    Raises
    ------
    CheckpointError
        If `run` is not a run.
    DatasetError
        If the folder is gone, or is not what the run was trained on.
    """
    description = read_description(run)
    folder = data or Path(description["data"])
    if not folder.exists():
        remedy = "give the prepared folder with --data, if it has moved"
        raise DatasetError(folder, expected="the prepared folder", found="nothing", remedy=remedy)
    index = load_index(folder)
    digest = file_sha256(index_path(folder))
    if digest != description["index_sha256"]:
        raise DatasetError(
            index_path(folder),
            expected=f"the index of the training (SHA-256 {description['index_sha256'][:12]}...)",
            found=f"another one ({digest[:12]}...)",
            remedy="give the prepared folder of the training with --data",
        )
    return folder, index, digest


def check_training(card: ModelCard, index_sha256: str) -> None:
    """Refuse a generator that was trained on another index: its split may be another one too.

    Raises
    ------
    DatasetError
        If the card names another index; training subjects could then count as held out.
    """
    if card.index_sha256 != index_sha256:
        raise DatasetError(
            "index of the prepared folder",
            expected=f"the one that the generator was trained on ({card.index_sha256[:12]}...)",
            found=f"another one ({index_sha256[:12]}...)",
            remedy="the export in this folder is of another run: train this run to its end again, "
            "or evaluate the run that the export is from",
        )


def select_rows(index: Index, split: Split, card: ModelCard) -> list[Row]:
    """Rows of a split that show the model's tracer.

    Raises
    ------
    DatasetError
        If there is none, or one is in another unit than the model's.
    """
    rows = index.select(split, card.tracer)
    if not rows:
        remedy = "prepare more subjects, or choose another split"
        raise DatasetError(
            f"{split} split", expected=f"{card.tracer} images", found="none", remedy=remedy
        )
    for row in rows:
        if row.unit != card.unit:
            raise DatasetError(
                f"sub-{row.subject}",
                expected=f"PET in {card.unit}, as the model makes it",
                found=row.unit,
                remedy="prepare the dataset with one unit",
            )
    return rows


def _read(folder: Path, image: CachedImage, unit: str = "arbitrary") -> FloatArray:
    return read_image(folder, image, unit).array


def mean_of_training(folder: Path, rows: Sequence[Row]) -> FloatArray:
    """Mean of the training PETs, voxel by voxel of the concentric grids: (T, D, H, W)."""
    total = np.zeros_like(_read(folder, rows[0].pet), np.float64)
    for row in rows:
        total += _read(folder, row.pet)
    return (total / len(rows)).astype(np.float32)


def _identity(row: Row) -> Line:
    return {"subject": row.subject, "session": row.session or "n/a", "tracer": row.tracer}


def _metric_lines(
    row: Row,
    pets: dict[str, FloatArray],
    references: dict[str, FloatArray],
    masks: dict[str, Mask],
    data_range: tuple[float, float],
) -> Iterator[Line]:
    for reference, pet_real in references.items():
        for method, pet_fake in pets.items():
            similarity = ssim_map(pet_fake, pet_real, data_range=data_range)
            for name, mask in masks.items():
                figures = image_metrics(
                    pet_fake, pet_real, data_range=data_range, mask=mask, similarity=similarity
                )
                figures |= image_agreement(pet_fake, pet_real, mask)
                bounds = {"data_range_low": data_range[0], "data_range_high": data_range[1]}
                keys = {"method": method, "mask": name, "reference": reference}
                yield {**_identity(row), **keys, **bounds, **figures}


def _region_lines(
    row: Row,
    pets: dict[str, FloatArray],
    references: dict[str, FloatArray],
    regions: Labels,
    names: Mapping[int, str],
) -> Iterator[Line]:
    means = {name: regional_means(pet, regions) for name, pet in (pets | references).items()}
    for reference in references:
        for method in pets:
            for region, frames in means[reference].items():
                both = zip(frames, means[method][region], strict=True)
                for frame, (real, fake) in enumerate(both, start=1):
                    yield {
                        **_identity(row),
                        "method": method,
                        "reference": reference,
                        "region": region,
                        "name": names.get(region, "n/a"),
                        "frame": frame,
                        "num_voxels": int((regions == region).sum()),
                        "mean_real": real,
                        "mean_fake": fake,
                        "bias": fake - real,
                    }


@dataclass
class _Findings:
    """Lines of metrics.tsv, regions.tsv and burden.tsv."""

    metrics: list[Line] = field(default_factory=list)
    regions: list[Line] = field(default_factory=list)
    burden: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class _Judge:
    """Evaluates one row after the other; holds what they share."""

    folder: Path
    predictor: Predictor
    baseline: FloatArray
    names: Mapping[int, str]
    plan: BurdenPlan | None

    def judge(self, row: Row, predictions: Path, findings: _Findings) -> None:
        """Add the lines of one row to the findings; keep its synthesised PET."""
        mri = read_image(self.folder, row.mri)
        pet_real = read_image(self.folder, row.pet, row.unit)
        pet_fake = self.predictor.predict_conformed(mri.array, row.mri.mean, row.mri.std)
        session = f"_ses-{row.session}" if row.session else ""
        write_volume(
            predictions / f"sub-{row.subject}{session}.nii",
            Volume(pet_fake, pet_real.affine, row.unit),
        )
        pets = dict(zip(METHODS, (pet_fake, self.baseline, np.zeros_like(pet_fake)), strict=True))
        references = {"real": pet_real.array}
        if row.truth is not None:
            references["truth"] = _read(self.folder, row.truth)
        head = head_mask(mri, pet_real.affine, pet_real.shape)
        masks = dict(zip(MASKS, (np.ones_like(head), head), strict=True))
        data_range = self.predictor.card.data_range
        findings.metrics += _metric_lines(row, pets, references, masks, data_range)
        if row.dseg is None:
            return
        labels = np.rint(_read(self.folder, row.dseg)[0]).astype(np.int32)
        without_zero = {name: pet for name, pet in pets.items() if name != "zero"}
        findings.regions += _region_lines(row, without_zero, references, labels, self.names)
        if self.plan:
            findings.burden += burden_lines(
                _identity(row), without_zero, references, labels, self.plan
            )


def _about(
    method_name: str, split: str, rows: Sequence[Row], card: ModelCard, index_sha256: str
) -> Line:
    return {
        "ganbert_version": __version__,
        "method_name": method_name,
        "split": split,
        "tracer": card.tracer,
        "unit": card.unit,
        "num_subjects": len({row.subject for row in rows}),
        "num_images": len(rows),
        "data_range": list(card.data_range),
        "ssim_window": ssim_window(card.pet_grid.shape),
        "interval": f"95 %, Student's t over subjects; {', '.join(SHARES)}: of the logit; "
        f"none below {MIN_SUBJECTS} subjects",
        "num_steps": card.num_steps,
        "index_sha256": index_sha256,
        "weights_sha256": card.weights_sha256,
    }


def evaluate(
    run: Path,
    *,
    data: Path | None = None,
    split: Split = "test",
    device: str = "auto",
    target_regions: Sequence[str] | None = None,
    reference_regions: Sequence[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Measure a run's exported generator on one split and print the summary.

    Parameters
    ----------
    run : output folder of the training
    data : the prepared folder, if it has moved since the training
    split : "test", "val" or "train"
    device : "auto", "cpu", "cuda", ...
    target_regions, reference_regions : names of the regions that the burden is read in and divided
        by; None: those of the tracer table
    console : where the tables go; default: standard output. Progress: standard error

    Returns
    -------
    RUN/evaluation. metrics.tsv has one line per image, method, mask and reference ("real", or
    "truth" where the dataset has it); agreement.tsv has one over all subjects per region, frame,
    method and reference, burden_agreement.tsv per measure (SUVR, Centiloid), method and reference.
    Whatever the run has trained is the method "ganbert" in all files; summary.json has its name.

    Raises
    ------
    CheckpointError
        If `run` is not a run, or has exported no generator.
    ConfigError
        If the segmentation lacks a region that is asked for.
    DatasetError
        If the prepared folder is gone, is not what the generator was trained on, or has no image
        to evaluate on.
    OutputError
        If RUN cannot be written.
    ImageError
        If an image of the cache cannot be read.
    """
    console = console or Console()
    folder, index, index_sha256 = read_run(run, data)
    predictor = load_predictor(run, device)
    card = predictor.card
    check_training(card, index_sha256)
    rows = select_rows(index, split, card)
    plan = plan_burden(card.tracer, index.region_names, target_regions, reference_regions)
    baseline = mean_of_training(folder, select_rows(index, "train", card))
    judge = _Judge(folder, predictor, baseline, index.region_names, plan)
    findings = _Findings()
    final = run / "evaluation"
    with replacing_folder(final) as partial:
        (partial / "pet_fake").mkdir()
        for row in track(rows, description="evaluate", console=Console(stderr=True)):
            judge.judge(row, partial / "pet_fake", findings)
        ours = name_method(read_description(run))
        about = _about(ours, split, rows, card, index_sha256)
        summary = summarise(findings.metrics, (*METRICS, *IMAGE_FIGURES), SHARES)
        burden = _burden(plan, findings)
        _write(partial, findings, summary, about, burden)
    show_scores(summary, about, console)
    if burden:
        show_burden(burden, burden["agreement"], ours, console)
    else:
        why = "no evaluated subject has region labels" if plan else None
        why = why or why_left_out(card.tracer, index.region_names)
        console.print(f"No burden: {why}.", soft_wrap=True, markup=False, highlight=False)
    return final


def _burden(plan: BurdenPlan | None, findings: _Findings) -> Line | None:
    """What summary.json says about the burden; None if there is none."""
    if not plan or not findings.burden:
        return None
    agreement = agreement_lines(findings.burden, keys=BURDEN_KEYS, value="burden")
    return {**describe_burden(plan, findings.burden), "agreement": agreement}


def _write(
    folder: Path, findings: _Findings, summary: list[Line], about: Line, burden: Line | None
) -> None:
    agreement = agreement_lines(findings.regions)
    tables = {
        "metrics": findings.metrics,
        "summary": summary,
        "regions": findings.regions,
        "agreement": agreement,
        "burden": findings.burden,
        "burden_agreement": burden["agreement"] if burden else [],
    }
    for name, lines in tables.items():
        if lines:
            write_tsv(folder / f"{name}.tsv", lines)
    if burden:
        burden = burden | {"agreement": [finite(line) for line in burden["agreement"]]}
    content = {
        **about,
        "results": [finite(line) for line in summary],
        "agreement": [finite(line) for line in agreement],
        "burden": burden,
    }
    (folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
