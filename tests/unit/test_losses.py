"""Terms of Eq. 1 by hand-computed values, what holds for every term, and the adversary's bound."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ganbert.config import LossConfig
from ganbert.losses import (
    GENERATED,
    REAL,
    TERMS,
    accuracies,
    all_finite,
    discriminator_weights,
    generator_weights,
    hold_adversary,
    judged,
    l1,
    mlm,
    not_finite,
    nsp,
    patch,
    r1,
    steadiness,
    weighted_sum,
)
from ganbert.models.discriminators import Judgement


def test_l1_is_the_mean_over_voxels_and_frames() -> None:
    pet_real = torch.zeros(1, 2, 1, 1, 2)
    pet_fake = torch.tensor([1.0, -2.0, 3.0, 0.0]).reshape(1, 2, 1, 1, 2)
    assert l1(pet_fake, pet_real).item() == pytest.approx(1.5)  # (1 + 2 + 3 + 0) / 4


def test_nsp_is_the_cross_entropy_of_the_class_asked_for() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # odds 1 : 3 for generated
    assert nsp(logits, REAL).item() == pytest.approx(math.log(4.0))
    assert nsp(logits, GENERATED).item() == pytest.approx(math.log(4.0 / 3.0))


def test_nsp_of_an_undecided_judge_is_one_bit() -> None:
    assert nsp(torch.zeros(3, 2), REAL).item() == pytest.approx(math.log(2.0))


def test_real_is_class_0() -> None:
    # As BERT's next-sentence prediction: 0 is the true continuation.
    assert (REAL, GENERATED) == (0, 1)


@given(st.floats(-20, 20), st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_swapping_real_and_generated_flips_the_evidence(first: float, second: float) -> None:
    def evidence(logits: Tensor) -> float:
        """How much likelier real is than generated, in nats."""
        return (nsp(logits, GENERATED) - nsp(logits, REAL)).item()

    logits = torch.tensor([[first, second]])
    assert evidence(logits) == pytest.approx(first - second, abs=1e-4)
    assert evidence(logits.flip(1)) == pytest.approx(-evidence(logits), abs=1e-4)


def test_mlm_is_the_mean_over_masked_tokens_of_all_rows() -> None:
    # Probabilities of the right id: 1/4, 1/4, 1/2 and 1/2.
    logits = torch.log(torch.tensor([[[0.25, 0.75], [0.75, 0.25]], [[0.5, 0.5], [0.5, 0.5]]]))
    labels = torch.tensor([[0, 1], [0, 1]])
    assert mlm(logits, labels).item() == pytest.approx((2 * math.log(4) + 2 * math.log(2)) / 4)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Logits that leave no doubt."""
    return 20.0 * torch.nn.functional.one_hot(labels, num_classes).float()


def test_patch_is_the_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 1, 1, 1, 2)  # odds for real 1:1 and 3:1
    assert patch(logits, REAL).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert patch(logits, GENERATED).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_labels_of_rows_are_the_mean_of_both_halves() -> None:
    labels = torch.tensor([REAL, GENERATED])
    for term, logits in ((nsp, torch.randn(2, 2)), (patch, torch.randn(2, 1, 2, 2, 2))):
        halves = (term(logits[:1], REAL) + term(logits[1:], GENERATED)) / 2
        torch.testing.assert_close(term(logits, labels), halves)


def test_only_heads_that_are_there_are_judged() -> None:
    patches, classes = torch.randn(1, 1, 2, 2, 2), torch.randn(1, 2)
    assert judged(Judgement(), REAL) == {}
    assert judged(Judgement(patch_logits=patches), REAL).keys() == {"patch"}
    both = judged(Judgement(nsp_logits=classes, patch_logits=patches), REAL)
    assert both == {"nsp": nsp(classes, REAL), "patch": patch(patches, REAL)}


PET = torch.linspace(-1, 9, 16).reshape(1, 2, 2, 2, 2)
IDS = torch.tensor([[0, 4, 2]])
CLASSES = torch.tensor([REAL, REAL])
# Arguments of each term for a perfect and for a wrong prediction. A new term needs a row here.
EXAMPLES: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "l1": ((PET, PET), (PET + 1, PET)),
    "nsp": ((one_hot(CLASSES, 2), REAL), (one_hot(1 - CLASSES, 2), REAL)),
    "patch": ((20 + PET[:, :1], REAL), (-20 - PET[:, :1], REAL)),
    "r1": ((PET, PET), (PET + 1, PET)),
    "mlm": ((one_hot(IDS, 5), IDS), (one_hot(4 - IDS + 1, 6), IDS)),
}


def test_every_term_has_an_example_and_a_weight() -> None:
    assert TERMS.keys() == EXAMPLES.keys()
    assert TERMS.keys() <= LossConfig.model_fields.keys()


@pytest.mark.parametrize("name", TERMS)
def test_right_costs_less_than_wrong(name: str) -> None:
    term: Callable[..., Tensor] = TERMS[name]
    right, wrong = (term(*arguments) for arguments in EXAMPLES[name])
    for cost in (right, wrong):
        assert cost.shape == ()
        assert cost.isfinite()
        assert cost >= 0
    assert right < 1e-6 < wrong


