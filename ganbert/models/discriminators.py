"""The adversaries, one class each, and their registry.

A discriminator takes images and returns a `Judgement`; how it looks at them is its own business.
To add one, subclass `Discriminator`, enter it in `DISCRIMINATORS` and its name in
`config.DiscriminatorConfig.kind` (configuration stands below the models and cannot see them).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ganbert.config import DiscriminatorConfig, Grid
from ganbert.models.bert import IntensityBert, sample_masked_positions
from ganbert.models.patchgan import PatchGan
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import values_to_ids


class Judgement(NamedTuple):
    """What a discriminator says about a batch; None where it has no such head.

    Attributes
    ----------
    nsp_logits : Tensor (N, 2), float32; class 0 real, class 1 generated
    mlm_logits : Tensor (N, M, V), float32
    mlm_labels : Tensor (N, M), int64; ids of the MRI and of the *real* PET
    patch_logits : Tensor (N, 1, d, h, w), float32; positive where a patch looks real
    mri_values, pet_values : Tensor (N, 512), float32, detached; what the images are summarised to
        for BERT, before `value_noise`
    """

    nsp_logits: Tensor | None = None
    mlm_logits: Tensor | None = None
    mlm_labels: Tensor | None = None
    patch_logits: Tensor | None = None
    mri_values: Tensor | None = None
    pet_values: Tensor | None = None

    def rows(self, which: slice | Tensor) -> "Judgement":
        """Judgement of some of the PETs."""
        return Judgement(*(None if head is None else head[which] for head in self))

    def share_real(self) -> Tensor:
        """Share of each PET that is taken for real: Tensor (N,), float32, 0..1.

        All or nothing for BERT; for a PatchGAN alone the share of its patches.
        """
        if self.nsp_logits is not None:
            return (self.nsp_logits.argmax(1) == 0).float()
        if self.patch_logits is None:
            raise ValueError("judgement: expected NSP or patch logits, got neither")
        return (self.patch_logits > 0).float().flatten(1).mean(1)


class Discriminator(nn.Module):
    """What `train` asks of every discriminator.

    Forward
    -------
    mri : Tensor (N, 1, D, H, W), normalised
    pet : Tensor (K N, 2, D, H, W), normalised; the PETs to judge, real or generated: K of them
        for each MRI, in K blocks of N
    pet_real : Tensor (N, 2, D, H, W), normalised; what the masked tokens should have been
    masked_positions : Tensor (K N, M), int64, of `sample_masks`

    Outputs
    -------
    Judgement
    """

    def sample_masks(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Choose what to mask for `num_rows` sequences: Tensor (N, M), int64; M = 0 for none."""
        return torch.zeros(num_rows, 0, dtype=torch.int64, device=generator.device)


class BertDiscriminator(Discriminator):
    """Both images summarised to tokens and read by BERT.

    Source: Shin et al. 2020, section 4.2, Fig. 3. For a generated PET the labels of the masked
    tokens are those of the real one ("BERT is tasked to predict the real PET numbers").
    """

    def __init__(self, config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__()
        self.config = config
        self.bert = IntensityBert(config)

    def sample_masks(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Choose what to mask for `num_rows` sequences: Tensor (N, M), int64."""
        fractions = (self.config.masked_fraction_mri, self.config.masked_fraction_pet)
        return sample_masked_positions(num_rows, *fractions, generator)

    def forward(
        self, mri: Tensor, pet: Tensor, pet_real: Tensor, masked_positions: Tensor
    ) -> Judgement:
        """Judge `pet`, given `mri`."""
        # Set before each pass and left so: the checkpointed layers run once more going back.
        passes_gradient_on = pet.requires_grad and not self.config.dropout_for_generator
        self.bert.train(self.training and not passes_gradient_on)
        blocks = len(pet) // len(mri)
        mri_values = summarise_mri(mri).repeat(blocks, 1)
        pet_values = summarise_pet(pet)
        of_images = mri_values.detach(), pet_values.detach()
        if self.training and self.config.value_noise > 0:
            # A generated PET is smooth and a real one noisy: single tokens would give it away.
            pet_values = pet_values + self.config.value_noise * torch.randn_like(pet_values)
        output = self.bert(mri_values, pet_values, masked_positions)
        with torch.no_grad():
            real_values = summarise_pet(pet_real).repeat(blocks, 1)
            labels = self._labels(mri_values, real_values, masked_positions)
        return Judgement(output.nsp_logits, output.mlm_logits, labels, None, *of_images)

    @staticmethod
    def _labels(mri_values: Tensor, pet_values: Tensor, masked_positions: Tensor) -> Tensor:
        # Specials are never masked, so what stands at their positions does not matter.
        special = torch.zeros_like(mri_values[:, :1])
        values = torch.cat((special, mri_values, special, pet_values, special), dim=1)
        return values_to_ids(values).gather(1, masked_positions)


class PatchGanDiscriminator(Discriminator):
    """A CNN alone: the discriminator of the pix2pix baselines (paper, Table 1)."""

    def __init__(self, config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__()
        self.patchgan = PatchGan(config, mri_grid, pet_grid)

    def forward(
        self, mri: Tensor, pet: Tensor, pet_real: Tensor, masked_positions: Tensor
    ) -> Judgement:
        """Judge `pet`, given `mri`; nothing is masked."""
        return Judgement(patch_logits=self.patchgan(mri, pet))


class BertAndPatchGan(BertDiscriminator):
    """BERT with the paper's additional CNN discriminator (Table 1, "with CNN-D").

    One module and one optimiser for both: their losses add up and share no parameter.
    """

    def __init__(self, config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__(config, mri_grid, pet_grid)
        self.patchgan = PatchGan(config, mri_grid, pet_grid)

    def forward(
        self, mri: Tensor, pet: Tensor, pet_real: Tensor, masked_positions: Tensor
    ) -> Judgement:
        """Judge `pet` with both, given `mri`."""
        judgement = super().forward(mri, pet, pet_real, masked_positions)
        return judgement._replace(patch_logits=self.patchgan(mri, pet))


DISCRIMINATORS: dict[str, Callable[[DiscriminatorConfig, Grid, Grid], Discriminator]] = {
    "bert": BertDiscriminator,
    "patchgan": PatchGanDiscriminator,
    "bert_patchgan": BertAndPatchGan,
}


def build_discriminator(
    config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid
) -> Discriminator | None:
    """Build the discriminator that the configuration names; None for `none` (L1 alone)."""
    if config.kind == "none":
        return None
    return DISCRIMINATORS[config.kind](config, mri_grid, pet_grid)
