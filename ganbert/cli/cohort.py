"""Commands before there is a model: make or prepare a dataset, and look at what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ganbert.cli.options import Frames, Jobs, Layout, Seed, Size, Unit
from ganbert.config import GRIDS
from ganbert.errors import EXIT_SOME_REFUSED


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    subjects: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 32,
    tracer: Annotated[str, typer.Option(help="AV45, AV1451, FDG, ...")] = "AV45",
    seed: Seed = 0,
    size: Annotated[Size, typer.Option(help="Voxels of MRI and PET.")] = "demo",
    jobs: Jobs = None,
) -> None:
    """Make a synthetic cohort on real anatomy, as a valid BIDS-PET dataset."""
    from ganbert.data.phantom import make_cohort

    make_cohort(out, num_subjects=subjects, tracer=tracer, seed=seed, size=size, jobs=jobs)
    typer.echo(out)


def prepare(
    bids: Annotated[Path, typer.Argument(help="Dataset with T1w and PET, see --layout.")],
    out: Annotated[Path, typer.Argument(help="Folder for the streaming cache and index.json.")],
    size: Annotated[Size, typer.Option(help="Voxels of MRI and PET.")] = "paper",
    seed: Seed = 0,
    layout: Annotated[Layout, typer.Option(help="How the dataset lies on disk.")] = "bids",
    max_days: Annotated[
        int, typer.Option(min=0, help="Between a PET and its MRI, where dates are known.")
    ] = 365,
    series: Annotated[
        str | None, typer.Option(help="Of several processings of a scan (layout adni).")
    ] = None,
    frames: Annotated[Frames, typer.Option(help="How the PET's frames become two.")] = "as-is",
    unit: Annotated[
        Unit | None, typer.Option(help="Convert the PET; default: as its sidecar says.")
    ] = None,
    reference_region: Annotated[
        list[str] | None,
        typer.Option(help="For SUVR: region of the segmentation; default: the tracer's."),
    ] = None,
    reference_mask: Annotated[
        str | None,
        typer.Option(help="For SUVR: path of a mask; {subject}, {session}, {tracer} filled in."),
    ] = None,
    diagnosis_column: Annotated[
        str | None,
        typer.Option(help="By which the split is stratified; default: diagnosis, group or dx."),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="That says train, val or test, instead of a drawn split.")
    ] = None,
    split_from: Annotated[
        Path | None,
        typer.Option(help="split.tsv or prepared folder, whose subjects keep their side."),
    ] = None,
    cached: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep the conformed images; without them training reads the dataset, slowly.",
        ),
    ] = True,
    jobs: Jobs = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first pair that cannot be used.")
    ] = False,
    verify_inputs: Annotated[
        bool,
        typer.Option(
            "--verify-inputs",
            help="Compare the content of all inputs with the last run, not only size and time.",
        ),
    ] = False,
) -> None:
    """Pair, conform and measure a dataset; write the streaming cache and its index.

    Pairs that cannot be used are listed in prepare-report.tsv; the exit code is 65 then.
    """
    import ganbert.prepare
    from ganbert.data.pairing import LayoutOptions
    from ganbert.data.recast import RecastOptions

    mri_grid, pet_grid = GRIDS[size]
    prepared = ganbert.prepare.prepare(
        bids,
        out,
        mri_grid=mri_grid,
        pet_grid=pet_grid,
        seed=seed,
        layout=layout,
        pairing=LayoutOptions(max_days, series, diagnosis_column, split_column),
        recast=RecastOptions(frames, unit, tuple(reference_region or ()), reference_mask),
        split_from=split_from,
        cached=cached,
        jobs=jobs,
        strict=strict,
        verify_inputs=verify_inputs,
    )
    if prepared.refusals:
        raise typer.Exit(EXIT_SOME_REFUSED)


def inspect(
    prepared: Annotated[Path, typer.Argument(help="Output folder of `prepare`.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every file's SHA-256.")] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count the training tokens by band of ids.")
    ] = False,
    intensity_ratio: Annotated[
        float | None,
        typer.Option(help="For --tokens; default: the paper's 0.1 and the suggested one."),
    ] = None,
) -> None:
    """Show what a prepared folder holds: rows, splits, grids, intensities, tokens."""
    from ganbert.inspection import inspect_prepared

    inspect_prepared(prepared, verify=verify, tokens=tokens, intensity_ratio=intensity_ratio)
