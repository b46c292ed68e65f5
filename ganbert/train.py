"""Train GANBERT: the script that `deepspeed` launches. Read it top to bottom.

    deepspeed --num_gpus 2 ganbert/train.py --config ds_configs/demo --data PREPARED --output RUN
    GANBERT_DATA=PREPARED GANBERT_OUTPUT=RUN deepspeed --num_gpus 8 ganbert/train.py

Options -> data -> models -> engines -> loop; what both networks learn from a micro-batch stands in
`steps.py`. DeepSpeed owns the optimisers, schedules, precision, micro-batch, accumulation, ZeRO and
activation checkpointing (two JSON files of the recipe); everything else stands in the recipe's
run.yaml. Exit codes: 0 finished, 1 a bug or a dead rank, 2 a mistake that the user can mend, 69
ranks of other nodes did not come, 75 interrupted (SIGTERM, Ctrl-C) and saved: for the last two run
the same command again to go on.
"""

import faulthandler
import gc
import signal
import sys
from pathlib import Path

# `deepspeed ganbert/train.py` puts ganbert/ itself first on the path, where config.py, evaluate.py
# and others would hide packages of the same name.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]
    # Until `main`: else the collector goes through what is imported again and again.
    gc.disable()
if __name__ == "__main__":
    # A rank that hangs prints its stacks when asked; a handler in C answers in a collective too,
    # and a debugger would need a capability that the pods do not have.
    faulthandler.register(signal.SIGUSR1, file=2)
    # Before torch, DeepSpeed and DALI, whose imports take seconds.
    from ganbert.supervisor import find_launchers

    launchers = find_launchers()
    from ganbert.preflight import refuse_early

    checked = refuse_early(sys.argv[1:])

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from ganbert.alarm import Alarm
from ganbert.checkpoint import export_generator, load_checkpoint, save_checkpoint
from ganbert.checkpoint_files import TrainingState, discard_unfinished, set_aside_newer
from ganbert.config import RunConfig
from ganbert.data.loader import Batch, Loader, build_loader
from ganbert.engines import (
    Engines,
    World,
    build_engines,
    check_weights,
    find_device,
    init_world,
    leave_world,
    optimiser_facts,
    recipe_settings,
)
from ganbert.errors import EXIT_INTERRUPTED, one_line_errors
from ganbert.meeting import Meeting
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.monitor import MonitorSink
from ganbert.planning import plan
from ganbert.preflight import Checked, check_options
from ganbert.ranks import StopRequest, barrier, mean_over_ranks, require_same
from ganbert.runs import (
    Run,
    claim,
    describe_checkpoint,
    facts_for_all_ranks,
    write_description,
)
from ganbert.sample_log import SampleLog, rewind
from ganbert.step_stats import PhaseClock, StepStats
from ganbert.steps import discriminator_step, generator_step
from ganbert.stragglers import OwnTime, StragglerWatch, host_names
from ganbert.supervisor import when_gone
from ganbert.telemetry import Telemetry
from ganbert.train_options import parse_options
from ganbert.validation import validation_l1, validation_rows


def seed_micro_step(seed: int, micro_step: int, rank: int) -> torch.Generator:
    """Seed all randomness of one micro-step; return the generator of its masks.

    Random numbers are a function of (seed, micro-step, rank), so a resumed run draws what an
    uninterrupted one would have drawn, and no generator state needs saving.
    """
    dropout, masks = np.random.SeedSequence((seed, micro_step, rank)).generate_state(2)
    torch.manual_seed(int(dropout))
    return torch.Generator().manual_seed(int(masks))


