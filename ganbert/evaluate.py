"""`ganbert evaluate`: how good a run's generator is on subjects that it has never seen.

Beside the generator always stand two baselines: the mean of the training PETs, which knows nothing
of the subject, and zero. A generator that does not beat the first has learnt nothing from the MRI.
Where the dataset has the noise-free truth (the phantom does), everything is also compared with it.

RUN/evaluation holds metrics.tsv, regions.tsv and agreement.tsv (where the dataset has region
labels), summary.tsv, summary.json and pet_fake/; it is written under another name and renamed when
it is complete.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ganbert import __version__
from ganbert.agreement import IMAGE_FIGURES, agreement_lines, image_agreement
from ganbert.atomic import replacing_folder
from ganbert.config import ModelCard
from ganbert.data.index import CachedImage, Index, Row, Split, file_sha256, index_path, load_index
from ganbert.data.nifti import read_cache, write_volume
from ganbert.data.volume import FloatArray, Mask, Volume
from ganbert.errors import DatasetError
from ganbert.metrics import (
    GAIN,
    METRICS,
    head_mask,
    image_metrics,
    regional_means,
    ssim_map,
    ssim_window,
    summarise,
)
from ganbert.predict import Predictor, load_predictor
from ganbert.run_folder import read_description
from ganbert.tables import Line, finite, write_tsv

METHODS = ("ganbert", "mean_of_training", "zero")
MASKS = {"fov": "field of view", "head": "head"}
_METHOD_NAMES = {
    "ganbert": "ganbert",
    "mean_of_training": "training mean",
    "zero": "zero",
    GAIN: "ganbert - mean",
}


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
    rows = [row for row in index.select(split) if row.tracer == card.tracer]
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
    return read_cache(folder / image.path, unit).array


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
    row: Row, pets: dict[str, FloatArray], references: dict[str, FloatArray], labels: FloatArray
) -> Iterator[Line]:
    regions = np.rint(labels).astype(np.int32)
    means = {name: regional_means(pet, regions) for name, pet in (pets | references).items()}
    for reference in references:
        for method in pets:
            for region, frames in means[reference].items():
                for frame, real in enumerate(frames):
                    fake = means[method][region][frame]
                    yield {
                        **_identity(row),
                        "method": method,
                        "reference": reference,
                        "region": region,
                        "frame": frame,
                        "num_voxels": int((regions == region).sum()),
                        "mean_real": real,
                        "mean_fake": fake,
                        "bias": fake - real,
                    }


class _Judge:
    """Evaluates one row after the other; holds what they share."""

    def __init__(self, folder: Path, predictor: Predictor, training: Sequence[Row]) -> None:
        self.folder = folder
        self.predictor = predictor
        self.baseline = mean_of_training(folder, training)

    def judge(self, row: Row, predictions: Path) -> tuple[list[Line], list[Line]]:
        """Return the lines of metrics.tsv and regions.tsv of one row; keep its synthesised PET."""
        mri = read_cache(self.folder / row.mri.path)
        pet_real = read_cache(self.folder / row.pet.path, row.unit)
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
        metrics = list(_metric_lines(row, pets, references, masks, data_range))
        if row.dseg is None:
            return metrics, []
        labels = _read(self.folder, row.dseg)[0]
        without_zero = {name: pet for name, pet in pets.items() if name != "zero"}
        return metrics, list(_region_lines(row, without_zero, references, labels))


def _cell(line: Line) -> str:
    """Mean and half the interval, which is symmetric."""
    decimals, half_decimals = {"psnr": (".2f", ".2f"), "ssim": (".3f", ".3f")}.get(
        line["metric"], (".3g", ".2g")
    )
    mean = format(line["mean"], decimals)
    if not math.isfinite(line["high"]):
        return mean
    return f"{mean} \u00b1 {line['high'] - line['mean']:{half_decimals}}"


def _show(summary: Sequence[Line], about: Line, console: Console) -> None:
    """Print the figures against the real PET."""
    low, high = about["data_range"]
    table = Table(
        title=f"{about['tracer']}, {about['num_subjects']} {about['split']} subjects",
        caption="Against the real PET: mean \u00b1 half the 95 % interval over subjects. "
        f"PSNR and SSIM: data range {low:g} to {high:g} {about['unit']}, "
        f"SSIM window {about['ssim_window']}. Difference: subject by subject.",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    units = {"psnr": " (dB)", "rmse": f" ({about['unit']})", "mae": f" ({about['unit']})"}
    for heading in ("", *(m.upper() + units.get(m, "") for m in METRICS)):
        table.add_column(heading)
    for mask, description in MASKS.items():
        table.add_row(description, style="italic")
        for method, name in _METHOD_NAMES.items():
            cells = {
                line["metric"]: _cell(line)
                for line in summary
                if (line["reference"], line["mask"], line["method"]) == ("real", mask, method)
            }
            style = "bold" if method in ("ganbert", GAIN) else None
            table.add_row(f" {name}", *(cells[m] for m in METRICS), style=style)
        table.add_section()
    console.print(table)


def _about(split: str, rows: Sequence[Row], card: ModelCard, index_sha256: str) -> Line:
    return {
        "ganbert_version": __version__,
        "split": split,
        "tracer": card.tracer,
        "unit": card.unit,
        "num_subjects": len({row.subject for row in rows}),
        "num_images": len(rows),
        "data_range": list(card.data_range),
        "ssim_window": ssim_window(card.pet_grid.shape),
        "interval": "95 %, Student's t over subjects",
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
    console: Console | None = None,
) -> Path:
    """Measure a run's exported generator on one split and print the summary.

    Parameters
    ----------
    run : output folder of the training
    data : the prepared folder, if it has moved since the training
    split : "test", "val" or "train"
    device : "auto", "cpu", "cuda", ...
    console : where the table goes; default: standard output. Progress: standard error

    Returns
    -------
    RUN/evaluation. metrics.tsv has one line per image, method, mask and reference ("real", or
    "truth" where the dataset has it); agreement.tsv has one over all subjects per region, frame,
    method and reference.

    Raises
    ------
    CheckpointError
        If `run` is not a run, or has exported no generator.
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
    judge = _Judge(folder, predictor, select_rows(index, "train", card))
    final = run / "evaluation"
    with replacing_folder(final) as partial:
        (partial / "pet_fake").mkdir()
        metrics: list[Line] = []
        regions: list[Line] = []
        for row in track(rows, description="evaluate", console=Console(stderr=True)):
            of_images, of_regions = judge.judge(row, partial / "pet_fake")
            metrics += of_images
            regions += of_regions
        summary = summarise(metrics, (*METRICS, *IMAGE_FIGURES))
        agreement = agreement_lines(regions)
        about = _about(split, rows, card, index_sha256)
        write_tsv(partial / "metrics.tsv", metrics)
        write_tsv(partial / "summary.tsv", summary)
        if regions:
            write_tsv(partial / "regions.tsv", regions)
            write_tsv(partial / "agreement.tsv", agreement)
        content = {
            **about,
            "results": [finite(line) for line in summary],
            "agreement": [finite(line) for line in agreement],
        }
        (partial / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    _show(summary, about, console)
    return final
