"""What the two networks learn from one micro-batch: Eq. 1, first its max, then its min.

`train` calls these in turn, with one forward pass of the generator for both.
"""

import torch
from torch import Tensor

from ganbert import losses
from ganbert.config import LossConfig
from ganbert.data.loader import Batch
from ganbert.engines import Engines, frozen
from ganbert.loss_scale import backward_and_step
from ganbert.models.discriminators import Judgement
from ganbert.models.vocabulary import BandShares, band_means
from ganbert.ranks import mean_over_ranks
from ganbert.step_stats import TOKEN_IMAGES


def discriminator_step(
    engines: Engines, batch: Batch, pet_fake: Tensor, masks: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """The discriminator learns to tell real from generated, BERT to fill in masked values (max_D).

    Parameters
    ----------
    pet_fake : Tensor (N, 2, D, H, W), normalised; detached, so that nothing reaches the generator
    masks : Tensor (2 N, M), int64, masked positions of the real, then of the generated PETs

    Returns
    -------
    Losses, accuracies and shares of tokens, scalars, by their names in `StepStats`.

    Raises
    ------
    GanbertError
        Before anything is learnt, if a loss is no number on this rank; no other steps without it.
        If the gradients overflow at the lowest loss scale.
    """
    if engines.discriminator is None:
        return {}
    # Real and generated in one batch, half each (paper, section 4.2): one pass instead of two.
    num = len(batch.mri)
    pet = torch.cat((batch.pet_real, pet_fake.detach()))
    if config.r1 > 0:
        disturbed = batch.pet_real + config.r1_sigma * torch.randn_like(batch.pet_real)
        pet, masks = torch.cat((pet, disturbed)), torch.cat((masks, masks[:num]))
    all_rows = engines.discriminator(batch.mri, pet, batch.pet_real, masks)
    judgement = all_rows.rows(slice(2 * num))
    # Not from a list: a tensor of Python's numbers is copied to a GPU, and the copy waits for it.
    labels = torch.full((2 * num,), losses.REAL, device=pet.device)
    labels[num:] = losses.GENERATED
    terms = losses.judged(judgement, labels, config.label_smoothing)
    if config.r1 > 0:
        of_real, of_disturbed = all_rows.rows(slice(num)), all_rows.rows(slice(2 * num, None))
        terms["r1"] = losses.steadiness(of_real, of_disturbed)
    on_real, on_fake = (half.mean() for half in judgement.share_real().chunk(2))
    # With L1, which sees what an id cannot show: an image that is no number.
    seen = terms | {"l1": losses.l1(pet_fake.detach(), batch.pet_real)}
    if not losses.all_finite(seen):
        raise losses.not_finite(seen, batch.subjects)
    rights = losses.accuracies(judgement, labels)
    if config.lazy_above_accuracy is not None:
        rights = _over_ranks(rights)
    weights = losses.discriminator_weights(config, rights)
    loss = losses.weighted_sum(terms, weights)
    backward_and_step(engines.discriminator, loss, "discriminator")
    named = {f"loss_{name}_discriminator": term.detach() for name, term in terms.items()}
    named |= {"nsp_accuracy_real": on_real, "nsp_accuracy_generated": 1 - on_fake}
    return named | _token_shares(judgement, num)


def generator_step(
    engines: Engines,
    batch: Batch,
    pet_fake: Tensor,
    masks: Tensor,
    config: LossConfig,
    step: int,
) -> dict[str, Tensor]:
    """The generator learns to be judged real, to help BERT and to be right (Eq. 1, min_G).

    Parameters
    ----------
    pet_fake : Tensor (N, 2, D, H, W), normalised, from the generator's engine
    masks : Tensor (N, M), int64, masked positions
    step : optimiser steps done, which the adversary's warm-up counts

    Returns
    -------
    Losses, scalars, by their names in `StepStats`.

    Raises
    ------
    GanbertError
        Before anything is learnt, if a loss is no number on this rank; no other steps without it.
        If the gradients overflow at the lowest loss scale.
    """
    for_l1, for_adversary = losses.hold_adversary(pet_fake, config.max_adversarial_ratio)
    terms = {"l1": losses.l1(for_l1, batch.pet_real)}
    rights: dict[str, Tensor] = {}
    with frozen(engines.discriminator) as discriminator:
        if discriminator is not None:
            judgement = discriminator(batch.mri, for_adversary, batch.pet_real, masks)
            terms |= losses.judged(judgement, losses.REAL)
            if config.reweight:
                truth = torch.full((len(pet_fake),), losses.GENERATED, device=pet_fake.device)
                rights = _over_ranks(losses.accuracies(judgement, truth))
        if not losses.all_finite(terms):
            raise losses.not_finite(terms, batch.subjects)
        weights = losses.generator_weights(config, step, rights)
        loss = losses.weighted_sum(terms, weights)
        backward_and_step(engines.generator, loss, "generator")
    adversarial = {
        f"loss_{name}_generator": term.detach() for name, term in terms.items() if name != "l1"
    }
    return {"loss_l1": terms["l1"].detach()} | adversarial


def _token_shares(judgement: Judgement, num: int) -> dict[str, Tensor]:
    """Shares of tokens by band, scalars by their names in `StepStats`; of MRI, real, generated."""
    if judgement.mri_values is None or judgement.pet_values is None:
        return {}
    values = (judgement.mri_values[:num], *judgement.pet_values.split(num))
    shares = band_means(torch.stack(values).flatten(1))
    return {
        f"token_share_{image}_{band}": share
        for image, of_image in zip(TOKEN_IMAGES, shares, strict=True)
        for band, share in zip(BandShares._fields, of_image, strict=True)
    }


def _over_ranks(rights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mean_over_ranks(right) for name, right in rights.items()}