@pytest.mark.parametrize("name", TERMS)
def test_prediction_gets_a_finite_gradient(name: str) -> None:
    _, (prediction, *rest) = EXAMPLES[name]
    assert isinstance(prediction, Tensor)
    leaf = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(TERMS[name](leaf, *rest), leaf)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_papers_weights() -> None:
    terms = {"nsp": torch.tensor(0.5), "mlm": torch.tensor(7.0), "l1": torch.tensor(0.1)}
    total = weighted_sum(terms, LossConfig().model_dump())
    assert total.item() == pytest.approx(20 * 0.5 + 1 * 7.0 + 20 * 0.1)


def test_weights_of_absent_terms_do_not_matter() -> None:
    assert weighted_sum({"mlm": torch.tensor(2.0)}, {"mlm": 3.0, "nsp": 1e9}).item() == 6.0


def test_term_without_a_weight_is_an_error() -> None:
    with pytest.raises(KeyError, match="nsp"):
        weighted_sum({"nsp": torch.tensor(1.0)}, {"l1": 1.0})


def pulled(max_ratio: float | None, of_l1: Tensor, of_adversary: Tensor) -> Tensor:
    """Gradient at the generator's output, given the gradients of its two readers."""
    pet_fake = torch.zeros_like(of_l1).requires_grad_()
    for_l1, for_adversary = hold_adversary(pet_fake, max_ratio)
    loss = (for_l1 * of_l1).sum() + (for_adversary * of_adversary).sum()
    (gradient,) = torch.autograd.grad(loss, pet_fake)
    return gradient


def test_strong_adversary_is_held_by_hand() -> None:
    of_l1 = torch.tensor([3.0, 4.0, 0.0, 0.0]).reshape(1, 2, 1, 1, 2)  # norm 5
    of_adversary = torch.tensor([0.0, 0.0, 0.0, 20.0]).reshape(1, 2, 1, 1, 2)
    held = pulled(0.1, of_l1, of_adversary).flatten().tolist()
    assert held == pytest.approx([3.0, 4.0, 0.0, 0.5])  # a tenth of 5


@given(st.integers(0, 2**31), st.floats(0.01, 2.0), st.floats(-4, 4))
@settings(max_examples=30, deadline=None)
def test_adversary_is_bounded_for_each_sample_and_keeps_its_direction(
    seed: int, max_ratio: float, magnitude: float
) -> None:
    source = torch.Generator().manual_seed(seed)
    of_l1 = torch.randn(3, 2, 2, 3, 2, generator=source)
    # Samples whose adversaries differ by factors of ten: each is held by itself.
    scale = 10.0 ** (magnitude + torch.tensor([-1.0, 0.0, 1.0])).view(3, 1, 1, 1, 1)
    of_adversary = scale * torch.randn(3, 2, 2, 3, 2, generator=source)
    held = pulled(max_ratio, of_l1, of_adversary) - of_l1
    for sample, before, base in zip(held, of_adversary, of_l1, strict=True):
        allowed = max_ratio * base.norm().item()
        expected = before * min(1.0, allowed / before.norm().item())
        torch.testing.assert_close(sample, expected, atol=2e-5, rtol=1e-3)
        assert sample.norm().item() <= allowed * 1.001 + 2e-5


def test_weak_adversary_is_left_alone() -> None:
    of_l1 = torch.randn(2, 2, 3, 3, 3)
    of_adversary = 0.01 * torch.randn(2, 2, 3, 3, 3)
    assert torch.equal(pulled(0.5, of_l1, of_adversary), of_l1 + of_adversary)


def test_none_lets_the_adversary_pull() -> None:
    of_l1, of_adversary = torch.randn(1, 2, 2, 2, 2), 1000 * torch.randn(1, 2, 2, 2, 2)
    torch.testing.assert_close(pulled(None, of_l1, of_adversary), of_l1 + of_adversary)


def test_held_values_are_those_of_the_image() -> None:
    pet_fake = torch.randn(1, 2, 2, 2, 2)
    for max_ratio in (None, 0.1):
        assert all(torch.equal(out, pet_fake) for out in hold_adversary(pet_fake, max_ratio))


@pytest.mark.parametrize("max_ratio", [None, 0.1])
def test_adversary_without_a_gradient_leaves_l1_alone(max_ratio: float | None) -> None:
    pet_fake = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    for_l1, _ = hold_adversary(pet_fake, max_ratio)
    (gradient,) = torch.autograd.grad(for_l1.sum(), pet_fake)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_both_gradients_zero_is_not_a_nan() -> None:
    zero = torch.zeros(1, 2, 1, 1, 1)
    assert torch.equal(pulled(0.1, zero, zero), zero)


