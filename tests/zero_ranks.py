"""A rank of ZeRO 1 that trains a little, or reads a checkpoint, and saves: a process of its own.

RANK=0 WORLD_SIZE=2 ... python -m tests.zero_ranks OUT [CHECKPOINT]
"""

import sys
from pathlib import Path

from ganbert.checkpoint import load_checkpoint, save_checkpoint
from ganbert.checkpoint_files import TrainingState
from ganbert.engines import init_world, leave_world
from tests.distributed.test_two_engines import _steps, engines_with, recipe_with

STATE = TrainingState(step=2, samples_seen=4, index_sha256="0" * 64, seed=0)


def main() -> None:
    """Train two steps or load, then save."""
    out, *given = map(Path, sys.argv[1:])
    init_world()
    rising = {"warmup_min_lr": 1e-3, "warmup_max_lr": 1e-2, "warmup_num_steps": 9}
    recipe = recipe_with(
        zero_optimization={"stage": 1}, scheduler={"type": "WarmupLR", "params": rising}
    )
    engines = engines_with(recipe) if given else _steps(recipe)
    for checkpoint in given:
        load_checkpoint(checkpoint, engines.by_name)
    save_checkpoint(out, engines.by_name, STATE, keep=1, description={})
    leave_world()


if __name__ == "__main__":
    main()
