"""The two DeepSpeed engines: process group, build, freeze. The only importer of deepspeed.

The generator and BERT have an engine each, from a JSON each (paper, section 4.3: "trained
separately, each having their own optimizer"). Where one network is only looked through, it is
`frozen` and called as `engine.module`: DeepSpeed's `engine.forward` hangs backward hooks on its
outputs, and a loss that belongs to the other engine would set them off
(docs/decisions/0003-two-engines.md).
"""

import contextlib
import copy
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from deepspeed.runtime.activation_checkpointing.checkpointing import non_reentrant_checkpoint
from deepspeed.utils.logging import logger as deepspeed_logger
from torch import Tensor, nn

from ganbert.config import Recipe
from ganbert.errors import ConfigError, PlatformError

_WARMUP_SHARE = 0.05  # Shin et al. 2020, A.3
_MULTIPLE_ENGINES_BUT_PARTITIONED = 2


@dataclass(frozen=True)
class World:
    """This process's place among all of them, as the launcher set it.

    Attributes
    ----------
    rank, size : among all processes
    local_rank : on this node; 0 serves the node's metrics
    device : where this rank computes
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device


@dataclass(frozen=True)
class Engines:
    """The two engines of a run."""

    generator: deepspeed.DeepSpeedEngine
    discriminator: deepspeed.DeepSpeedEngine

    @property
    def micro_batch(self) -> int:
        """Volumes per rank and forward pass."""
        return int(self.generator.train_micro_batch_size_per_gpu())

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return int(self.generator.gradient_accumulation_steps())


def init_world(timeout: timedelta = timedelta(minutes=10)) -> World:
    """Join the process group: NCCL on GPUs, gloo on the CPU.

    Raises
    ------
    PlatformError
        If the process was not started by a launcher, or there are more ranks than GPUs.
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
    cuda = torch.cuda.is_available()
    if cuda and local_rank >= torch.cuda.device_count():
        raise PlatformError(
            f"local rank {local_rank}",
            expected="one GPU for each rank",
            found=f"{torch.cuda.device_count()} GPUs",
            remedy="lower --num_gpus",
        )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    # DeepSpeed compiles this operation whenever it meets gloo, though only its inference uses it. A
    # process that dies meanwhile leaves a lock behind, and every later run waits for it for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if cuda:
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Each rank would take all cores, and they would wait for each other.
        ranks_here = int(os.environ.get("LOCAL_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timeout, verbose=False)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


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


def check_engine_configs(recipe: Recipe) -> None:
    """Refuse a recipe whose two engines cannot train together.

    Raises
    ------
    ConfigError
        If micro-batch or accumulation differ, or ZeRO 2 or 3 is asked for.
    """
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        pair = [c.get(key) for c in (recipe.generator_engine, recipe.discriminator_engine)]
        if pair[0] is None or pair[0] != pair[1]:
            raise ConfigError(
                "generator.json and discriminator.json",
                expected=f"one '{key}' in both",
                found=f"{pair[0]} and {pair[1]}",
                remedy="write the same number in both files",
            )
    for config in (recipe.generator_engine, recipe.discriminator_engine):
        stage = config.get("zero_optimization", {}).get("stage", 0)
        if stage >= _MULTIPLE_ENGINES_BUT_PARTITIONED:
            raise ConfigError(
                "zero_optimization.stage",
                expected="0 or 1",
                found=str(stage),
                remedy="stages 2 and 3 do not work with two engines in one step (DeepSpeed #4923)",
            )


def _build_engine(module: nn.Module, config: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    if "activation_checkpointing" in config:
        deepspeed.checkpointing.configure(None, deepspeed_config=config)
        for part in module.modules():
            if hasattr(part, "checkpoint"):
                # Not the reentrant one: it gives no gradient to a block whose input needs none.
                part.checkpoint = non_reentrant_checkpoint
    trainable = [p for p in module.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=module, model_parameters=trainable, config=config)
    return engine


def build_engines(
    generator: nn.Module, discriminator: nn.Module, recipe: Recipe, max_steps: int
) -> Engines:
    """Wrap both networks, each with the optimiser, schedule and precision of its own JSON.

    Raises
    ------
    ConfigError
        If the two JSON files contradict each other or ask for what two engines cannot do.
    """
    check_engine_configs(recipe)
    return Engines(
        _build_engine(generator, resolve_schedule(recipe.generator_engine, max_steps)),
        _build_engine(discriminator, resolve_schedule(recipe.discriminator_engine, max_steps)),
    )


@contextlib.contextmanager
def frozen(engine: deepspeed.DeepSpeedEngine) -> Iterator[nn.Module]:
    """Yield the engine's bare module with all parameters frozen, and thaw them afterwards.

    Gradients still flow through the module to its input; none reaches its parameters.
    """
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield engine.module
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a small tensor over all ranks, on every rank."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def leave_world() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
