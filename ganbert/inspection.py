"""What a prepared folder holds, for a person: rows, splits, grids, intensities, checksums.

Reads the index and nothing else, unless files are to be verified or tokens to be counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ganbert.config import Grid
from ganbert.data.direct import image_sha256, origin_of
from ganbert.data.index import (
    CachedImage,
    Index,
    Row,
    Split,
    file_sha256,
    index_path,
    load_index,
)
from ganbert.data.split import SIDES
from ganbert.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from ganbert.token_bands import Occupancy


def _tracers(index: Index) -> list[str]:
    return sorted({row.tracer for row in index.rows})


def _grid_line(name: str, grid: Grid) -> str:
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{s:g}" for s in grid.spacing_mm)
    extent = " x ".join(f"{e:g}" for e in grid.extent_mm)
    return f"{name} grid (D x H x W): {shape} voxels of {spacing} mm, field of view {extent} mm"


def split_table(index: Index) -> Table:
    """Rows and subjects by tracer and split; last, where there are several tracers, all of them."""
    rows: Counter[tuple[str, Split]] = Counter((row.tracer, row.split) for row in index.rows)
    subjects = Counter((t, s) for t, s, _ in {(r.tracer, r.split, r.subject) for r in index.rows})
    table = Table(title="Rows (subjects)", title_justify="left")
    table.add_column("tracer")
    for split in SIDES:
        table.add_column(split, justify="right")
    for tracer in _tracers(index):
        cells = (f"{rows[tracer, split]} ({subjects[tracer, split]})" for split in SIDES)
        table.add_row(tracer, *cells)
    if len(_tracers(index)) > 1:
        chosen = [index.select(split) for split in SIDES]
        # A person with several tracers is one subject.
        cells = (f"{len(each)} ({len({row.subject for row in each})})" for each in chosen)
        table.add_row("all", *cells)
    return table


def _images(rows: Iterable[Row], kind: str) -> list[CachedImage]:
    return [image for row in rows if (image := getattr(row, kind)) is not None]


def intensity_table(index: Index) -> Table:
    """Statistics of the cached images: each a mean over images, the extremes over all of them."""
    table = Table(title="Intensities", title_justify="left")
    for column in ("tracer", "image", "unit", "images", "mean", "std", "min", "99.9 %", "max"):
        table.add_column(
            column, justify="left" if column in ("tracer", "image", "unit") else "right"
        )
    for tracer in _tracers(index):
        rows = [row for row in index.rows if row.tracer == tracer]
        for kind in ("mri", "pet", "truth"):
            images = _images(rows, kind)
            if not images:
                continue
            table.add_row(
                tracer,
                kind,
                "0..255" if kind == "mri" else "/".join(sorted({row.unit for row in rows})),
                str(len(images)),
                f"{fmean(image.mean for image in images):.4g}",
                f"{fmean(image.std for image in images):.4g}",
                f"{min(image.minimum for image in images):.4g}",
                f"{fmean(image.p999 for image in images):.4g}",
                f"{max(image.maximum for image in images):.4g}",
            )
    return table


def verify_files(folder: Path, index: Index) -> int:
    """Compare every image with its checksum; return how many there are.

    Raises
    ------
    DatasetError
        At the first file, of the cache or without one of the dataset, that is missing or has
        changed.
    """
    # Row by row: without a cache, the images of one are made together.
    kinds = ("mri", "pet", "truth", "dseg")
    images = [image for row in index.rows for kind in kinds for image in _images([row], kind)]
    for image in track(images, description="Verifying SHA-256"):
        path = folder / image.path
        if index.cached:
            found = file_sha256(path) if path.is_file() else "no file"
        else:
            found = image_sha256(folder, image)
        if found != image.sha256:
            again = "" if index.cached else " with --verify-inputs"
            raise DatasetError(
                path if index.cached else origin_of(folder, image),
                expected=f"SHA-256 {image.sha256}{'' if index.cached else ' when conformed'}",
                found=found,
                remedy=f"run `ganbert prepare` again{again}, which makes anew what changed",
            )
    return len(images)


def token_table(tracer: str, occupancies: Sequence[Occupancy]) -> Table:
    """Shares of one tracer's tokens in the bands of ids, in %, by image and ratio."""
    table = Table(title=f"Tokens of {tracer}, training rows, %", title_justify="left")
    columns = ("image", "ratio", "negative", "low", "in range", "overflow", "ids", "unique")
    for column in columns:
        table.add_column(column, justify="left" if column == "image" else "right")
    for each in occupancies:
        ratio = "any" if each.intensity_ratio is None else f"{each.intensity_ratio:.3g}"
        shares = (f"{100 * share:.1f}" for share in each.shares)
        unique = f"{100 * each.unambiguous:.1f}"
        table.add_row(each.image, ratio, *shares, str(each.distinct_ids), unique)
    return table