def train(
    run: Run,
    engines: Engines,
    batches: Iterator[Batch],
    world: World,
    telemetry: Telemetry,
    state: TrainingState,
    stop: StopRequest,
    watch: StragglerWatch,
    samples: SampleLog,
) -> TrainingState:
    """The loop: micro-steps, one line of statistics a step, checkpoints, a clean way out.

    Returns
    -------
    The state after the last step done; `state.step` falls short of `max_steps` if interrupted.
    """
    config, losses = run.recipe.run, run.recipe.run.losses
    size = engines.micro_batch
    samples_at_once = size * world.size
    samples_per_step = samples_at_once * engines.accumulation
    num_rows, own_time, clock = len(run.training_rows), OwnTime(world.device), PhaseClock()

    while state.step < config.max_steps:
        started = time.perf_counter()
        measured: list[dict[str, Tensor]] = []
        for micro in range(engines.accumulation):
            with own_time.running():
                with clock.running("data"):
                    batch = next(batches)
                # Not from the step: before a resume there may have been another accumulation.
                micro_step = state.samples_seen // samples_at_once + micro
                samples.write((micro_step * world.size + world.rank) * size, batch.rows)
                masks_of = seed_micro_step(config.seed, micro_step, world.rank)
                masks = engines.sample_masks(3 * len(batch.mri), masks_of)
                judged, made = world.bring(masks).tensor_split([2 * len(batch.mri)])
                # One forward pass of the generator serves both steps.
                with clock.running("generator_forward"):
                    pet_fake = engines.generator(batch.mri)
            with clock.running("discriminator"):
                of_discriminator = discriminator_step(engines, batch, pet_fake, judged, losses)
            with clock.running("generator"):
                of_generator = generator_step(engines, batch, pet_fake, made, losses, state.step)
            measured.append(of_discriminator | of_generator)

        # The wish to stop travels with the statistics: all ranks leave at the same step.
        with clock.running("exchange"):
            means, interrupted, own_seconds = average(measured, stop, own_time.take(), world)
        phases = clock.take()
        seconds = time.perf_counter() - started
        step = state.step + 1
        validated = validate(run, engines, world) if is_due(step, config) else (None, None)
        state = state.model_copy(
            update={
                "step": step,
                "samples_seen": state.samples_seen + samples_per_step,
                "validation_l1": validated[0],
                "validation_subjects": validated[1],
            }
        )
        telemetry.write(
            StepStats(
                step=state.step,
                samples_seen=state.samples_seen,
                epoch=state.samples_seen / num_rows,
                seconds=seconds,
                volumes_per_second=samples_per_step / seconds,
                data_wait_seconds=phases["data"],
                phase_seconds=phases,
                own_seconds=[round(seconds, 4) for seconds in own_seconds],
                validation_l1=state.validation_l1,
                **means,
                **optimiser_facts(engines),
            ),
            samples_per_step * world.local_size // world.size,
        )
        if (remark := watch.see(own_seconds)) is not None:
            telemetry.say(remark)
        if interrupted or is_due(state.step, config):
            save(run, engines, world, telemetry, state)
        if interrupted:
            break
    return state


def is_due(step: int, config: RunConfig) -> bool:
    """Whether this step ends with a validation and a checkpoint."""
    return step % config.checkpoint_every == 0 or step == config.max_steps


def validate(run: Run, engines: Engines, world: World) -> tuple[float | None, int | None]:
    """L1 on validation subjects, by which the best checkpoint is known, and on how many, if any."""
    rows = validation_rows(run.index, run.tracer, run.recipe.run.validation_subjects)
    measured = validation_l1(
        engines.generator.module,
        run.data,
        rows,
        intensity_ratio=run.intensity_ratio,
        rank=world.rank,
        num_ranks=world.size,
        device=world.device,
    )
    return measured, len(rows) or None


def save(
    run: Run, engines: Engines, world: World, telemetry: Telemetry, state: TrainingState
) -> None:
    """Write a checkpoint of this step, and say how long training stood still for it."""
    check_weights(engines, state.step)
    started = time.perf_counter()
    device = world.describe_device()
    saved = save_checkpoint(
        run.output,
        engines.by_name,
        state,
        keep=run.recipe.run.keep_checkpoints,
        description=describe_checkpoint(run, world.size, device, state.step, state.samples_seen),
    )
    telemetry.saved(state.step, time.perf_counter() - started, saved.num_bytes)


def average(
    measured: list[dict[str, Tensor]], stop: StopRequest, own_seconds: float, world: World
) -> tuple[dict[str, float], bool, list[float]]:
    """Means over micro-steps and ranks, whether any rank was asked to stop, each one's own time."""
    names = list(measured[0])
    of_micro_steps = torch.stack([torch.stack([m[name] for name in names]) for m in measured])
    means = of_micro_steps.mean(0)
    # One exchange for all of it: a mean of zeros and one rank's time is that time, divided.
    own = torch.zeros(1 + world.size, device=world.device)
    own[0], own[1 + world.rank] = float(stop.received), own_seconds * world.size
    values = mean_over_ranks(torch.cat((means, own))).tolist()
    wished, own_of_all = values[len(names)], values[len(names) + 1 :]
    return dict(zip(names, values[: len(names)], strict=True)), wished > 0, own_of_all


def prepare_engines(run: Run) -> Engines:
    """Build networks and engines, as the checkpoint left them if there is one."""
    config = run.recipe.run
    torch.manual_seed(config.seed)
    engines = build_engines(
        build_generator(config.generator, run.index.mri_grid, run.index.pet_grid),
        build_discriminator(config.discriminator, run.index.mri_grid, run.index.pet_grid),
        run.recipe,
        config.max_steps,
    )
    if run.resume_from is not None:
        with recipe_settings(engines):
            load_checkpoint(run.resume_from, engines.by_name)
    return engines


