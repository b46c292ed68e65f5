"""The two DeepSpeed engines: process group, build, freeze.

The generator and BERT have an engine each, from a JSON each (paper, section 4.3: "trained
separately, each having their own optimizer"). Where one network is only looked through, it is
`frozen` and called as `engine.module`: DeepSpeed's `engine.forward` hangs backward hooks on its
outputs, and a loss that belongs to the other engine would set them off
(docs/decisions/0003-two-engines.md).
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder import builder as op_builder
from deepspeed.runtime.activation_checkpointing.checkpointing import non_reentrant_checkpoint
from deepspeed.runtime.config import DeepSpeedConfigError
from deepspeed.runtime.zero.utils import ZeRORuntimeException
from deepspeed.utils.logging import logger as deepspeed_logger
from torch import nn
from torch.utils.cpp_extension import is_ninja_available

from ganbert.cores import ranks_here, share_of_cores
from ganbert.engine_config import (
    WRONG_SETTING,
    check_recipe,
    compiled_operation,
    is_enabled,
    refused,
    resolve_schedule,
)
from ganbert.engine_files import PlainFiles
from ganbert.errors import GanbertError, PlatformError
from ganbert.exchange import LOOPBACK
from ganbert.meeting import cannot_meet, meeting_timeout
from ganbert.monitor import check_packages, without_monitors
from ganbert.recipe import DISCRIMINATOR_FILE, GENERATOR_FILE, Recipe
from ganbert.resuming import TUNABLE


@dataclass(frozen=True)
class World:
    """This process's place among all of them, as the launcher set it.

    Attributes
    ----------
    rank, size : among all processes
    local_rank : on this node; 0 serves the node's metrics
    local_size : ranks on this node
    device : where this rank computes
    address : by which the ranks reach rank 0
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    address: str

    @property
    def ranks_here(self) -> range:
        """Ranks of this node; the launcher numbers them node by node."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor of the host to this rank's device, in turn with what runs there.

        Without a wait: a copy of ordinary memory waits until all that was asked for is done.
        """
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def describe_device(self) -> str:
        """Name of the GPU, or "CPU"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"


@dataclass(frozen=True)
class Engines:
    """The two engines of a run; no discriminator where the generator learns from L1 alone."""

    generator: deepspeed.DeepSpeedEngine
    discriminator: deepspeed.DeepSpeedEngine | None

    @property
    def by_name(self) -> dict[str, deepspeed.DeepSpeedEngine]:
        """Those that there are, by the names of their checkpoints."""
        both = {"generator": self.generator, "discriminator": self.discriminator}
        return {name: engine for name, engine in both.items() if engine is not None}

    def sample_masks(self, num_rows: int, generator: torch.Generator) -> torch.Tensor:
        """Masked positions of `num_rows` sequences: Tensor (N, M), int64; M = 0 without BERT."""
        if self.discriminator is None:
            return torch.zeros(num_rows, 0, dtype=torch.int64)
        positions: torch.Tensor = self.discriminator.module.sample_masks(num_rows, generator)
        return positions

    @property
    def micro_batch(self) -> int:
        """Volumes per rank and forward pass."""
        return int(self.generator.train_micro_batch_size_per_gpu())

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return int(self.generator.gradient_accumulation_steps())


def find_device() -> torch.device:
    """Where this rank computes: the GPU of its number on the node, or the CPU.

    Raises
    ------
    PlatformError
        If there is no such GPU, or DeepSpeed has chosen something else.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # DeepSpeed's answer and not torch's: DS_ACCELERATOR=cpu must hold for both.
    accelerator = get_accelerator()
    kind = accelerator.device_name()
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise PlatformError(
            "DeepSpeed's accelerator",
            expected="cuda or cpu",
            found=kind,
            remedy="export DS_ACCELERATOR=cpu",
        )
    if local_rank >= accelerator.device_count():
        raise PlatformError(
            f"local rank {local_rank}",
            expected="one GPU for each rank",
            found=f"{accelerator.device_count()} GPUs",
            remedy="lower --num_gpus",
        )
    return torch.device("cuda", local_rank)


