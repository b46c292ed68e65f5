"""The keys that `generator.json` and `discriminator.json` may have, checked without DeepSpeed.

DeepSpeed ignores a key that it does not know, so those that GANBERT supports are a closed list
here. What can be said of their values in a moment is said here too; what takes DeepSpeed's own
classes, which take seconds to import, stands in `engine_config`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt

from ganbert.errors import ConfigError
from ganbert.recipe import DISCRIMINATOR_FILE, GENERATOR_FILE, Recipe
from ganbert.strict import Strict, read_strictly

_MAX_ZERO_STAGE = 1


class OptimizerConfig(Strict):
    """The optimiser's name and what it is built with."""

    type: str
    params: dict[str, Any] = Field(default_factory=dict)


class SchedulerConfig(Strict):
    """The schedule of the learning rate; "auto" is filled in by `resolve_schedule`."""

    type: str
    params: dict[str, Any] = Field(default_factory=dict)


class ActivationCheckpointing(Strict):
    """What DeepSpeed recomputes in the backward pass instead of keeping it."""

    partition_activations: bool = False
    number_checkpoints: PositiveInt | None = None
    contiguous_memory_optimization: bool = False
    cpu_checkpointing: bool = False
    synchronize_checkpoint_boundary: bool = False
    profile: bool = False


class EngineConfig(Strict):
    """The keys of DeepSpeed that GANBERT supports.

    Not among them: what needs one engine for the whole model, what changes inputs on their way into
    `engine.forward` (the generator's step goes round it), and sizes that follow from others.
    """

    train_micro_batch_size_per_gpu: PositiveInt
    gradient_accumulation_steps: PositiveInt
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig = SchedulerConfig(type="none")
    gradient_clipping: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0
    fp16: dict[str, Any] = Field(default_factory=dict)
    bf16: dict[str, Any] = Field(default_factory=dict)
    zero_optimization: dict[str, Any] = Field(default_factory=dict)
    zero_allow_untested_optimizer: bool = False
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing()
    communication_data_type: Literal["fp16", "bf16", "fp32"] = "fp32"
    prescale_gradients: bool = False
    gradient_predivide_factor: PositiveFloat = 1.0
    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    tensorboard: dict[str, Any] = Field(default_factory=dict)
    wandb: dict[str, Any] = Field(default_factory=dict)


def check_keys(recipe: Recipe) -> None:
    """Refuse keys that are not supported, and two files that contradict each other.

    Raises
    ------
    ConfigError
        Naming the file, the key and what would be right.
    """
    for where, config in (
        (GENERATOR_FILE, recipe.generator_engine),
        (DISCRIMINATOR_FILE, recipe.discriminator_engine),
    ):
        _check_known(where, config)
        _check_zero(where, config)
    _check_pair(recipe)


def _check_known(where: str, config: dict[str, Any]) -> None:
    if "train_batch_size" in config:
        raise ConfigError(
            where,
            expected="no 'train_batch_size'",
            found=repr(config["train_batch_size"]),
            remedy="remove it: it is micro-batch x accumulation x ranks",
        )
    read_strictly(where, config, EngineConfig)


def _check_zero(where: str, config: dict[str, Any]) -> None:
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= _MAX_ZERO_STAGE:
        two = "stages 2 and 3 do not work with two engines in one step (DeepSpeed #4923)"
        raise ConfigError(
            f"{where}: zero_optimization.stage",
            expected="0 or 1",
            found=repr(stage),
            remedy=two if stage in (2, 3) else "write the number 0 or 1",
        )
    for key in ("offload_optimizer", "offload_param", "cpu_offload", "zenflow"):
        if zero.get(key):
            raise ConfigError(
                f"{where}: zero_optimization.{key}",
                expected="nothing",
                found=repr(zero[key]),
                remedy="remove it: offloading is not supported with two engines",
            )


def _check_pair(recipe: Recipe) -> None:
    pair = (recipe.generator_engine, recipe.discriminator_engine)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        first, second = (config[key] for config in pair)
        if first != second:
            raise ConfigError(
                f"{GENERATOR_FILE} and {DISCRIMINATOR_FILE}",
                expected=f"one '{key}' in both",
                found=f"{first} and {second}",
                remedy="write the same number in both files",
            )
    blocks = [c["activation_checkpointing"] for c in pair if "activation_checkpointing" in c]
    if len(blocks) == len(pair) and blocks[0] != blocks[1]:
        raise ConfigError(
            f"{GENERATOR_FILE} and {DISCRIMINATOR_FILE}",
            expected="one 'activation_checkpointing'",
            found=f"{blocks[0]} and {blocks[1]}",
            remedy="write the same in both files, or leave it out of one: DeepSpeed has it once",
        )
