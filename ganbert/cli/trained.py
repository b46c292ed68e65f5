"""Commands on a trained model: measure it, use it, show it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ganbert import bids_options
from ganbert.cli.options import Device, MovedData, Run, Version
from ganbert.errors import EXIT_SOME_REFUSED


def _names(texts: list[str] | None) -> list[str] | None:
    """Split names at commas; None where the option is absent."""
    if texts is None:
        return None
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def evaluate(
    run: Run,
    data: MovedData = None,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="Subjects to evaluate on.")
    ] = "test",
    device: Device = "auto",
    target_regions: Annotated[
        list[str] | None,
        typer.Option(
            help="Regions whose burden is read: A,B,...; may be given several times; default: the "
            "tracer's."
        ),
    ] = None,
    reference_regions: Annotated[
        list[str] | None,
        typer.Option(help="Regions that it is divided by: A,B,...; may be given several times."),
    ] = None,
) -> None:
    """Compare synthesised with real PET: metrics per subject, beside two baselines."""
    import ganbert.evaluate

    ganbert.evaluate.evaluate(
        run,
        data=data,
        split=split,
        device=device,
        target_regions=_names(target_regions),
        reference_regions=_names(reference_regions),
    )


def infer(
    bids_dir: bids_options.BidsDir,
    out_dir: bids_options.OutDir,
    level: bids_options.Level,
    model: bids_options.Model = None,
    participant_label: bids_options.Participants = None,
    session_label: bids_options.Sessions = None,
    bids_filter_file: bids_options.FilterFile = None,
    derivatives: bids_options.Segmentations = None,
    work_dir: bids_options.WorkDir = None,
    uncertainty: bids_options.Passes = 0,
    overwrite: bids_options.Overwrite = False,
    nprocs: bids_options.Cores = None,
    omp_nthreads: bids_options.Threads = None,
    skip_bids_validation: bids_options.NoValidation = False,
    stop_on_first_crash: bids_options.StopEarly = False,
    device: Device = "auto",
    version: Version = False,
) -> None:
    """Synthesise PET for the T1w images of a BIDS dataset (a BIDS-App)."""
    import ganbert.infer

    options = ganbert.infer.InferOptions(
        participant_labels=participant_label,
        session_labels=session_label,
        filter_file=bids_filter_file,
        device=device,
        passes=uncertainty,
        overwrite=overwrite,
        work_dir=work_dir,
        nprocs=nprocs,
        omp_nthreads=omp_nthreads,
        check_names=not skip_bids_validation,
        stop_on_first_crash=stop_on_first_crash,
        segmentations=derivatives or (),
    )
    outcome = ganbert.infer.infer(bids_dir, out_dir, model=model, level=level, options=options)
    if outcome.failures:
        raise typer.Exit(EXIT_SOME_REFUSED)


def serve(
    model: Annotated[
        Path, typer.Option(help="Folder of a run, or an exported generator.safetensors.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto: all GPUs, or the CPU; cpu, cuda:1.")] = "auto",
    token_file: Annotated[
        Path | None,
        typer.Option(help="Whose text every request must carry; default: $GANBERT_SERVE_TOKEN."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen without a token where others can connect.")
    ] = False,
    queue: Annotated[int, typer.Option(min=1, help="Uploads that may wait.")] = 16,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Size of an upload, MB.")] = 256,
    job_seconds: Annotated[float, typer.Option(min=1, help="Time for one image.")] = 600,
    keep_seconds: Annotated[float, typer.Option(min=1, help="Until a result is deleted.")] = 3600,
    drain_seconds: Annotated[float, typer.Option(min=0, help="To finish after SIGTERM.")] = 300,
    work_dir: Annotated[
        Path | None, typer.Option(help="For uploads and results; default: a temporary folder.")
    ] = None,
) -> None:
    """Serve a model over HTTP: upload a T1w, look at the synthetic PET in the browser."""
    from ganbert.serve.command import run
    from ganbert.serve.settings import Limits

    limits = Limits(
        upload_bytes=max_upload_mb * 10**6,
        queue=queue,
        job_seconds=job_seconds,
        keep_seconds=keep_seconds,
        drain_seconds=drain_seconds,
    )
    run(
        model,
        host=host,
        port=port,
        device=device,
        token_file=token_file,
        insecure=insecure,
        work_dir=work_dir,
        limits=limits,
    )


def report(run: Run, data: MovedData = None) -> None:
    """Write the run's self-contained report.html."""
    from ganbert.report import write_report

    typer.echo(write_report(run, data=data))
