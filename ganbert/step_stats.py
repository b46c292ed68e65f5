"""What a step of training was like: the one noun that `train` hands to the sinks."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

PHASES = ("data", "generator_forward", "discriminator", "generator", "exchange")
# Whose tokens BERT reads, in the order of `token_share_*`.
TOKEN_IMAGES = ("mri", "pet_real", "pet_fake")


@dataclass(frozen=True)
class StepStats:
    """One optimiser step. Losses, accuracies: means over all ranks and micro-batches, unweighted.

    The discriminator's losses are against its smoothed labels where `label_smoothing` is set.

    Attributes
    ----------
    step : optimiser steps done, this one included
    samples_seen : volumes seen by all ranks since the start of training
    epoch : samples_seen divided by the number of training rows
    seconds : wall time of the step; data_wait_seconds is the part spent waiting for the loader
    own_seconds : of each rank, the part that it spent without the others (see `stragglers`)
    volumes_per_second : over all ranks
    validation_l1 : of the generator on validation subjects, at steps that end with a checkpoint
    nsp_accuracy_real, nsp_accuracy_generated : share that BERT judged rightly, or of the patches
        that a CNN without BERT did, 0..1
    gradient_norm_* : 2-norm over all weights, before clipping; None where DeepSpeed keeps none
    fp16_scale_* : float16's dynamic loss scale after the step; None without float16
    token_share_* : share of an image's 512 tokens, 0..1, in a band of ids (`BandShares`), before
        `value_noise`; what `ganbert inspect --tokens` counts for a whole dataset
    phase_seconds : of this rank, by phase (`PHASES`), as its host saw them: what a GPU has been
        told, it does later, and the wait for it shows in `exchange`

    What belongs to a head that the recipe's discriminator does not have is None.
    """

    step: int
    samples_seen: int
    epoch: float
    seconds: float
    volumes_per_second: float
    data_wait_seconds: float
    learning_rate_generator: float
    loss_l1: float
    learning_rate_discriminator: float | None = None
    loss_nsp_generator: float | None = None
    loss_mlm_generator: float | None = None
    loss_patch_generator: float | None = None
    loss_nsp_discriminator: float | None = None
    loss_mlm_discriminator: float | None = None
    loss_patch_discriminator: float | None = None
    loss_r1_discriminator: float | None = None
    nsp_accuracy_real: float | None = None
    nsp_accuracy_generated: float | None = None
    own_seconds: list[float] = field(default_factory=list)
    validation_l1: float | None = None
    gradient_norm_generator: float | None = None
    gradient_norm_discriminator: float | None = None
    fp16_scale_generator: float | None = None
    fp16_scale_discriminator: float | None = None
    token_share_mri_negative: float | None = None
    token_share_mri_low: float | None = None
    token_share_mri_in_range: float | None = None
    token_share_mri_overflow: float | None = None
    token_share_pet_real_negative: float | None = None
    token_share_pet_real_low: float | None = None
    token_share_pet_real_in_range: float | None = None
    token_share_pet_real_overflow: float | None = None
    token_share_pet_fake_negative: float | None = None
    token_share_pet_fake_low: float | None = None
    token_share_pet_fake_in_range: float | None = None
    token_share_pet_fake_overflow: float | None = None
    phase_seconds: dict[str, float] = field(default_factory=dict)


def starting_with(stats: StepStats, prefix: str) -> dict[str, float]:
    """Fields of that prefix that have a value, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in vars(stats).items()
        if name.startswith(prefix) and value is not None
    }


def losses_of(stats: StepStats) -> dict[tuple[str, str], float]:
    """Values by (network, term)."""
    losses = {}
    for name, value in starting_with(stats, "loss_").items():
        term, _, network = name.partition("_")
        losses[network or "generator", term] = value  # L1 is the generator's alone
    return losses


def token_shares_of(stats: StepStats) -> dict[tuple[str, str], float]:
    """Values by (image, band)."""
    return {
        (image, band): value
        for image in TOKEN_IMAGES
        for band, value in starting_with(stats, f"token_share_{image}_").items()
    }


class PhaseClock:
    """Adds up the host's time by phase of a step; waits for no device."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def running(self, phase: str) -> Iterator[None]:
        """Count what is done inside for a phase of `PHASES`."""
        started = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the sums in seconds, and begin anew."""
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken
