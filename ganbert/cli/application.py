"""The `ganbert` command: all verbs in the order of its help, and how it ends.

A user's mistake leaves through `errors.one_line_errors`: one line, exit code 2.
"""

from __future__ import annotations

import typer

from ganbert import bids_options
from ganbert.cli import cohort, machine, trained, training
from ganbert.cli.options import Version
from ganbert.cli.verbs import Verbs, stop_on_sigterm
from ganbert.errors import one_line_errors

app = typer.Typer(
    name="ganbert",
    cls=Verbs,
    help="Synthesise PET from T1-weighted MRI (Shin et al. 2020). For research, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(version: Version = False) -> None:
    """Synthesise PET from T1-weighted MRI (Shin et al. 2020). For research, not for diagnosis."""


app.command()(cohort.phantom)
app.command()(cohort.prepare)
app.command()(cohort.inspect)
app.command()(training.model)
app.command()(training.train)
app.command()(training.export)
app.command()(trained.evaluate)
app.command(cls=bids_options.BidsCommand)(trained.infer)
app.command()(trained.serve)
app.command()(trained.report)
app.command()(machine.doctor)


def main() -> None:
    """Entry point of the console script."""
    stop_on_sigterm()
    with one_line_errors():
        app()
