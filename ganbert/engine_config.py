"""What `generator.json` and `discriminator.json` may say, checked before any process meets another.

DeepSpeed answers a wrong value with a traceback on every rank. So what `engine_keys` cannot judge
without DeepSpeed is tried here: the blocks that DeepSpeed types
itself (fp16, bf16, ZeRO) go through its own models, and optimiser and schedule are built once, on a
single number, by the classes that will build them in earnest.
"""

import copy
import inspect
import json
import logging
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from deepspeed.monitor.config import TensorBoardConfig, WandbConfig
from deepspeed.ops.adam import FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import FusedLion
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.logging import logger as deepspeed_logger
from pydantic import (
    BaseModel,
    ValidationError,
)

from ganbert.engine_keys import check_keys
from ganbert.errors import ConfigError
from ganbert.monitor import MONITORS
from ganbert.recipe import DISCRIMINATOR_FILE, GENERATOR_FILE, Recipe
from ganbert.strict import first_problem, nearest_remedy

# Optimisers that DeepSpeed compiles on first use, and the operation that each needs.
COMPILED_OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], str]] = {
    "adam": (FusedAdam, "FusedAdamBuilder"),
    "adamw": (FusedAdam, "FusedAdamBuilder"),
    "lamb": (FusedLamb, "FusedLambBuilder"),
    "lion": (FusedLion, "FusedLionBuilder"),
}
# These ask for a closure, for sparse gradients or for matrices alone.
_UNSUITABLE = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
_TORCH_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in _UNSUITABLE
}
# What DeepSpeed itself takes out of the parameters of "Adam" and "AdamW".
_ADAM_SWITCHES = ("torch_adam", "adam_w_mode")
_WARMUP_SHARE = 0.05  # Shin et al. 2020, A.3
# What a constructor says to an argument that is not for it.
WRONG_SETTING = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def resolve_schedule(engine_config: dict[str, Any], max_steps: int) -> dict[str, Any]:
    """Replace "auto" in the scheduler by what the number of optimiser steps makes of it.

    `warmup_num_steps: "auto"` is 5 % of the steps (paper, A.3), `total_num_steps: "auto"` all.
    """
    config = copy.deepcopy(engine_config)
    parameters = config.get("scheduler", {}).get("params", {})
    automatic = {
        "warmup_num_steps": math.ceil(_WARMUP_SHARE * max_steps),
        "total_num_steps": max_steps,
    }
    for key, value in automatic.items():
        if parameters.get(key) == "auto":
            parameters[key] = value
    return config


def check_recipe(recipe: Recipe) -> None:
    """Refuse what DeepSpeed would ignore, trip over, or do wrong with two engines.

    Raises
    ------
    ConfigError
        Naming the file, the key and what would be right.
    """
    check_keys(recipe)
    for where, config in (
        (GENERATOR_FILE, recipe.generator_engine),
        (DISCRIMINATOR_FILE, recipe.discriminator_engine),
    ):
        _check_block(where, "fp16", config, DeepSpeedFP16Config)
        _check_block(where, "bf16", config, DeepSpeedBF16Config)
        _check_block(where, "zero_optimization", config, DeepSpeedZeroConfig)
        _check_block(where, "tensorboard", config, TensorBoardConfig)
        _check_block(where, "wandb", config, WandbConfig)
        _check_precision(where, config)
        _check_optimizer(where, config)
        _check_scheduler(where, resolve_schedule(config, recipe.run.max_steps))
    _check_monitors(recipe)


def _check_block(where: str, name: str, config: dict[str, Any], model: type[BaseModel]) -> None:
    try:
        model(**config.get(name, {}))
    except ValidationError as error:
        raise first_problem(f"{where}: {name}", error, model) from error
    except WRONG_SETTING as error:
        raise refused(f"{where}: {name}", error) from error


def _check_precision(where: str, config: dict[str, Any]) -> None:
    chosen = [name for name in ("fp16", "bf16") if is_enabled(config, name)]
    if len(chosen) > 1:
        raise ConfigError(
            where, expected="one precision", found="fp16 and bf16", remedy="enable one of them"
        )
    if config.get("fp16", {}).get("auto_cast"):
        raise ConfigError(
            f"{where}: fp16.auto_cast",
            expected="false",
            found="true",
            remedy="remove it: images stay float32, of which token ids are made",
        )


