"""Commands around a training: what its networks cost, the training, the model of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ganbert.cli.options import Run, Size
from ganbert.config import GRIDS


def model(
    config: Annotated[Path, typer.Argument(help="Recipe folder (ds_configs/...).")],
    size: Annotated[Size, typer.Option(help="Voxels of MRI and PET.")] = "paper",
    micro_batch: Annotated[int, typer.Option(min=1, help="Volumes in a forward pass.")] = 1,
) -> None:
    """Show what a recipe's networks cost: parameters, multiply-adds, memory. Computes nothing."""
    from ganbert.model_table import show_model

    show_model(config, *GRIDS[size], micro_batch)


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
    from ganbert.launch import launch
    from ganbert.preflight import check_not_held, check_options
    from ganbert.train_options import parse_options

    given: dict[str, object] = {"--config": config, "--data": data, "--output": output}
    given |= {"--resume": resume, "--tracer": tracer, "--max-steps": max_steps}
    options = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    # Here already: under the launcher the line comes late, and among others.
    complete = parse_options(options)
    check_options(complete)
    check_not_held(complete.output)
    raise typer.Exit(launch(options, num_gpus=num_gpus, master_port=master_port))


def export(
    run: Run,
    checkpoint: Annotated[
        str, typer.Option(help="last, best (on the validation subjects), or a step.")
    ] = "last",
) -> None:
    """Write the generator of a checkpoint as safetensors into RUN/export."""
    import ganbert.export

    typer.echo(ganbert.export.export(run, checkpoint))
