"""What each rank finds out alone, before it meets the others: what to train, and from where.

A run that cannot work is refused here, where no rank waits for another yet.
"""

import os

import torch

from ganbert.checkpoint import check_state
from ganbert.checkpoint_files import TrainingState, find_checkpoint, read_state
from ganbert.engines import check_engine_configs
from ganbert.models.generator import build_generator
from ganbert.preflight import Checked
from ganbert.runs import Run, plan_run


def plan(checked: Checked) -> tuple[Run, TrainingState]:
    """Turn a checked command line into a plan and the state to start from.

    Raises
    ------
    GanbertError
        Before any training work, if something cannot work.
    """
    options, recipe = checked.options, checked.recipe
    if options.max_steps is not None:
        run_config = recipe.run.model_copy(update={"max_steps": options.max_steps})
        recipe = recipe.model_copy(update={"run": run_config})
    check_engine_configs(recipe)
    resume_from, passed_over = find_checkpoint(options.output, options.resume)
    run = plan_run(
        recipe,
        recipe_path=options.config,
        data=options.data,
        read=checked.index,
        output=options.output,
        resume_from=resume_from,
        passed_over=passed_over,
        world_size=_world_size(),
        tracer=options.tracer,
    )
    with torch.device("meta"):  # the shapes alone: do the networks fit the grids?
        build_generator(recipe.run.generator, run.index.mri_grid, run.index.pet_grid)
    return run, first_state(run)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # the launcher's, before the ranks have met


def first_state(run: Run) -> TrainingState:
    """State of the checkpoint to go on from, or of a new run."""
    seed = run.recipe.run.seed
    if run.resume_from is None:
        return TrainingState(step=0, samples_seen=0, index_sha256=run.index_sha256, seed=seed)
    state = read_state(run.resume_from)
    micro_batch = run.recipe.generator_engine["train_micro_batch_size_per_gpu"]
    check_state(
        run.resume_from,
        state,
        index_sha256=run.index_sha256,
        seed=seed,
        max_steps=run.recipe.run.max_steps,
        samples_per_micro_step=micro_batch * _world_size(),
    )
    return state