def open_loader(run: Run, engines: Engines, world: World, state: TrainingState) -> Loader:
    """Stream this rank's share of the batches that are still to come."""
    config = run.recipe.run
    return build_loader(
        run.data,
        run.index,
        "train",
        tracer=run.tracer,
        intensity_ratio=run.intensity_ratio,
        micro_batch=engines.micro_batch,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        start_micro_step=state.samples_seen // (engines.micro_batch * world.size),
        num_micro_steps=(config.max_steps - state.step) * engines.accumulation,
        device_id=world.device.index if world.device.type == "cuda" else None,
        augmentation=config.augmentation,
    )


def run_training(
    run: Run,
    world: World,
    state: TrainingState,
    stop: StopRequest,
    alarm: Alarm,
    watch: StragglerWatch,
) -> bool:
    """Train from start or checkpoint to the end; return whether the end was reached."""
    max_steps, first = run.recipe.run.max_steps, world.rank == 0
    require_same(facts_for_all_ranks(run, state.step))
    engines = prepare_engines(run)
    with contextlib.ExitStack() as opened:
        if first:
            opened.enter_context(claim(run.output))
            alarm.on_failure(functools.partial(discard_unfinished, run.output))
            if run.resume_from is not None:
                set_aside_newer(run.output, run.resume_from)
            write_description(run, world.size, world.describe_device())
            rewind(run.output, state.samples_seen)
        barrier()  # whose RUN is not ours, no rank writes into
        port = run.recipe.run.metrics_port if world.local_rank == 0 else None
        monitors = run.recipe.generator_engine, run.output, state.samples_seen
        telemetry = opened.enter_context(
            Telemetry(
                run.output,
                is_first=first,
                port=port,
                total=max_steps,
                done=state.step,
                ranks=world.ranks_here,
                num_ranks=world.size,
                build=run.build_labels(world.describe_device()),
                sinks=MonitorSink.open(*monitors) if first else (),
                stopped=lambda: stop.received,
            )
        )
        alarm.on_failure(telemetry.close)
        batches = opened.enter_context(open_loader(run, engines, world, state))
        wanted = run.recipe.run.log_samples
        samples = opened.enter_context(SampleLog(run.output, world.rank, wanted=wanted))
        origin = f"from step {state.step}" if run.resume_from else "from the start"
        if state.step >= max_steps:
            origin += ", where it ends: give more --max-steps to train further"
        ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
        telemetry.say(f"{ranks} on {world.device.type}, {origin}")
        for remark in run.remarks():
            telemetry.say(remark)
        telemetry.say(f"metrics on port {telemetry.port} of each node")
        state = train(run, engines, batches, world, telemetry, state, stop, watch, samples)
        finished = state.step >= max_steps
        if not finished:
            telemetry.say(f"interrupted at step {state.step}, saved; run again to go on")
        elif first:
            weights = engines.generator.module.state_dict()
            telemetry.say(f"exported {export_generator(run.output, weights, run.card(state.step))}")
        if finished:
            barrier()  # at its end is a run on all nodes or on none: an export may fail
            telemetry.finished()
    barrier()
    return finished


def main(checked: Checked | None = None, launchers: Sequence[psutil.Process] = ()) -> None:
    """Entry point of every rank.

    Parameters
    ----------
    checked : the command line, where `refuse_early` has seen it
    launchers : of this rank, as they were when it began
    """
    gc.freeze()  # what is imported stays
    gc.enable()
    # Most mistakes are found by all ranks: one a node says so.
    with one_line_errors(quiet=os.environ.get("LOCAL_RANK", "0") != "0"), Meeting():
        run, state = plan(checked or check_options(parse_options(sys.argv[1:])))
        find_device()
    stop = StopRequest()
    stop.install()
    when_gone(stop.ask, launchers)
    with one_line_errors():
        world = init_world()
        # From here on ranks wait for each other: the mistake of one ends all.
        hosts, timeout = host_names(), run.recipe.run.node_timeout_seconds
        with Alarm(
            world.rank, world.size, world.address, hosts=hosts, node_timeout_seconds=timeout
        ) as alarm:
            watch = StragglerWatch(hosts, run.recipe.run.straggler_ratio)
            finished = run_training(run, world, state, stop, alarm, watch)
        leave_world()
    raise SystemExit(0 if finished else EXIT_INTERRUPTED)


if __name__ == "__main__":
    main(checked, launchers)
