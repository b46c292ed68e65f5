"""One rank of a few optimiser steps on its share of four fixed images; started by the launcher.

    deepspeed --num_gpus 2 tests/equal_ranks.py OUT ZERO_STAGE [--overlap]

Rank 0 writes the weights of both networks to OUT.
"""

import argparse
import sys
from pathlib import Path

import torch
from distributed.test_two_engines import (
    engines_with,
    masks_for,
    part_of,
    random_batch,
    recipe_with,
    weights_of,
)
from safetensors.torch import save_file

from ganbert.engines import init_world, leave_world
from ganbert.steps import discriminator_step, generator_step

STEPS, WHOLE = 3, 4
# Plain SGD: Adam would blow rounding errors of tiny gradients up to whole steps.
SGD = {
    "optimizer": {"type": "SGD", "params": {"lr": 0.01}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.01, "warmup_max_lr": 0.01}},
    "zero_allow_untested_optimizer": True,
}


def main(out: Path, zero_stage: int, *, overlap: bool) -> None:
    """Train on this rank's share."""
    world = init_world()
    num = WHOLE // world.size
    recipe = recipe_with(
        gradient_accumulation_steps=1,
        train_micro_batch_size_per_gpu=num,
        # Small buckets, or the only one would be sent when the backward pass is over.
        zero_optimization={"stage": zero_stage}
        | ({"overlap_comm": True, "reduce_bucket_size": 2000} if overlap else {}),
        **SGD,
    )
    engines = engines_with(recipe)
    mine = slice(world.rank * num, (world.rank + 1) * num)
    batch = part_of(random_batch(WHOLE), mine)
    # Of the real, of the generated, and of the generator's own step.
    judged_real, judged_fake, made = (m[mine] for m in masks_for(engines, 3 * WHOLE).split(WHOLE))
    for step in range(STEPS):
        pet_fake = engines.generator(batch.mri)
        judged = torch.cat((judged_real, judged_fake))
        discriminator_step(engines, batch, pet_fake, judged, recipe.run.losses)
        generator_step(engines, batch, pet_fake, made, recipe.run.losses, step)
    if world.rank == 0:
        weights = {
            f"{name}.{weight}": value.float()
            for name, engine in engines.by_name.items()
            for weight, value in weights_of(engine).items()
        }
        save_file({name: value.clone() for name, value in weights.items()}, out)
    leave_world()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("zero_stage", type=int)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--local_rank")
    options = parser.parse_args(sys.argv[1:])
    main(options.out, options.zero_stage, overlap=options.overlap)
