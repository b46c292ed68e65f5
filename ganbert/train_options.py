"""What training is told on the command line: options, then environment, then a default recipe.

The bare command of the paper's cluster, `deepspeed --num_nodes 8 ganbert/train.py`, names no file.
The recipe then is the paper's; where the cohort lies and where the run goes nobody can guess, so
they come from `GANBERT_DATA` and `GANBERT_OUTPUT`, or one line asks for them.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ganbert.errors import ConfigError

CONFIG_VARIABLE = "GANBERT_CONFIG"
DATA_VARIABLE = "GANBERT_DATA"
OUTPUT_VARIABLE = "GANBERT_OUTPUT"


@dataclass(frozen=True)
class TrainOptions:
    """A complete command line of train.py (design decision).

    Parameters
    ----------
    config : recipe folder or its run.yaml
    data : output folder of `ganbert prepare`
    output : folder of the run
    resume : "auto" goes on from the newest checkpoint, "none" wants an empty folder
    tracer : to train on, where the cohort has several
    max_steps : instead of the recipe's
    """

    config: Path
    data: Path
    output: Path
    resume: str
    tracer: str | None
    max_steps: int | None


def default_recipe() -> Path | None:
    """Return the paper's recipe, if the code lies in a checkout or image that holds it."""
    recipe = Path(__file__).resolve().parents[1] / "ds_configs" / "paper"
    return recipe if recipe.is_dir() else None


def parse_options(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> TrainOptions:
    """Read the command line of train.py, and the environment for what it leaves out.

    Parameters
    ----------
    arguments : without the name of the program
    environment : of the process; an empty value counts as none

    Raises
    ------
    ConfigError
        If recipe, data or output are given nowhere: one line names all that is missing.
    SystemExit
        2, after argparse's own line, for an option that does not exist or a value out of range.
    """
    given = _parser().parse_args(arguments)
    config = _first(given.config, environment.get(CONFIG_VARIABLE)) or default_recipe()
    data = _first(given.data, environment.get(DATA_VARIABLE))
    output = _first(given.output, environment.get(OUTPUT_VARIABLE))
    if config is None or data is None or output is None:
        raise _missing({"--config": config, "--data": data, "--output": output})
    return TrainOptions(config, data, output, given.resume, given.tracer, given.max_steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepspeed ganbert/train.py", description="Train GANBERT on a prepared cohort."
    )
    parser.add_argument(
        "--config",
        type=Path,
        help=f"recipe folder or its run.yaml (default: ${CONFIG_VARIABLE}, else ds_configs/paper)",
    )
    parser.add_argument(
        "--data", type=Path, help=f"output of `ganbert prepare` (default: ${DATA_VARIABLE})"
    )
    parser.add_argument(
        "--output", type=Path, help=f"folder of the run (default: ${OUTPUT_VARIABLE})"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "none"),
        default="auto",
        help="auto: go on from RUN's newest checkpoint; none: RUN must be empty (default: auto)",
    )
    parser.add_argument("--tracer", help="to train on, where the cohort has several")
    parser.add_argument("--max-steps", type=_positive, help="instead of max_steps in run.yaml")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return number


def _first(option: Path | None, variable: str | None) -> Path | None:
    if option is not None:
        return option
    return Path(variable) if variable else None


def _missing(values: Mapping[str, Path | None]) -> ConfigError:
    variables = {"--config": CONFIG_VARIABLE, "--data": DATA_VARIABLE, "--output": OUTPUT_VARIABLE}
    missing = [option for option, value in values.items() if value is None]
    names = " and ".join(f"{option} or {variables[option]}" for option in missing)
    # pdsh hands on few variables, so what is exported here is not seen on other nodes.
    remedy = "name the folder; for other nodes over ssh a variable must stand in .deepspeed_env"
    return ConfigError("train", expected=names, found="neither", remedy=remedy)
