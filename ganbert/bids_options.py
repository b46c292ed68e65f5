"""Options of `ganbert infer` as a BIDS-App, and lists after one option, as BIDS-Apps have them.

`app BIDS OUT participant --participant-label 01 02` is how BIDS-Apps are called. Click takes one
value an option, so what follows is rewritten to `--participant-label 01 --participant-label 02`,
where no place of a positional argument is open that it could be meant for.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ganbert.cores import passive_waiting

BidsDir = Annotated[Path, typer.Argument(help="BIDS dataset; a T1w per subject is enough.")]
OutDir = Annotated[Path, typer.Argument(help="Folder for the BIDS derivatives.")]
Level = Annotated[
    Literal["participant", "group"],
    typer.Argument(help="BIDS-App analysis level; group: report and tables of what is there."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Folder of a run, or an exported generator.safetensors (participant)."),
]
Participants = Annotated[
    list[str] | None,
    typer.Option(
        "--participant-label",
        "--participant_label",
        help="Subjects, with or without `sub-`: several after it, or the option several times.",
    ),
]
Sessions = Annotated[
    list[str] | None,
    typer.Option(
        "--session-label", "--session_label", help="Sessions, with or without `ses-`, likewise."
    ),
]
FilterFile = Annotated[
    Path | None,
    typer.Option(
        "--bids-filter-file",
        "--bids_filter_file",
        help='JSON that chooses the T1w: {"t1w": {"acquisition": "mprage"}}.',
    ),
]
Segmentations = Annotated[
    list[Path] | None,
    typer.Option(
        "--derivatives", "-d", help="Dataset with _dseg images besides BIDS_DIR's own (group)."
    ),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        "--work-dir", "--work_dir", "-w", help="Keep each T1w as the network saw it, in here."
    ),
]
Passes = Annotated[
    int, typer.Option(help="Further passes, for a map of uncertainty, such as 4; 0: no map.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Compute finished images again.")]
Cores = Annotated[int | None, typer.Option(min=1, help="Cores to use at once; default: all.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Of those for the network; the others read ahead.")
]
NoValidation = Annotated[
    bool,
    typer.Option(
        "--skip-bids-validation",
        "--skip_bids_validation",
        help="Do not say where the dataset departs from BIDS.",
    ),
]
StopEarly = Annotated[
    bool, typer.Option("--stop-on-first-crash", help="End at the first image that fails.")
]
_LISTS = {"--participant-label", "--participant_label", "--session-label", "--session_label"}


class BidsCommand(TyperCommand):
    """A command whose options of labels take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite lists, then parse as usual."""
        # By name and not by class: typer carries a click of its own.
        flags = {
            name
            for parameter in self.params
            if getattr(parameter, "is_flag", False)
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        positions = sum(parameter.param_type_name == "argument" for parameter in self.params)
        return super().parse_args(ctx, expand_lists(args, flags | {"--help"}, positions))

    def invoke(self, ctx: Any) -> Any:
        """Settle how threads wait, which torch reads when it is imported, then run as usual."""
        os.environ.update(passive_waiting())
        return super().invoke(ctx)


def expand_lists(args: Sequence[str], flags: set[str], num_positions: int) -> list[str]:
    """Repeat an option of labels before each value that follows it.

    Parameters
    ----------
    flags : options that take no value
    num_positions : of positional arguments; while one is open, a word is taken for it

    >>> expand_lists(["in", "out", "participant", "--session-label", "a", "b"], set(), 3)[3:]
    ['--session-label', 'a', '--session-label', 'b']
    """
    result: list[str] = []
    option: str | None = None
    is_value = False
    seen = 0
    for word in args:
        is_option = word.startswith("-") and len(word) > 1 and not is_value
        if is_option:
            name = word.partition("=")[0]
            option = name if name in _LISTS else None
            is_value = name not in flags and "=" not in word
        elif is_value:
            is_value = False
        elif option is not None and seen >= num_positions:
            result.append(option)
        else:
            seen += 1
        result.append(word)
    return result