def _check_ratio(ratio: float, *, tokens: bool) -> None:
    where = "--intensity-ratio"
    if not tokens:
        found = f"{ratio:g} without it"
        raise ConfigError(where, expected="--tokens", found=found, remedy="add --tokens")
    if not (math.isfinite(ratio) and ratio > 0.0):
        expected = "a finite number above 0"
        remedy = "take the suggested one, or the paper's 0.1"
        raise ConfigError(where, expected=expected, found=f"{ratio:g}", remedy=remedy)


def _fitting_line(index: Index, tracer: str) -> str:
    ratio = index.intensity_ratio.get(tracer)
    p999 = [row.pet.p999 for row in index.select("train", tracer)]
    if ratio is None and median(p999) <= 0.0:
        return (
            f"{tracer}: no intensity_ratio would fit: the 99.9th percentile of most PETs is not "
            "above 0, and no ratio makes it so"
        )
    if ratio is None:
        return f"{tracer}: no intensity_ratio is suggested; `ganbert prepare` again suggests one"
    return (
        f"{tracer}: intensity_ratio {ratio:.4g} would fit (`intensity_ratio: auto` in run.yaml "
        "takes it): PET is normalised by ratio x the MRI's mean and std, and with this one its "
        "99.9th percentile comes to about 9, so that it fills the ids to 10000 and little overflows"
    )


def _show_tokens(console: Console, folder: Path, index: Index, ratio: float | None) -> None:
    # Without --tokens nobody should wait for torch.
    from ganbert.token_bands import training_occupancy

    occupancies = training_occupancy(folder, index, ratio)
    for tracer in sorted({each.tracer for each in occupancies}):
        console.print(token_table(tracer, [e for e in occupancies if e.tracer == tracer]))
        console.print(_fitting_line(index, tracer))
    console.print(
        "t = round(1000 value). negative: t < 0, ids 0..499; low: 0 <= t < 1000, ids that negative "
        "and overflow take, too; in range: 1000 <= t <= 10000; overflow: t > 10000, ids 500..999. "
        "ids: distinct ones used; unique: tokens whose id stands for one t only among the images "
        "of the line; all others are aliased"
    )


def inspect_prepared(
    prepared: Path,
    *,
    verify: bool = False,
    tokens: bool = False,
    intensity_ratio: float | None = None,
) -> None:
    """Print what a prepared folder (or the index in it) holds.

    Parameters
    ----------
    tokens : also summarise the training rows and show which bands of token ids they fill
    intensity_ratio : with which PET is normalised for `tokens`; None for the paper's 0.1 and the
        suggested one of each tracer

    Raises
    ------
    ConfigError
        If `intensity_ratio` is no finite number above 0, or given without `tokens`.
    DatasetError
        If there is no valid index; with `verify`, if a file is missing or has changed; with
        `tokens`, if there is no training row or a file is not on the grid of the index.
    ImageError
        With `tokens`, if a file is missing or not readable.
    """
    if intensity_ratio is not None:
        _check_ratio(intensity_ratio, tokens=tokens)
    index = load_index(prepared)
    console = Console()
    console.print(f"[bold]{index_path(prepared)}[/]")
    console.print(_grid_line("MRI", index.mri_grid))
    console.print(_grid_line("PET", index.pet_grid))
    ratios = ", ".join(f"{name} {ratio:.4g}" for name, ratio in index.intensity_ratio.items())
    console.print(f"suggested intensity_ratio: {ratios}")
    console.print(split_table(index))
    console.print(intensity_table(index))
    if verify:
        number = verify_files(index_path(prepared).parent, index)
        console.print(f"[green]{number} files match their checksums[/]")
    if tokens:
        _show_tokens(console, index_path(prepared).parent, index, intensity_ratio)
