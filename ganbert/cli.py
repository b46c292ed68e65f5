"""The `ganbert` command: a thin layer of options over the verbs, without logic of its own.

Every command imports what it runs inside its body, so that `ganbert --help` answers at once. A
user's mistake leaves through `errors.one_line_errors`: one line, exit code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ganbert import __version__, bids_options, stop_signals
from ganbert.config import GRIDS
from ganbert.errors import EXIT_SOME_REFUSED, one_line_errors
from ganbert.usage import Verbs

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

app = typer.Typer(
    name="ganbert",
    cls=Verbs,
    help="Synthesise PET from T1-weighted MRI (Shin et al. 2020). For research, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ganbert {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
]


@app.callback()
def options(version: Version = False) -> None:
    """Synthesise PET from T1-weighted MRI (Shin et al. 2020). For research, not for diagnosis."""


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def model(
    config: Annotated[Path, typer.Argument(help="Recipe folder (ds_configs/...).")],
    size: Annotated[Size, typer.Option(help="Voxels of MRI and PET.")] = "paper",
    micro_batch: Annotated[int, typer.Option(min=1, help="Volumes in a forward pass.")] = 1,
) -> None:
    """Show what a recipe's networks cost: parameters, multiply-adds, memory. Computes nothing."""
    from ganbert.model_table import show_model

    show_model(config, *GRIDS[size], micro_batch)


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Option(
            help="Recipe folder or its run.yaml; default: $GANBERT_CONFIG, else ds_configs/paper."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Output folder of `prepare`; default: $GANBERT_DATA.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: $GANBERT_OUTPUT.")
    ] = None,
    resume: Annotated[
        Literal["auto", "none"], typer.Option(help="auto: from the last checkpoint.")
    ] = "auto",
    tracer: Annotated[
        str | None, typer.Option(help="To train on, where the cohort has several.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of max_steps in run.yaml.")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=1, help="Processes on this node; default: one per GPU.")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where they meet; default: a free port.")
    ] = None,
) -> None:
    """Train on this node: runs `deepspeed ganbert/train.py`; SIGTERM and Ctrl-C save first."""
    from ganbert.data.index import load_index, training_tracer
    from ganbert.launch import launch
    from ganbert.recipe import load_recipe
    from ganbert.train_options import parse_options

    given: dict[str, object] = {"--config": config, "--data": data, "--output": output}
    given |= {"--resume": resume, "--tracer": tracer, "--max-steps": max_steps}
    options = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    # Here already: under the launcher the line comes late, and among others.
    complete = parse_options(options)
    load_recipe(complete.config)
    training_tracer(complete.data, load_index(complete.data), tracer)
    raise typer.Exit(launch(options, num_gpus=num_gpus, master_port=master_port))


@app.command()
def export(
    run: Run,
    checkpoint: Annotated[
        str, typer.Option(help="last, best (on the validation subjects), or a step.")
    ] = "last",
) -> None:
    """Write the generator of a checkpoint as safetensors into RUN/export."""
    import ganbert.export

    typer.echo(ganbert.export.export(run, checkpoint))


def _names(texts: list[str] | None) -> list[str] | None:
    """Split names at commas; None where the option is absent."""
    if texts is None:
        return None
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


@app.command()
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


@app.command(cls=bids_options.BidsCommand)
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


@app.command()
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


@app.command()
def report(run: Run, data: MovedData = None) -> None:
    """Write the run's self-contained report.html."""
    from ganbert.report import write_report

    typer.echo(write_report(run, data=data))


@app.command()
def doctor() -> None:
    """Show what this machine has, and what each part is used for."""
    import ganbert.doctor

    ganbert.doctor.run_doctor()


def main() -> None:
    """Entry point of the console script."""
    stop_signals.install()
    with one_line_errors():
        app()


if __name__ == "__main__":
    main()
