"""Train GANBERT: the script that `deepspeed` launches. Read it top to bottom.

    deepspeed --num_gpus 2 ganbert/train.py --config ds_configs/demo --data PREPARED --output RUN

Options -> data -> models -> engines -> loop. DeepSpeed owns the optimisers, schedules, precision,
micro-batch, accumulation, ZeRO and activation checkpointing (two JSON files of the recipe);
everything else stands in the recipe's run.yaml. Exit codes: 0 finished, 2 a mistake that the user
can mend, 75 interrupted (SIGTERM, Ctrl-C) and saved: run the same command again to go on.
"""

import sys
from pathlib import Path

# `deepspeed ganbert/train.py` puts ganbert/ itself first on the path, where config.py, evaluate.py
# and others would hide packages of the same name.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

import argparse
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from ganbert import losses
from ganbert.checkpoint import (
    TrainingState,
    export_generator,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ganbert.config import LossConfig, load_recipe
from ganbert.data.loader import Batch, build_loader
from ganbert.engines import (
    Engines,
    World,
    barrier,
    build_engines,
    check_engine_configs,
    frozen,
    init_world,
    leave_world,
    mean_over_ranks,
)
from ganbert.errors import (
    EXIT_INTERRUPTED,
    CheckpointError,
    ConfigError,
    GanbertError,
    one_line_errors,
)
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.runs import Run, plan_run, write_description
from ganbert.telemetry import StepStats, Telemetry

# The order of the numbers that the two steps return, and that one all-reduce averages.
_STATISTICS = (
    "loss_nsp_discriminator",
    "loss_mlm_discriminator",
    "nsp_accuracy_real",
    "nsp_accuracy_generated",
    "loss_l1",
    "loss_nsp_generator",
    "loss_mlm_generator",
)


@dataclass
class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the ranks agree on at the end of a step."""

    received: bool = field(default=False)

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return number


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="deepspeed ganbert/train.py", description="Train GANBERT on a prepared cohort."
    )
    parser.add_argument("--config", type=Path, required=True, help="recipe folder or its run.yaml")
    parser.add_argument("--data", type=Path, required=True, help="output of `ganbert prepare`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run (RUN)")
    parser.add_argument(
        "--resume",
        choices=("auto", "none"),
        default="auto",
        help="auto: go on from RUN's newest checkpoint; none: RUN must be empty (default: auto)",
    )
    parser.add_argument("--max-steps", type=_positive, help="instead of max_steps in run.yaml")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> Run:
    """Turn the command line into a checked plan.

    Raises
    ------
    GanbertError
        Before any training work, if something cannot work.
    """
    recipe = load_recipe(options.config)
    if options.max_steps is not None:
        run_config = recipe.run.model_copy(update={"max_steps": options.max_steps})
        recipe = recipe.model_copy(update={"run": run_config})
    check_engine_configs(recipe)
    return plan_run(
        recipe,
        recipe_path=options.config,
        data=options.data,
        output=options.output,
        resume_from=find_checkpoint(options.output, options.resume),
    )


def seed_micro_step(seed: int, micro_step: int, rank: int) -> torch.Generator:
    """Seed all randomness of one micro-step; return the generator of its masks.

    Random numbers are a function of (seed, micro-step, rank), so a resumed run draws what an
    uninterrupted one would have drawn, and no generator state needs saving.
    """
    dropout, masks = np.random.SeedSequence((seed, micro_step, rank)).generate_state(2)
    torch.manual_seed(int(dropout))
    return torch.Generator().manual_seed(int(masks))


def discriminator_step(
    engines: Engines, batch: Batch, pet_fake: Tensor, masks: Tensor, weights: dict[str, float]
) -> list[Tensor]:
    """BERT learns to tell real from generated and to fill in masked values (Eq. 1, max_D).

    Parameters
    ----------
    pet_fake : Tensor (N, 2, D, H, W), normalised; detached, so that nothing reaches the generator
    masks : Tensor (2 N, M), int64, masked positions of the real, then of the generated PETs

    Returns
    -------
    loss_nsp, loss_mlm, accuracy on real, accuracy on generated; scalars
    """
    # Real and generated in one batch, half each (paper, section 4.2): one pass instead of two.
    pet = torch.cat((batch.pet_real, pet_fake.detach()))
    judgement = engines.discriminator(batch.mri, pet, batch.pet_real, masks)
    on_real, on_fake = judgement.nsp_logits.chunk(2)
    terms = {
        "nsp": (losses.nsp(on_real, losses.REAL) + losses.nsp(on_fake, losses.GENERATED)) / 2,
        "mlm": losses.mlm(judgement.mlm_logits, judgement.mlm_labels),
    }
    engines.discriminator.backward(losses.weighted_sum(terms, weights))
    engines.discriminator.step()
    accuracy_real = (on_real.argmax(1) == losses.REAL).float().mean()
    accuracy_generated = (on_fake.argmax(1) == losses.GENERATED).float().mean()
    return [*(t.detach() for t in terms.values()), accuracy_real, accuracy_generated]


def generator_step(
    engines: Engines, batch: Batch, pet_fake: Tensor, masks: Tensor, config: LossConfig
) -> list[Tensor]:
    """The generator learns to be judged real, to help BERT and to be right (Eq. 1, min_G).

    Parameters
    ----------
    pet_fake : Tensor (N, 2, D, H, W), normalised, from the generator's engine
    masks : Tensor (N, M), int64, masked positions

    Returns
    -------
    loss_l1, loss_nsp, loss_mlm; scalars
    """
    for_l1, for_adversary = losses.hold_adversary(pet_fake, config.max_adversarial_ratio)
    with frozen(engines.discriminator) as discriminator:
        judgement = discriminator(batch.mri, for_adversary, batch.pet_real, masks)
        terms = {
            "l1": losses.l1(for_l1, batch.pet_real),
            "nsp": losses.nsp(judgement.nsp_logits, losses.REAL),
            "mlm": losses.mlm(judgement.mlm_logits, judgement.mlm_labels),
        }
        engines.generator.backward(losses.weighted_sum(terms, config.model_dump()))
        engines.generator.step()
    return [term.detach() for term in terms.values()]


def train(
    run: Run,
    engines: Engines,
    batches: Iterator[Batch],
    world: World,
    telemetry: Telemetry,
    state: TrainingState,
    stop: StopRequest,
) -> TrainingState:
    """The loop: micro-steps, one line of statistics a step, checkpoints, a clean way out.

    Returns
    -------
    The state after the last step done; `state.step` falls short of `max_steps` if interrupted.
    """
    config = run.recipe.run
    weights = config.losses.model_dump()
    named = {"generator": engines.generator, "discriminator": engines.discriminator}
    samples_per_step = engines.micro_batch * engines.accumulation * world.size
    num_rows = len(run.training_rows)

    while state.step < config.max_steps:
        started, waited = time.perf_counter(), 0.0
        totals = torch.zeros(len(_STATISTICS) + 1, device=world.device)
        for micro in range(engines.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            micro_step = state.step * engines.accumulation + micro
            masks_of = seed_micro_step(config.seed, micro_step, world.rank)
            masks = engines.discriminator.module.sample_masks(3 * len(batch.mri), masks_of)
            masks = masks.to(world.device)
            # One forward pass of the generator serves both steps.
            pet_fake = engines.generator(batch.mri)
            of_discriminator, of_generator = masks.tensor_split([2 * len(batch.mri)])
            judged = discriminator_step(engines, batch, pet_fake, of_discriminator, weights)
            made = generator_step(engines, batch, pet_fake, of_generator, config.losses)
            totals[:-1] += torch.stack(judged + made) / engines.accumulation

        # The wish to stop travels with the statistics: all ranks leave at the same step.
        totals[-1] = float(stop.received)
        means = mean_over_ranks(totals).tolist()
        state = state.model_copy(
            update={"step": state.step + 1, "samples_seen": state.samples_seen + samples_per_step}
        )
        check_finite(means, state.step)
        seconds = time.perf_counter() - started
        telemetry.write(
            StepStats(
                step=state.step,
                samples_seen=state.samples_seen,
                epoch=state.samples_seen / num_rows,
                seconds=seconds,
                volumes_per_second=samples_per_step / seconds,
                data_wait_seconds=waited,
                learning_rate_generator=engines.generator.get_lr()[0],
                learning_rate_discriminator=engines.discriminator.get_lr()[0],
                **dict(zip(_STATISTICS, means, strict=False)),
            ),
            samples_per_step,
        )
        interrupted = means[-1] > 0
        last = state.step == config.max_steps
        if interrupted or last or state.step % config.checkpoint_every == 0:
            save_checkpoint(run.output, named, state, keep=config.keep_checkpoints)
        if interrupted:
            break
    return state


def check_finite(means: list[float], step: int) -> None:
    """Stop a run whose losses are no numbers any more.

    Raises
    ------
    GanbertError
        Naming the term.
    """
    for name, value in zip(_STATISTICS, means, strict=False):
        if not math.isfinite(value):
            raise GanbertError(
                f"step {step}",
                expected=f"a finite {name}",
                found=str(value),
                remedy="lower the learning rate or the loss weights and resume from a checkpoint",
            )


def prepare_engines(run: Run) -> tuple[Engines, TrainingState]:
    """Build networks and engines, from the checkpoint if there is one."""
    config = run.recipe.run
    torch.manual_seed(config.seed)
    engines = build_engines(
        build_generator(config.generator, run.index.mri_grid, run.index.pet_grid),
        build_discriminator(config.discriminator),
        run.recipe,
        config.max_steps,
    )
    if run.resume_from is None:
        state = TrainingState(
            step=0, samples_seen=0, index_sha256=run.index_sha256, seed=config.seed
        )
        return engines, state
    named = {"generator": engines.generator, "discriminator": engines.discriminator}
    state = load_checkpoint(run.resume_from, named, index_sha256=run.index_sha256, seed=config.seed)
    if state.step > config.max_steps:
        raise CheckpointError(
            run.resume_from,
            expected=f"at most max_steps = {config.max_steps} steps done",
            found=str(state.step),
            remedy="raise max_steps, or give another --output",
        )
    return engines, state


def open_loader(run: Run, engines: Engines, world: World, state: TrainingState) -> Iterator[Batch]:
    """Stream this rank's share of the batches that are still to come."""
    per_micro_step = engines.micro_batch * world.size
    if state.samples_seen % per_micro_step:
        raise ConfigError(
            "number of ranks",
            expected=f"micro-batch x ranks that divides the {state.samples_seen} samples seen",
            found=str(per_micro_step),
            remedy="resume on the number of ranks of the checkpoint",
        )
    config = run.recipe.run
    return build_loader(
        run.data,
        run.index,
        "train",
        intensity_ratio=run.intensity_ratio,
        micro_batch=engines.micro_batch,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        start_micro_step=state.samples_seen // per_micro_step,
        num_micro_steps=(config.max_steps - state.step) * engines.accumulation,
        device_id=world.device.index if world.device.type == "cuda" else None,
    )


def run_training(run: Run, world: World) -> bool:
    """Train from start or checkpoint to the end; return whether the end was reached."""
    stop = StopRequest()
    stop.install()
    config = run.recipe.run
    if world.rank == 0:
        write_description(run, world.size)
    barrier()
    engines, state = prepare_engines(run)
    batches = open_loader(run, engines, world, state)
    port = config.metrics_port if world.local_rank == 0 else None
    first = world.rank == 0
    with Telemetry(
        run.output, is_first=first, port=port, max_steps=config.max_steps, done=state.step
    ) as telemetry:
        if first:
            origin = f"from step {state.step}" if run.resume_from else "from the start"
            telemetry.say(f"{world.size} ranks on {world.device.type}, {origin}")
            telemetry.say(f"metrics on port {telemetry.port} of each node")
        state = train(run, engines, batches, world, telemetry, state, stop)
        finished = state.step >= config.max_steps
        if first and finished:
            weights = engines.generator.module.state_dict()
            telemetry.say(f"exported {export_generator(run.output, weights, run.card(state.step))}")
        elif first:
            telemetry.say(f"interrupted at step {state.step}, saved; run again to go on")
    barrier()
    return finished


def main(arguments: list[str] | None = None) -> None:
    """Entry point of every rank."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    # Before the ranks have met, each finds the same mistakes: one a node says so.
    with one_line_errors(quiet=os.environ.get("LOCAL_RANK", "0") != "0"):
        run = plan(options)
    with one_line_errors():
        world = init_world()
        finished = run_training(run, world)
        leave_world()
    raise SystemExit(0 if finished else EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
