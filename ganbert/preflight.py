"""What can be refused before torch and DeepSpeed are loaded, which takes seconds on every rank.

`train.py` asks first of all, and `ganbert train` before it starts the launcher. What needs the
networks, a GPU or the content of checkpoints comes later, in `planning`.
"""

import contextlib
import errno
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ganbert.atomic import output_error
from ganbert.checkpoint_files import is_new
from ganbert.cores import ranks_here
from ganbert.data.index import (
    ReadIndex,
    check_alike,
    index_path,
    read_index,
    suggested_ratio,
    training_tracer,
)
from ganbert.engine_keys import check_keys
from ganbert.errors import GanbertError, OutputError, one_line_errors, say_error
from ganbert.folder_lock import check_free
from ganbert.recipe import Recipe, load_recipe
from ganbert.run_folder import RUN_HELD
from ganbert.train_options import TrainOptions, parse_options
from ganbert.umask import take_umask

# The first rank of a node needs a moment to say it, and the launcher one to end the others.
_SILENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Checked:
    """A command line that can make a training, with what was read to know that.

    Handed on, so that a rank reads it once: an index of thousands of rows takes a while, and what
    was checked is what is trained on, also where a file changes meanwhile.

    Attributes
    ----------
    recipe : as in its folder, before `options.max_steps`
    index : of `options.data`
    """

    options: TrainOptions
    recipe: Recipe
    index: ReadIndex


def check_options(options: TrainOptions) -> Checked:
    """Return what was read, if recipe, data and output folder can make a training.

    Raises
    ------
    ConfigError
        If the recipe is wrong, does not fit the grids of the data, or the tracer is not there.
    DatasetError
        If the data were not prepared, or cannot be trained on together.
    OutputError
        If RUN cannot be written, is something else than a run, or lies inside of the data.
    """
    recipe = load_recipe(options.config)
    check_keys(recipe)
    read = read_index(options.data)
    index = read.index
    tracer = training_tracer(options.data, index, options.tracer)
    check_alike(options.data, index.select("train", tracer))
    if recipe.run.intensity_ratio == "auto":
        suggested_ratio(options.data, index, tracer)
    recipe.run.generator.check_fits(index.mri_grid, index.pet_grid)
    _check_place(options.output, index_path(options.data).parent)
    is_new(options.output, options.resume)
    return Checked(options, recipe, read)


def check_not_held(output: Path) -> None:
    """Refuse a RUN that another training holds, before it is claimed in earnest.

    Raises
    ------
    OutputError
        If another process holds it.
    """
    check_free(output, **RUN_HELD)


def refuse_early(arguments: Sequence[str]) -> Checked:
    """Leave with one line and code 2 if the command line of train.py cannot work; take the umask.

    The first rank of a node says it; the others say it only if that rank saw it otherwise. Ranks
    of other nodes, which may see another disk, hear of it in the meeting.

    Parameters
    ----------
    arguments : of train.py, without its name

    Raises
    ------
    SystemExit
        With code 2; with argparse's own for --help or an option that does not exist.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    words = contextlib.nullcontext() if speaks else contextlib.redirect_stderr(io.StringIO())
    hidden = contextlib.nullcontext() if speaks else contextlib.redirect_stdout(io.StringIO())
    try:
        with words, hidden:  # what argparse says
            options = parse_options(arguments)
        take_umask()  # sshd, which starts the ranks of other nodes, has one of its own
        checked = check_options(options)
        if os.environ.get("RANK", "0") == "0":
            check_not_held(options.output)
        return checked
    except (GanbertError, SystemExit) as error:
        _leave(error, speaks)


def _leave(error: GanbertError | SystemExit, speaks: bool) -> NoReturn:
    if isinstance(error, SystemExit) and not error.code:  # --help
        raise error
    if int(os.environ.get("WORLD_SIZE", "1")) > ranks_here():
        from ganbert.meeting import Meeting  # torch: to reach the other nodes

        with one_line_errors(quiet=not speaks), Meeting():
            raise error
    if not speaks:
        time.sleep(_SILENCE_SECONDS)
    if isinstance(error, SystemExit):
        raise error
    say_error(error)
    raise SystemExit(error.exit_code)


def _check_place(output: Path, data: Path) -> None:
    """Refuse a RUN that cannot be written, or that the next `prepare` might take for its own."""
    try:
        place, folder = output.resolve(), data.resolve()
        if place.is_relative_to(folder):
            raise OutputError(
                output,
                expected="a folder outside of the prepared data",
                found=f"one inside of {data}",
                remedy="give another --output",
            )
        above = place
        while not above.exists():
            above = above.parent
        if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if above != place and not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise output_error(output, error) from error
