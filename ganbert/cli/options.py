"""What the commands share: values that an option takes, and options of more than one command."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ganbert import __version__

Size = Literal["tiny", "small", "demo", "paper"]
Layout = Literal["bids", "adni", "table"]
Frames = Literal["as-is", "first", "last", "halves", "repeat"]
Unit = Literal["Bq/mL", "SUV", "SUVR"]
Seed = Annotated[int, typer.Option(help="Every random draw follows from it.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one per core.")]
Run = Annotated[Path, typer.Argument(help="Output folder of `train`.")]
MovedData = Annotated[
    Path | None, typer.Option("--data", help="Prepared folder, if it moved since the training.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU, if any.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ganbert {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
]