def test_loss_scale_does_not_change_the_share() -> None:
    of_l1, of_adversary = torch.randn(1, 2, 2, 2, 2), 50 * torch.randn(1, 2, 2, 2, 2)
    scaled = pulled(0.1, 1024 * of_l1, 1024 * of_adversary)
    torch.testing.assert_close(scaled, 1024 * pulled(0.1, of_l1, of_adversary))


def test_smoothed_labels_by_hand() -> None:
    evidence = math.log(3.0)
    wanted = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    for_real = torch.tensor([[evidence, 0.0]])
    assert nsp(for_real, REAL, 0.1).item() == pytest.approx(wanted)
    assert nsp(for_real.flip(1), GENERATED, 0.1).item() == pytest.approx(wanted)
    patches = torch.full((1, 1, 1, 1, 1), evidence)
    assert patch(patches, REAL, 0.1).item() == pytest.approx(wanted)
    assert patch(-patches, GENERATED, 0.1).item() == pytest.approx(wanted)


def test_generator_meets_the_adversary_step_by_step() -> None:
    config = LossConfig(adversary_warmup_steps=3)
    assert [generator_weights(config, step, {})["nsp"] for step in range(5)] == [5, 10, 15, 20, 20]
    assert all(generator_weights(config, step, {})["l1"] == 20 for step in range(5))
    whole = {"l1": 20, "nsp": 20, "mlm": 1, "patch": 1, "r1": 0}
    assert generator_weights(LossConfig(), 0, {"nsp": torch.tensor(1.0)}) == whole


@pytest.mark.parametrize(
    ("accuracy", "share"), [(0.0, 1), (0.5, 1), (0.625, 0.75), (0.75, 0.5), (1.0, 0)]
)
def test_head_that_sees_through_the_generator_is_weighed_less(
    accuracy: float, share: float
) -> None:
    rights = {"nsp": torch.tensor(accuracy), "patch": torch.tensor(0.5)}
    weights = generator_weights(LossConfig(reweight=True), 0, rights)
    assert float(weights["nsp"]) == 20 * share
    assert (float(weights["patch"]), weights["mlm"], weights["l1"]) == (1, 1, 20)


def test_steadiness_by_hand() -> None:
    # Evidence for real 2 and 0, with noise 1 and 0: 1 and 0 squared. Patches: 3 of 4 stay.
    steady = Judgement(
        nsp_logits=torch.tensor([[2.0, 0.0], [5.0, 5.0]]),
        patch_logits=torch.zeros(1, 1, 1, 2, 2),
    )
    disturbed = Judgement(
        nsp_logits=torch.tensor([[3.0, 2.0], [-1.0, -1.0]]),
        patch_logits=torch.tensor([0.0, 0.0, 2.0, 0.0]).view(1, 1, 1, 2, 2),
    )
    assert steadiness(steady, disturbed).item() == pytest.approx((1 + 0) / 2 + 4 / 4)
    assert steadiness(steady, steady).item() == 0


def test_r1_is_the_squared_slope_for_small_noise() -> None:
    # D(x) = a.x: E |a.(sigma u)|^2 = sigma^2 |a|^2
    numbers = torch.Generator().manual_seed(0)
    slope, sigma = torch.tensor([3.0, 4.0]), 0.1
    noise = sigma * torch.randn(200_000, 2, generator=numbers)
    assert r1(torch.zeros(200_000), noise @ slope).item() == pytest.approx(
        sigma**2 * 25.0, rel=0.02
    )


@pytest.mark.parametrize(("accuracy", "learns"), [(0.5, True), (0.75, True), (0.8, False)])
def test_lazy_head_waits_for_the_generator_and_the_other_does_not(
    accuracy: float, learns: bool
) -> None:
    rights = {"nsp": torch.tensor(accuracy), "patch": torch.tensor(0.1)}
    weights = discriminator_weights(LossConfig(lazy_above_accuracy=0.75), rights)
    assert float(weights["nsp"]) == (20 if learns else 0)
    assert float(weights["patch"]) == 1
    assert weights["mlm"] == 1
    always = discriminator_weights(LossConfig(), rights)
    assert (always["nsp"], always["patch"]) == (20, 1)


def test_accuracies_by_hand() -> None:
    judgement = Judgement(
        nsp_logits=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        patch_logits=torch.tensor([[1.0, -1.0], [-2.0, -3.0]]).view(2, 1, 1, 1, 2),
    )
    rights = accuracies(judgement, torch.tensor([REAL, GENERATED]))
    assert {name: right.item() for name, right in rights.items()} == {"nsp": 0.5, "patch": 0.75}
    assert accuracies(Judgement(), torch.tensor([REAL])) == {}


def test_finite_losses_pass() -> None:
    assert all_finite({"l1": torch.tensor(0.0), "nsp": torch.tensor(1e30)})


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_names_the_term_and_the_subjects(name: str, value: float) -> None:
    terms = {term: torch.tensor(0.5) for term in TERMS} | {name: torch.tensor(value)}
    assert not all_finite(terms)
    said = str(not_finite(terms, ["001", "007"]))
    assert said.startswith(f"sub-001, sub-007: expected a finite loss ({name}), found {value};")
