"""The typed run configuration (`run.yaml`); `recipe.py` reads it.

Everything that DeepSpeed owns (optimiser, schedule, precision, micro-batch, accumulation, ZeRO,
activation checkpointing) stands in the recipe's `generator.json` and `discriminator.json` and
nowhere else; everything else stands here.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, model_validator

from ganbert.errors import ConfigError
from ganbert.strict import Strict


class Grid(Strict):
    """A voxel grid; (D, H, W) run posterior-anterior, inferior-superior, left-right.

    Attributes
    ----------
    shape : voxels along (D, H, W)
    spacing_mm : edge of a voxel along (D, H, W), mm
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view along (D, H, W), mm."""
        d, h, w = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return (d, h, w)


# Shin et al. 2020, Fig. 1: T1 of 256^3, PET of N x 93 x 76 x 76. Spacings: design decision.
PAPER_MRI_GRID = Grid(shape=(256, 256, 256), spacing_mm=(1.0, 1.0, 1.0))
PAPER_PET_GRID = Grid(shape=(93, 76, 76), spacing_mm=(2.0, 2.0, 2.0))
# Half the paper's resolution, the same field of view: every layer, at an eighth of the cost.
DEMO_MRI_GRID = Grid(shape=(128, 128, 128), spacing_mm=(2.0, 2.0, 2.0))
DEMO_PET_GRID = Grid(shape=(47, 38, 38), spacing_mm=(4.0, 4.0, 4.0))
# A quarter of it: for experiments that train many networks on two cores.
SMALL_MRI_GRID = Grid(shape=(64, 64, 64), spacing_mm=(4.0, 4.0, 4.0))
SMALL_PET_GRID = Grid(shape=(24, 19, 19), spacing_mm=(8.0, 8.0, 8.0))
# For tests only.
TINY_MRI_GRID = Grid(shape=(32, 32, 32), spacing_mm=(8.0, 8.0, 8.0))
TINY_PET_GRID = Grid(shape=(12, 10, 10), spacing_mm=(16.0, 16.0, 16.0))
GRIDS: dict[str, tuple[Grid, Grid]] = {
    "paper": (PAPER_MRI_GRID, PAPER_PET_GRID),
    "demo": (DEMO_MRI_GRID, DEMO_PET_GRID),
    "small": (SMALL_MRI_GRID, SMALL_PET_GRID),
    "tiny": (TINY_MRI_GRID, TINY_PET_GRID),
}
NUM_FRAMES = 2


def stem_stride(mri_grid: Grid, pet_grid: Grid) -> int:
    """How many MRI voxels make one PET voxel, at least 1."""
    ratios = zip(pet_grid.spacing_mm, mri_grid.spacing_mm, strict=True)
    return max(1, round(min(pet / mri for pet, mri in ratios)))


class GeneratorConfig(Strict):
    """The U-Net-like generator (paper, section 4.1)."""

    channels: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 128, 256), min_length=1)
    activation: Literal["tanhshrink", "tanh", "linear"] = "tanhshrink"

    def check_fits(self, mri_grid: Grid, pet_grid: Grid) -> None:
        """Refuse grids that the levels cannot halve.

        Raises
        ------
        ConfigError
            If the MRI's shape is no multiple of what they divide it by.
        """
        divisor = stem_stride(mri_grid, pet_grid) * 2 ** (len(self.channels) - 1)
        if any(n % divisor for n in mri_grid.shape):
            raise ConfigError(
                "mri_grid",
                expected=f"a shape of multiples of {divisor} (stem stride x 2 for each further "
                "level)",
                found=str(mri_grid.shape),
                remedy="prepare another grid, or give the generator fewer channels entries",
            )


_ADVERSARIES = ("bert", "patchgan", "bert_patchgan")
_WITH_BERT = ("bert", "bert_patchgan")
_WITH_CNN = ("patchgan", "bert_patchgan")


class DiscriminatorConfig(Strict):
    """The adversary (paper, section 4.2); the sizes default to BERT-base.

    Attributes
    ----------
    kind : `bert`; `patchgan`, the CNN of pix2pix; `bert_patchgan`, the paper's "with CNN-D";
        `none`, no adversary: L1 alone
    patch_channels : widths of the CNN's layers; all but the last halve the image
    spectral_norm : hold the largest singular value of the CNN's convolutions to 1
    """

    kind: Literal["bert", "patchgan", "bert_patchgan", "none"] = "bert"
    patch_channels: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), min_length=1)
    spectral_norm: bool = False
    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    # 0 and not BERT's 0.1: no fused kernel of the CPU drops weights (docs/results.md).
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    # Also while the generator learns from BERT?
    dropout_for_generator: bool = True
    # At least one token of 512.
    masked_fraction_mri: float = Field(default=0.05, ge=1 / 512, le=1.0)
    masked_fraction_pet: float = Field(default=0.25, ge=1 / 512, le=1.0)
    # How a gradient crosses the rounding to ids; see `models.rounding`.
    gradient: Literal["none", "straight_through", "interpolated", "chord"] = "straight_through"
    embedding_init: Literal["normal", "ordinal"] = "ordinal"
    # Tensor cores like multiples of 8 or 64; 1027 is 13 x 79. 1: no padding.
    sequence_multiple: int = Field(default=1, ge=1, le=1024)
    # Sd of the noise on the summarised PET, real or generated, before it becomes tokens, in
    # normalised units (1000 ids each), while training.
    value_noise: float = Field(default=0.0, ge=0.0)

    @property
    def has_bert(self) -> bool:
        """Whether BERT is among the adversaries."""
        return self.kind in _WITH_BERT

    @property
    def has_cnn(self) -> bool:
        """Whether the CNN of pix2pix is among them."""
        return self.kind in _WITH_CNN

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size as a multiple of num_heads ({self.num_heads}): each head takes an "
                "equal part of it"
            )
        return self

    @model_validator(mode="after")
    def _dropout_to_leave_out(self) -> Self:
        if not (self.dropout_for_generator or self.dropout or self.attention_dropout):
            raise ValueError(
                "dropout or attention_dropout above 0, or no dropout_for_generator: there is no "
                "dropout to leave out"
            )
        return self


class LossConfig(Strict):
    """Weights of Eq. 1 (paper: 20, 1, 20) and what keeps the game stable."""

    nsp: float = Field(default=20.0, ge=0.0)
    mlm: float = Field(default=1.0, ge=0.0)
    l1: float = Field(default=20.0, ge=0.0)
    # Of the CNN discriminator, where there is one. pix2pix: 1 (with 100 for L1).
    patch: float = Field(default=1.0, ge=0.0)
    # Bound on the adversarial gradient at the generator's output, in norms of L1's. None: none.
    max_adversarial_ratio: float | None = Field(default=None, gt=0.0)
    # Optimiser steps over which the generator's adversarial weights rise.
    adversary_warmup_steps: int = Field(default=0, ge=0)
    # Approximate R1 penalty: noise of sd `r1_sigma` (normalised units) on each voxel should
    # not change what the discriminator says of a real PET. 0: off.
    r1: float = Field(default=0.0, ge=0.0)
    r1_sigma: float = Field(default=0.1, gt=0.0)
    # Full weight while half of the generated PETs of all ranks pass for real, none when none does.
    reweight: bool = False
    # What the discriminator is told of a real or generated PET is this far from certain.
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    # While a head judges a larger share of all ranks' PETs rightly, its gradient is zero.
    lazy_above_accuracy: float | None = Field(default=None, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _a_share_of_something(self) -> Self:
        if self.max_adversarial_ratio is not None and self.l1 == 0:
            raise ValueError(
                "l1 above 0, or max_adversarial_ratio null: it is a share of L1's gradient, and a "
                "share of nothing would teach the generator nothing"
            )
        return self


# Which kinds of discriminator a weight, or a setting that tames one, can act on.
_REINS = {
    "nsp": _WITH_BERT,
    "mlm": _WITH_BERT,
    "patch": _WITH_CNN,
    "max_adversarial_ratio": _ADVERSARIES,
    "adversary_warmup_steps": _ADVERSARIES,
    "r1": _ADVERSARIES,
    "reweight": _ADVERSARIES,
    "label_smoothing": _ADVERSARIES,
    "lazy_above_accuracy": _ADVERSARIES,
    "value_noise": _WITH_BERT,
    "dropout_for_generator": _WITH_BERT,
    "spectral_norm": _WITH_CNN,
}
# Those of them with a default that weighs something.
_WEIGHTS = ("nsp", "mlm", "patch")
# Context of validation: what is read was written with all defaults filled in (run.json), and does
# not tell what the user gave.
DEFAULTS_WRITTEN = "defaults_written"
# Those that act on the heads that tell real from generated.
_OF_REAL_OR_GENERATED = ("reweight", "label_smoothing", "lazy_above_accuracy")


class AugmentationConfig(Strict):
    """Random changes of training pairs, the same for MRI and PET; all off by default.

    Attributes
    ----------
    flip : probability of swapping left and right
    rotation_deg, translation_mm : largest rotation about, and shift along, each axis
    intensity : largest change of the normalised MRI, as a factor's distance from 1 and as a shift
    """

    flip: float = Field(default=0.0, ge=0.0, le=1.0)
    rotation_deg: float = Field(default=0.0, ge=0.0, le=180.0)
    translation_mm: float = Field(default=0.0, ge=0.0, le=100.0)
    intensity: float = Field(default=0.0, ge=0.0, lt=1.0)


class RunConfig(Strict):
    """Everything that `run.yaml` may say."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    max_steps: int = Field(gt=0, description="optimiser steps")
    # None: as paper, section 3.1. "auto": the value that `prepare` suggests for the cohort.
    intensity_ratio: Annotated[float, Field(gt=0.0)] | Literal["auto"] = 0.1
    checkpoint_every: int = Field(default=500, gt=0, description="optimiser steps")
    keep_checkpoints: int = Field(default=3, gt=0, description="the newest; the best stays besides")
    # Of the validation split, at each checkpoint; they tell which checkpoint is the best. 0: none.
    validation_subjects: int = Field(default=8, ge=0)
    metrics_port: int = Field(default=9808, ge=0, le=65535, description="0: any free port")
    # Whether RUN/samples says which images each rank trained on.
    log_samples: bool = False
    # A node that does not answer for so long is lost, and the other ranks end. Below 7 s the kernel
    # (whole seconds, six questions) could not keep it.
    node_timeout_seconds: int = Field(default=180, ge=7)
    # Of a rank's own time in a step to the others' median, from which on it is named.
    straggler_ratio: float = Field(default=1.5, gt=1.0)
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    losses: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _networks_learn_something(self) -> Self:
        losses, adversary = self.losses, self.discriminator
        if adversary.has_bert and not (losses.nsp or losses.mlm):
            raise ValueError(
                "losses.nsp or losses.mlm above 0, or discriminator.kind "
                f"{'patchgan' if adversary.has_cnn else 'none'}: BERT would learn and teach nothing"
            )
        if adversary.has_cnn and not losses.patch:
            raise ValueError(
                "losses.patch above 0, or discriminator.kind "
                f"{'bert' if adversary.has_bert else 'none'}: the CNN would learn and teach nothing"
            )
        deaf = adversary.kind == "none" or (
            adversary.kind == "bert" and adversary.gradient == "none"
        )
        if deaf and not losses.l1:
            raise ValueError("losses.l1 above 0: the generator has nothing else to learn from")
        return self

    @model_validator(mode="after")
    def _reins_hold_something(self, info: ValidationInfo) -> Self:
        kind = self.discriminator.kind
        filled_in = (info.context or {}).get(DEFAULTS_WRITTEN, False)
        for name, kinds in _REINS.items():
            section: Strict = self.losses if name in LossConfig.model_fields else self.discriminator
            idle = [type(section).model_fields[name].default]
            if name in _WEIGHTS:
                given = name in section.model_fields_set and not filled_in
                # No weight where there is nothing to weigh: a recipe may say so.
                idle = [0] if given else [0, *idle]
            if kind not in kinds and getattr(section, name) not in idle:
                raise ValueError(
                    f"no {name}, or discriminator.kind {' or '.join(kinds)}: with {kind} {name} "
                    "has nothing to act on"
                )
        if kind == "bert" and not self.losses.nsp:
            for name in _OF_REAL_OR_GENERATED:
                if getattr(self.losses, name) != LossConfig.model_fields[name].default:
                    raise ValueError(
                        f"losses.nsp above 0, or no {name}: it acts on what tells real from "
                        "generated"
                    )
        return self

    @model_validator(mode="after")
    def _r1_is_steady(self) -> Self:
        noises = ("dropout", "attention_dropout", "value_noise")
        noisy = [name for name in noises if getattr(self.discriminator, name) > 0]
        if self.losses.r1 > 0 and self.discriminator.has_bert and noisy:
            raise ValueError(
                f"{' and '.join(noisy)} of 0, or no r1: it compares two passes through BERT that "
                "differ in r1_sigma alone"
            )
        return self


