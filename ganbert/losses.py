"""The terms of Eq. 1, one function each, their registry and the weighted sum.

    G* = w_nsp arg min_G max_D L_cGAN(G, D) + w_mlm L_MLM(G) + w_l1 L_L1(G)      (1)

To add a term: a function here, entered in `TERMS`, over which the tests run; its line in `judged`
and its name in `ADVERSARIAL`, if it belongs to a head of a discriminator; its weight of the same
name in `config.LossConfig`; its column in `telemetry.StepStats`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss

from ganbert.config import LossConfig
from ganbert.errors import GanbertError
from ganbert.models.discriminators import Judgement

# As in BERT's own next-sentence prediction: class 0 is the true continuation.
REAL, GENERATED = 0, 1


def l1(pet_fake: Tensor, pet_real: Tensor) -> Tensor:
    """Mean absolute error over all voxels and both frames.

    Parameters
    ----------
    pet_fake, pet_real : Tensor (N, 2, D, H, W), float32, normalised

    Source: Shin et al. 2020, Eq. 1, L_L1(G).
    """
    return l1_loss(pet_fake, pet_real)


def nsp(nsp_logits: Tensor, label: int | Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of "next sentence": is this PET real (0) or generated (1)?

    Parameters
    ----------
    nsp_logits : Tensor (N, 2), float32
    label : the class asked for, one for all rows or a Tensor (N,), int64. BERT asks for the truth;
        the generator asks for `REAL` where the PET is generated (the non-saturating form of the
        minimax game: design decision).
    smoothing : probability of the other class in the target (label smoothing; 0 in the paper)

    Source: Shin et al. 2020, Eq. 1, L_cGAN(G, D); section 4.2 "Next Sentence Prediction".
    """
    classes = _classes(label, nsp_logits)
    # torch spreads its share over both classes.
    return cross_entropy(nsp_logits, classes, label_smoothing=2 * smoothing)


def _classes(label: int | Tensor, logits: Tensor) -> Tensor:
    """The class of each row: Tensor (N,), int64."""
    if isinstance(label, Tensor):
        return label.to(logits.device).expand(len(logits))
    # Filled in on the device: a tensor of Python's numbers is copied there, and the copy waits.
    return torch.full((len(logits),), label, device=logits.device)


def mlm(mlm_logits: Tensor, mlm_labels: Tensor) -> Tensor:
    """Cross-entropy of the masked tokens.

    Parameters
    ----------
    mlm_logits : Tensor (N, M, V), float32
    mlm_labels : Tensor (N, M), int64; ids of the real images

    Source: Shin et al. 2020, Eq. 1, L_MLM(G); section 4.2 "Masked Language Model".
    """
    return cross_entropy(mlm_logits.flatten(0, 1), mlm_labels.flatten())