def is_enabled(config: dict[str, Any], precision: str) -> bool:
    """Whether "fp16" or "bf16" is switched on."""
    model = {"fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config}[precision]
    return bool(model(**config.get(precision, {})).enabled)


def _check_optimizer(where: str, config: dict[str, Any]) -> None:
    name, params = config["optimizer"]["type"], dict(config["optimizer"].get("params", {}))
    where = f"{where}: optimizer"
    known: tuple[str, ...] = ()
    torch_adam = False
    if name.lower() in ("adam", "adamw"):
        known = _ADAM_SWITCHES
        torch_adam, _ = (_pop_switch(where, params, switch) for switch in known)
    if name.lower() in COMPILED_OPTIMIZERS and not torch_adam:
        kind, _ = COMPILED_OPTIMIZERS[name.lower()]
        _check_arguments(where, kind, params, known)
        # Not built here, for that compiles it; what it shares with torch's has the same ranges.
        shared = {k: v for k, v in params.items() if k in ("lr", "betas", "eps", "weight_decay")}
        _try(where, lambda: torch.optim.AdamW(_one_number(), **shared))
        return
    names = {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad"}
    torch_name = names.get(name.lower(), name)
    if torch_name not in _TORCH_OPTIMIZERS:
        raise _unknown_type(where, name, {*_TORCH_OPTIMIZERS, "Lamb", "Lion"})
    _check_arguments(where, _TORCH_OPTIMIZERS[torch_name], params, known)
    _try(where, lambda: _TORCH_OPTIMIZERS[torch_name](_one_number(), **params))


def _pop_switch(where: str, params: dict[str, Any], name: str) -> bool:
    value = params.pop(name, False)
    if not isinstance(value, bool):
        raise ConfigError(
            f"{where}.params.{name}", expected="true or false", found=repr(value), remedy="mend it"
        )
    return value


def _check_scheduler(where: str, config: dict[str, Any]) -> None:
    if "scheduler" not in config:
        return
    name, params = config["scheduler"]["type"], config["scheduler"].get("params", {})
    where = f"{where}: scheduler"
    if name not in lr_schedules.VALID_LR_SCHEDULES:
        raise _unknown_type(where, name, lr_schedules.VALID_LR_SCHEDULES)
    kind = getattr(lr_schedules, name)
    _check_arguments(where, kind, params)
    if params.get("warmup_type", "log") not in ("log", "linear"):
        raise ConfigError(
            f"{where}.params.warmup_type",
            expected="'log' or 'linear'",
            found=repr(params["warmup_type"]),
            remedy="the paper warms up linearly",
        )
    # Adam, because OneCycle wants to cycle its betas.
    _try(where, lambda: kind(torch.optim.Adam(_one_number()), **params).step())


def _one_number() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


def _check_arguments(
    where: str, kind: type, params: dict[str, Any], besides: tuple[str, ...] = ()
) -> None:
    """Refuse parameters that `kind` does not take; its first is the model's or the optimiser's."""
    known = [*list(inspect.signature(kind).parameters)[1:], *besides]
    for key, value in params.items():
        if key not in known:
            raise ConfigError(
                f"{where}.params",
                expected="known parameters only",
                found=f"'{key}'",
                remedy=nearest_remedy(key, known),
            )
        for one in value if isinstance(value, list) else [value]:
            if _is_quoted_number(one):
                raise ConfigError(
                    f"{where}.params.{key}",
                    expected="a number",
                    found=f"the text {json.dumps(one)}",
                    remedy=f"write {one}, without quotes",
                )


def _is_quoted_number(value: object) -> bool:
    try:
        number = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return isinstance(number, int | float) and not isinstance(number, bool)


def _try(where: str, build: Callable[[], object]) -> None:
    level = deepspeed_logger.level
    # Schedules warn of a first step that nobody takes here.
    deepspeed_logger.setLevel(logging.ERROR)
    try:
        build()
    except WRONG_SETTING as error:
        raise refused(f"{where}.params", error) from error
    finally:
        deepspeed_logger.setLevel(level)


def _unknown_type(where: str, found: str, known: Collection[str]) -> ConfigError:
    return ConfigError(
        f"{where}.type",
        expected="a known name",
        found=repr(found),
        remedy=nearest_remedy(found, sorted(known)),
    )


def refused(where: str, error: Exception) -> ConfigError:
    """Return what DeepSpeed or torch says to a setting, as one line that names the file."""
    found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ConfigError(where, expected="settings that work", found=found, remedy="mend them")


def compiled_operation(config: dict[str, Any]) -> str | None:
    """Name of the builder of what DeepSpeed compiles for the optimiser, if anything."""
    name, params = config["optimizer"]["type"].lower(), config["optimizer"].get("params", {})
    if name not in COMPILED_OPTIMIZERS or params.get("torch_adam"):
        return None
    return COMPILED_OPTIMIZERS[name][1]


def _check_monitors(recipe: Recipe) -> None:
    for name in MONITORS:
        if name in recipe.discriminator_engine:
            raise ConfigError(
                f"{DISCRIMINATOR_FILE}: {name}",
                expected=f"none: the block of {GENERATOR_FILE} is for both networks",
                found="one",
                remedy=f"move it to {GENERATOR_FILE}",
            )