class SeenImages(Strict):
    """What the MRIs of the training were like, for whoever compares a new one with them.

    Attributes
    ----------
    num_images : that were measured
    mri : name of a measure (`seen.measure_mri`) -> (smallest, largest)
    """

    num_images: PositiveInt
    mri: dict[str, tuple[float, float]]


class ModelCard(Strict):
    """What an exported generator needs besides its weights (`generator.json`).

    Attributes
    ----------
    intensity_ratio : of paper section 3.1; restores the original unit from the MRI's statistics
    unit : unit of the synthesised PET
    data_range : (low, high) in `unit`, the declared range of PSNR and SSIM
    frame_start_s, frame_duration_s : of the synthesised frames, s after injection
    num_steps, num_training_rows, index_sha256 : the training that made the weights
    seen : what its MRIs were like; None: not measured
    """

    format_version: int = 1
    ganbert_version: str
    generator: GeneratorConfig
    mri_grid: Grid
    pet_grid: Grid
    intensity_ratio: float
    tracer: str
    unit: str
    data_range: tuple[float, float]
    frame_start_s: tuple[float, ...]
    frame_duration_s: tuple[float, ...]
    num_steps: int
    num_training_rows: int
    index_sha256: str
    weights_sha256: str
    seen: SeenImages | None = None
