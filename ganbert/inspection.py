"""What a prepared folder holds, for a person: rows, splits, grids, intensities, checksums.

Reads the index and nothing else, unless every file is to be verified.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ganbert.config import Grid
from ganbert.data.index import (
    CachedImage,
    Index,
    Row,
    Split,
    file_sha256,
    index_path,
    load_index,
)
from ganbert.errors import DatasetError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def _tracers(index: Index) -> list[str]:
    return sorted({row.tracer for row in index.rows})


def _grid_line(name: str, grid: Grid) -> str:
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{s:g}" for s in grid.spacing_mm)
    extent = " x ".join(f"{e:g}" for e in grid.extent_mm)
    return f"{name} grid (D x H x W): {shape} voxels of {spacing} mm, field of view {extent} mm"


def split_table(index: Index) -> Table:
    """Rows and subjects by tracer and split."""
    rows: Counter[tuple[str, Split]] = Counter((row.tracer, row.split) for row in index.rows)
    subjects = Counter((t, s) for t, s, _ in {(r.tracer, r.split, r.subject) for r in index.rows})
    table = Table(title="Rows (subjects)", title_justify="left")
    table.add_column("tracer")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for tracer in _tracers(index):
        cells = (f"{rows[tracer, split]} ({subjects[tracer, split]})" for split in SPLITS)
        table.add_row(tracer, *cells)
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
    """Compare every cached file with its checksum; return how many there are.

    Raises
    ------
    DatasetError
        At the first file that is missing or has changed.
    """
    images = [i for kind in ("mri", "pet", "truth", "dseg") for i in _images(index.rows, kind)]
    for image in track(images, description="Verifying SHA-256"):
        path = folder / image.path
        found = file_sha256(path) if path.is_file() else "no file"
        if found != image.sha256:
            raise DatasetError(
                path,
                expected=f"SHA-256 {image.sha256}",
                found=found,
                remedy="run `ganbert prepare` again into a new folder",
            )
    return len(images)


def inspect_prepared(prepared: Path, *, verify: bool = False) -> None:
    """Print what a prepared folder (or the index in it) holds.

    Raises
    ------
    DatasetError
        If there is no valid index, or, with `verify`, if a file is missing or has changed.
    """
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