def patch(patch_logits: Tensor, label: int | Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of "is this patch real?", over all patches.

    Parameters
    ----------
    patch_logits : Tensor (N, 1, d, h, w), float32; positive where a patch looks real
    label, smoothing : the class asked for, as in `nsp`

    Source: Isola et al. 2017, Eq. 1 (L_cGAN), for the paper's "CNN-D" and its pix2pix baselines.
    """
    classes = _classes(label, patch_logits)
    is_real = (classes == REAL).to(patch_logits.dtype).view(-1, 1, 1, 1, 1)
    is_real = smoothing + (1 - 2 * smoothing) * is_real
    return binary_cross_entropy_with_logits(patch_logits, is_real.expand_as(patch_logits))


def r1(logits: Tensor, disturbed_logits: Tensor) -> Tensor:
    """Mean square of what a little noise on a real PET changes in the discriminator's logits.

    Parameters
    ----------
    logits, disturbed_logits : Tensor (N, ...), float32, of the real PETs without and with the noise

    Source: Lin et al. 2025 (arXiv 2501.08316), the approximate R1: for small noise its variance
    times the squared norm of the gradient (R1 of Mescheder et al. 2018) to first order, without the
    second derivative that fused attention does not have. BERT reads the extremes of blocks, which
    noise on the voxels raises on average: there it is a step with a direction, not an even one.
    """
    return (logits - disturbed_logits).square().mean()


TERMS: dict[str, Callable[..., Tensor]] = {
    "l1": l1,
    "nsp": nsp,
    "mlm": mlm,
    "patch": patch,
    "r1": r1,
}
# Terms that tell real from generated, which `lazy_above_accuracy` holds back; and all that come
# from the adversary, which `adversary_warmup_steps` lets in slowly.
REAL_OR_GENERATED = ("nsp", "patch")
ADVERSARIAL = (*REAL_OR_GENERATED, "mlm")


def judged(judgement: Judgement, label: int | Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Return the terms of Eq. 1 for which a judgement has logits, by name.

    Parameters
    ----------
    label, smoothing : the class asked for, as in `nsp`
    """
    terms = {}
    if judgement.nsp_logits is not None:
        terms["nsp"] = nsp(judgement.nsp_logits, label, smoothing)
    if judgement.mlm_logits is not None and judgement.mlm_labels is not None:
        terms["mlm"] = mlm(judgement.mlm_logits, judgement.mlm_labels)
    if judgement.patch_logits is not None:
        terms["patch"] = patch(judgement.patch_logits, label, smoothing)
    return terms


def steadiness(judgement: Judgement, disturbed: Judgement) -> Tensor:
    """`r1` of every head that tells real from generated, added up: Tensor ()."""
    terms = []
    if judgement.nsp_logits is not None and disturbed.nsp_logits is not None:
        # Two logits of two classes: only their difference says anything.
        both = torch.stack((judgement.nsp_logits, disturbed.nsp_logits))
        terms.append(r1(*(both[..., REAL] - both[..., GENERATED])))
    if judgement.patch_logits is not None and disturbed.patch_logits is not None:
        terms.append(r1(judgement.patch_logits, disturbed.patch_logits))
    return torch.stack(terms).sum()


def accuracies(judgement: Judgement, labels: Tensor) -> dict[str, Tensor]:
    """Share that each head judges rightly, by the name of its term: Tensor (), 0..1.

    Parameters
    ----------
    labels : Tensor (N,), int64, `REAL` or `GENERATED`
    """
    rights = {}
    if judgement.nsp_logits is not None:
        rights["nsp"] = (judgement.nsp_logits.argmax(1) == labels).float().mean()
    if judgement.patch_logits is not None:
        is_real = (labels == REAL).view(-1, 1, 1, 1, 1)
        rights["patch"] = ((judgement.patch_logits > 0) == is_real).float().mean()
    return rights


def discriminator_weights(
    config: LossConfig, rights: Mapping[str, Tensor]
) -> dict[str, Tensor | float]:
    """Weights of the discriminator's terms, given how well its heads judge.

    Parameters
    ----------
    rights : of `accuracies`; the same on all ranks, or they would be taught unequally

    Returns
    -------
    The configured weights; that of a head is 0 while its accuracy is above `lazy_above_accuracy`.
    Nothing is remembered from step to step, so a resumed run decides alike.

    Source: design decision (docs/architecture.md): updates that wait for the generator.
    """
    weights: dict[str, Tensor | float] = {name: getattr(config, name) for name in TERMS}
    if config.lazy_above_accuracy is not None:
        for name, accuracy in rights.items():
            weights[name] = (accuracy <= config.lazy_above_accuracy).float() * weights[name]
    return weights


def generator_weights(
    config: LossConfig, step: int, rights: Mapping[str, Tensor]
) -> dict[str, Tensor | float]:
    """Weights of the generator's terms after `step` optimiser steps.

    Parameters
    ----------
    rights : share of the generated PETs that each head sees through, of `accuracies`; the same on
        all ranks. Of a micro-batch, so with few samples it is coarse: two give 0, 1/2 or 1

    Returns
    -------
    The configured weights. Those of `ADVERSARIAL` terms rise linearly over
    `adversary_warmup_steps` n, from 1 / (n + 1) at the first step; with `reweight`, that of a head
    falls linearly from an accuracy of one half on and is 0 at 1.

    Source: design decision; GANDALF (Shin et al. 2020, arXiv 2008.04396) adapts its weights to the
    discriminator too, in another way.
    """
    share = min(1.0, (step + 1) / (config.adversary_warmup_steps + 1))
    weights: dict[str, Tensor | float] = {name: getattr(config, name) for name in TERMS}
    weights |= {name: share * weights[name] for name in ADVERSARIAL}
    if config.reweight:
        for name, accuracy in rights.items():
            weights[name] = weights[name] * (2 - 2 * accuracy).clamp(max=1.0)
    return weights


def all_finite(terms: Mapping[str, Tensor]) -> Tensor:
    """Whether all terms are numbers: Tensor (), bool, without waiting for the device."""
    return torch.stack([term.detach() for term in terms.values()]).isfinite().all()


def not_finite(terms: Mapping[str, Tensor], subjects: Sequence[str]) -> GanbertError:
    """Error that names the terms that are no numbers, and the subjects of the micro-batch."""
    wrong = {name: term.item() for name, term in terms.items() if not term.isfinite()}
    return GanbertError(
        ", ".join(f"sub-{label}" for label in subjects) or "micro-batch",
        expected=f"a finite loss ({', '.join(wrong)})",
        found=", ".join(map(str, wrong.values())),
        remedy="look at these images; if they are fine, lower the learning rate or the loss "
        "weights and resume from a checkpoint",
    )


def weighted_sum(
    terms: Mapping[str, Tensor], weights: Mapping[str, float] | Mapping[str, Tensor | float]
) -> Tensor:
    """Sum of `weights[name] * terms[name]`.

    Raises
    ------
    KeyError
        If a term has no weight.
    """
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


class _SplitGradient(torch.autograd.Function):
    """Identity to two readers; joins their gradients, the second held to a share of the first."""

    @staticmethod
    def forward(ctx, tensor: Tensor, max_ratio: float) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        ctx.max_ratio = max_ratio
        return tensor.clone(), tensor.clone()

    @staticmethod
    def backward(ctx, first: Tensor, second: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        dims = tuple(range(1, first.ndim))
        allowed = ctx.max_ratio * torch.linalg.vector_norm(first, dim=dims, keepdim=True)
        actual = torch.linalg.vector_norm(second, dim=dims, keepdim=True)
        share = torch.where(actual > allowed, allowed / actual, torch.ones_like(actual))
        return first + share * second, None


def hold_adversary(pet_fake: Tensor, max_ratio: float | None) -> tuple[Tensor, Tensor]:
    """Give the generator's output to L1 and to the adversary, and bound the adversary's pull.

    Parameters
    ----------
    pet_fake : Tensor (N, 2, D, H, W)
    max_ratio : for each sample, the norm of the adversary's gradient is scaled down to this share
        of L1's where it is larger. None leaves both as they come.

    Returns
    -------
    The tensor twice: for the L1 term, for the adversarial terms.

    Source: design decision after the adaptive weight of VQGAN (Esser et al. 2021, Eq. 7), as a
    bound and at the generator's output, which needs no second backward pass and no loss scale.
    """
    if max_ratio is None:
        return pet_fake, pet_fake
    return _SplitGradient.apply(pet_fake, max_ratio)