def init_world(timeout: timedelta | None = None) -> World:
    """Join the process group: NCCL on GPUs, gloo on the CPU.

    Raises
    ------
    PlatformError
        If the process was not started by a launcher, there are more ranks than GPUs, or the port
        is taken.
    NotMetError
        If the ranks do not find each other.

    Notes
    -----
    Ranks wait `timeout` for each other at the start, and NCCL and gloo in a collective; default:
    DEEPSPEED_TIMEOUT (minutes), or 10 minutes.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        raise PlatformError(
            "ganbert/train.py",
            expected="RANK, WORLD_SIZE and LOCAL_RANK in the environment",
            found="none",
            remedy="start it with the launcher: deepspeed ganbert/train.py --config ... --data ...",
        )
    deepspeed_logger.setLevel(logging.WARNING)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = find_device()
    cuda = device.type == "cuda"
    # DeepSpeed compiles this operation whenever it meets gloo, though only its inference uses it. A
    # process that dies meanwhile leaves a lock behind, and every later run waits for it for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if cuda:
        get_accelerator().set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(share_of_cores())
    try:
        deepspeed.init_distributed(
            "nccl" if cuda else "gloo", timeout=timeout or meeting_timeout(), verbose=False
        )
    except torch.distributed.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise cannot_meet(place, is_taken="EADDRINUSE" in str(error)) from error
    local_size = ranks_here()
    size = dist.get_world_size()
    address = LOOPBACK if local_size == size else os.environ["MASTER_ADDR"]
    return World(dist.get_rank(), size, local_rank, local_size, device, address)


def check_engine_configs(recipe: Recipe) -> None:
    """Refuse a recipe that DeepSpeed, two engines in one step or this machine cannot run.

    Raises
    ------
    ConfigError
        If a key, name or value is wrong, or the two files contradict each other.
    PlatformError
        If the machine lacks a precision, what the optimiser is compiled with, or the package of a
        monitor.
    """
    check_recipe(recipe)
    for where, config in (
        (GENERATOR_FILE, recipe.generator_engine),
        (DISCRIMINATOR_FILE, recipe.discriminator_engine),
    ):
        _check_precision(where, config)
        check_packages(where, config)
        operation = compiled_operation(config)
        if operation is not None:
            _check_compiler(where, operation)


def _check_precision(where: str, config: dict[str, Any]) -> None:
    accelerator = get_accelerator()
    for name, supported in (
        ("fp16", accelerator.is_fp16_supported),
        ("bf16", accelerator.is_bf16_supported),
    ):
        if is_enabled(config, name) and not supported():
            raise PlatformError(
                f"{where}: {name}",
                expected=f"a machine that computes in {name}",
                found=accelerator.device_name(),
                remedy="remove the block (fp32), or train on another machine",
            )


def _check_compiler(where: str, operation: str) -> None:
    """Refuse an optimiser that DeepSpeed could only fail to compile."""
    accelerator = get_accelerator()
    builder = accelerator.create_op_builder(operation)
    name = operation.removesuffix("Builder")
    lacking = None
    if builder is None or builder.name == "deepspeed_not_implemented":
        lacking = f"none for {accelerator.device_name()}"
    elif not installed_ops.get(builder.name, False):
        lacking = _missing_to_compile(accelerator.device_name())
    if lacking is not None:
        raise PlatformError(
            f"{where}: optimizer",
            expected=f"DeepSpeed's {name}, or what compiles it",
            found=lacking,
            remedy='set "torch_adam": true for Adam, or install the CUDA toolkit of torch and g++',
        )


def _missing_to_compile(device: str) -> str | None:
    if device == "cuda" and torch.version.cuda is not None:
        # The builder's own is_compatible() says yes without looking for nvcc.
        try:
            op_builder.assert_no_cuda_mismatch()
        except (op_builder.MissingCUDAException, op_builder.CUDAMismatchException) as error:
            return str(error)
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler"
    return None if is_ninja_available() else "no ninja"


def _build_engine(where: str, module: nn.Module, config: dict[str, Any]) -> Any:
    if "activation_checkpointing" in config:
        deepspeed.checkpointing.configure(None, deepspeed_config=config)
        for part in module.modules():
            if hasattr(part, "checkpoint"):
                # Not the reentrant one: it gives no gradient to a block whose input needs none.
                part.checkpoint = non_reentrant_checkpoint
    trainable = [p for p in module.parameters() if p.requires_grad]
    try:
        engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trainable, config=without_monitors(config)
        )
    except (*WRONG_SETTING, DeepSpeedConfigError, ZeRORuntimeException) as error:
        # What check_engine_configs did not foresee. The traceback for whoever has to find out.
        logging.getLogger(__name__).debug("deepspeed.initialize", exc_info=True)
        raise refused(where, error) from error
    # The door that DeepSpeed has for it, though it asks nobody who comes later.
    engine.checkpoint_engine = PlainFiles(engine._config)
    return engine


def build_engines(
    generator: nn.Module, discriminator: nn.Module | None, recipe: Recipe, max_steps: int
) -> Engines:
    """Wrap the networks, each with the optimiser, schedule and precision of its own JSON.

    Raises
    ------
    ConfigError
        If the two JSON files contradict each other or ask for what two engines cannot do.
    PlatformError
        If the machine cannot do what they ask for.
    """
    check_engine_configs(recipe)
    generator_config = resolve_schedule(recipe.generator_engine, max_steps)
    discriminator_config = resolve_schedule(recipe.discriminator_engine, max_steps)
    return Engines(
        _build_engine(GENERATOR_FILE, generator, generator_config),
        None
        if discriminator is None
        else _build_engine(DISCRIMINATOR_FILE, discriminator, discriminator_config),
    )


@contextlib.contextmanager
def frozen(engine: deepspeed.DeepSpeedEngine | None) -> Iterator[nn.Module | None]:
    """Yield the engine's bare module, if any, all parameters frozen, and thaw them afterwards.

    Gradients still flow through the module to its input; none reaches its parameters.
    """
    module = None if engine is None else engine.module
    parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def recipe_settings(engines: Engines) -> Iterator[None]:
    """Hold the optimisers to the recipe's settings while a checkpoint is loaded.

    Torch keeps learning rate, betas and the like beside the state, and loading takes all of it: a
    recipe that was changed for a resumed run would have no effect. A schedule sets its rate anew,
    at the position of the checkpoint.
    """
    before = {
        name: [
            {k: group[k] for k in TUNABLE if k in group} for group in engine.optimizer.param_groups
        ]
        for name, engine in engines.by_name.items()
    }
    yield
    for name, engine in engines.by_name.items():
        for group, settings in zip(engine.optimizer.param_groups, before[name], strict=True):
            group.update(settings)
        schedule = engine.lr_scheduler
        if schedule is not None and schedule.last_batch_iteration >= 0:
            schedule.step(schedule.last_batch_iteration)


def optimiser_facts(engines: Engines) -> dict[str, float]:
    """Learning rates, norms of the gradients and loss scales, by their names in `StepStats`.

    To be read when the step's exchange has waited for the device: a norm may lie on it.
    """
    facts: dict[str, float] = {}
    for name, engine in engines.by_name.items():
        facts[f"learning_rate_{name}"] = engine.get_lr()[0]
        if (norm := engine.get_global_grad_norm()) is not None:
            facts[f"gradient_norm_{name}"] = float(norm)
        if engine.fp16_enabled():
            facts[f"fp16_scale_{name}"] = float(engine.optimizer.loss_scale)
    return facts


def check_weights(engines: Engines, step: int) -> None:
    """Keep weights that are no numbers out of the checkpoints.

    Raises
    ------
    GanbertError
        Naming the network.
    """
    for name, engine in engines.by_name.items():
        weights = engine.module.parameters()
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):
            raise GanbertError(
                f"step {step}",
                expected=f"finite weights of the {name}",
                found="NaN or infinity",
                remedy="lower the learning rate or the loss weights and resume from a checkpoint",
            )


def leave_world() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
