"""Both engines in one process: who gets a gradient, and does accumulation add up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.loader import Batch
from ganbert.engines import Engines, build_engines, recipe_settings
from ganbert.errors import ConfigError, GanbertError
from ganbert.models.discriminators import build_discriminator
from ganbert.models.generator import build_generator
from ganbert.models.rounding import GRADIENTS
from ganbert.models.summary import summarise_mri, summarise_pet
from ganbert.models.vocabulary import band_shares
from ganbert.recipe import Recipe, load_recipe
from ganbert.steps import discriminator_step, generator_step

from .conftest import RECIPE

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


pytestmark = pytest.mark.usefixtures("world_of_one")


def recipe_with(*, dropout: float = 0.0, **engine_settings: Any) -> Recipe:
    recipe = load_recipe(Path(RECIPE))
    discriminator = recipe.run.discriminator.model_copy(update={"dropout": dropout})
    return recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update={"discriminator": discriminator}),
            "generator_engine": recipe.generator_engine | engine_settings,
            "discriminator_engine": recipe.discriminator_engine | engine_settings,
        }
    )


def with_learning_rates(recipe: Recipe, generator: float, discriminator: float) -> Recipe:
    """The recipe without schedules, at these learning rates."""

    def at(config: dict[str, Any], rate: float) -> dict[str, Any]:
        adam = {"type": "Adam", "params": {"lr": rate, "torch_adam": True, "adam_w_mode": False}}
        return {k: v for k, v in config.items() if k != "scheduler"} | {"optimizer": adam}

    return recipe.model_copy(
        update={
            "generator_engine": at(recipe.generator_engine, generator),
            "discriminator_engine": at(recipe.discriminator_engine, discriminator),
        }
    )


def engines_with(recipe: Recipe) -> Engines:
    torch.manual_seed(0)
    generator = build_generator(recipe.run.generator, TINY_MRI_GRID, TINY_PET_GRID)
    discriminator = build_discriminator(recipe.run.discriminator, TINY_MRI_GRID, TINY_PET_GRID)
    return build_engines(generator, discriminator, recipe, max_steps=4)


def random_batch(num: int) -> Batch:
    numbers = torch.Generator().manual_seed(1)
    mri = torch.randn(num, 1, *TINY_MRI_GRID.shape, generator=numbers)
    pet_real = 3 * torch.rand(num, 2, *TINY_PET_GRID.shape, generator=numbers)
    return Batch(mri=mri.to(DEVICE), pet_real=pet_real.to(DEVICE), rows=[0] * num)


def part_of(batch: Batch, part: slice) -> Batch:
    return replace(batch, mri=batch.mri[part], pet_real=batch.pet_real[part])


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def masks_for(engines: Engines, num: int) -> torch.Tensor:
    masks = engines.discriminator.module.sample_masks(num, torch.Generator().manual_seed(2))
    return masks.to(DEVICE)


def _steps(recipe: Recipe, *, without: str = "") -> Engines:
    """Two optimiser steps of both networks, or of one alone."""
    engines, batch = engines_with(recipe), random_batch(2)
    masks = masks_for(engines, 6)
    for micro_step in range(2 * engines.accumulation):
        torch.manual_seed(micro_step)
        pet_fake = engines.generator(batch.mri)
        if without != "discriminator":
            discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
        torch.manual_seed(1000 + micro_step)
        if without != "generator":
            generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses, 0)
    return engines


def same_weights(one: Any, other: Any) -> bool:
    weights = weights_of(other)
    return all(torch.equal(weights[name], weight) for name, weight in weights_of(one).items())


# With accumulation a gradient that went astray waits for its network's own next step. The weights
# tell; `grad` does not: ZeRO 1 keeps gradients elsewhere, and it is always None there.
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_each_step_moves_its_own_network_alone(zero_stage: int) -> None:
    recipe = recipe_with(
        gradient_accumulation_steps=2, zero_optimization={"stage": zero_stage}, dropout=0.1
    )
    untrained = engines_with(recipe)
    # The other network stands still, so both runs show each network the same images.
    moving_d = with_learning_rates(recipe, generator=0.0, discriminator=1e-3)
    both, alone = _steps(moving_d), _steps(moving_d, without="generator")
    assert same_weights(both.discriminator, alone.discriminator)
    assert not same_weights(both.discriminator, untrained.discriminator)
    assert same_weights(both.generator, untrained.generator)

    moving_g = with_learning_rates(recipe, generator=1e-3, discriminator=0.0)
    both, alone = _steps(moving_g), _steps(moving_g, without="discriminator")
    assert same_weights(both.generator, alone.generator)
    assert not same_weights(both.generator, untrained.generator)
    assert same_weights(both.discriminator, untrained.discriminator)
    for engine in (both.generator, both.discriminator):
        assert all(p.requires_grad for p in engine.module.parameters())


needs_fp16 = pytest.mark.skipif(
    not get_accelerator().is_fp16_supported(), reason="this device does not compute in float16"
)


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=needs_fp16)])
def test_both_networks_learn_in_16_bit(precision: str, zero_stage: int) -> None:
    kind = {"enabled": True} | ({"initial_scale_power": 8} if precision == "fp16" else {})
    settings = {precision: kind, "zero_optimization": {"stage": zero_stage}}
    recipe = with_learning_rates(recipe_with(**settings), 1e-2, 1e-2)
    untrained, trained = engines_with(recipe), _steps(recipe)
    for name in ("generator", "discriminator"):
        before, after = getattr(untrained, name), getattr(trained, name)
        weights = weights_of(after)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert {weight.dtype for weight in weights.values()} == {dtype}
        assert all(bool(weight.isfinite().all()) for weight in weights.values())
        assert not same_weights(before, after)
    # Token ids up to 10,000 need more digits than bfloat16 has.
    assert trained.generator(random_batch(2).mri).dtype == torch.float32


def test_what_deepspeed_finds_wrong_is_one_line() -> None:
    sgd = {"type": "SGD", "params": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"generator.json: .*zero_allow_untested_optimizer"):
        engines_with(recipe_with(optimizer=sgd, zero_optimization={"stage": 1}))


def _train_on(batches: list[Batch], masks: list[torch.Tensor], recipe: Recipe) -> Engines:
    engines = engines_with(recipe)
    for _ in range(3):
        for batch, mask in zip(batches, masks, strict=True):
            num = len(batch.mri)
            pet_fake = engines.generator(batch.mri)
            discriminator_step(engines, batch, pet_fake, mask[: 2 * num], recipe.run.losses)
            generator_step(engines, batch, pet_fake, mask[2 * num :], recipe.run.losses, 0)
    return engines


def test_two_micro_batches_of_two_are_one_batch_of_four() -> None:
    whole = random_batch(4)
    halves = [part_of(whole, slice(0, 2)), part_of(whole, slice(2, 4))]
    # Plain SGD: Adam would blow rounding errors of tiny gradients up to whole steps.
    sgd = {"optimizer": {"type": "SGD", "params": {"lr": 0.01}}}
    sgd |= {
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.01, "warmup_max_lr": 0.01}}
    }
    once = recipe_with(gradient_accumulation_steps=1, train_micro_batch_size_per_gpu=4, **sgd)
    twice = recipe_with(gradient_accumulation_steps=2, train_micro_batch_size_per_gpu=2, **sgd)
    mask = masks_for(engines_with(once), 12)
    parts = [
        torch.cat([mask[k : k + 2], mask[k + 4 : k + 6], mask[k + 8 : k + 10]]) for k in (0, 2)
    ]
    untrained = weights_of(engines_with(once).generator)
    one = _train_on([whole], [mask], once)
    two = _train_on(halves, parts, twice)
    moved = weights_of(one.generator)
    assert all(not torch.equal(moved[name], untrained[name]) for name in untrained)
    for first, second in zip(
        (one.generator, one.discriminator), (two.generator, two.discriminator), strict=True
    ):
        for name, weight in weights_of(first).items():
            torch.testing.assert_close(weights_of(second)[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("for_generator", [True, False])
def test_activation_checkpointing_changes_memory_and_nothing_else(for_generator: bool) -> None:
    # With dropout: what is computed twice must drop the same, or nothing, the second time.
    kept = recipe_with(gradient_accumulation_steps=1, dropout=0.1)
    adversary = kept.run.discriminator.model_copy(update={"dropout_for_generator": for_generator})
    run = kept.run.model_copy(update={"discriminator": adversary})
    kept = kept.model_copy(update={"run": run})
    without = kept.model_copy(
        update={
            name: {k: v for k, v in getattr(kept, name).items() if k != "activation_checkpointing"}
            for name in ("generator_engine", "discriminator_engine")
        }
    )
    assert kept.discriminator_engine != without.discriminator_engine
    on, off = (_steps(with_learning_rates(recipe, 1e-3, 1e-3)) for recipe in (kept, without))
    assert same_weights(on.generator, off.generator)
    assert same_weights(on.discriminator, off.discriminator)
    no_dropout = recipe_with(gradient_accumulation_steps=1)
    dry = _steps(with_learning_rates(no_dropout, 1e-3, 1e-3))
    assert not same_weights(on.discriminator, dry.discriminator), "dropout is at work"


def recipe_of(kind: str, losses: dict[str, float] | None = None, **discriminator: object) -> Recipe:
    """The tiny recipe with another discriminator and other losses, ready to learn at once."""
    recipe = with_learning_rates(recipe_with(gradient_accumulation_steps=1), 1e-3, 1e-3)
    settings = {"kind": kind, "patch_channels": (4, 4), "dropout": 0.0} | discriminator
    run = recipe.run.model_copy(
        update={
            "discriminator": recipe.run.discriminator.model_copy(update=settings),
            "losses": recipe.run.losses.model_copy(update=losses or {}),
        }
    )
    return recipe.model_copy(update={"run": run})


def run_steps(
    engines: Engines, batch: Batch, recipe: Recipe, step: int = 0
) -> dict[str, torch.Tensor]:
    for _ in range(4):  # the first steps of the schedule have a learning rate of 0
        masks = engines.sample_masks(6, torch.Generator().manual_seed(2)).to(DEVICE)
        pet_fake = engines.generator(batch.mri)
        measured = discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
        measured |= generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses, step)
    return measured


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("none", set()),
        ("patchgan", {"patch"}),
        ("bert", {"nsp", "mlm"}),
        ("bert_patchgan", {"nsp", "mlm", "patch"}),
    ],
)
def test_every_kind_of_discriminator_trains_all_its_networks(kind: str, terms: set[str]) -> None:
    recipe = recipe_of(kind)
    untrained, engines = engines_with(recipe), engines_with(recipe)
    measured = run_steps(engines, random_batch(2), recipe)
    losses = {"loss_l1"} | {f"loss_{term}_generator" for term in terms}
    losses |= {f"loss_{term}_discriminator" for term in terms}
    accuracies = {"nsp_accuracy_real", "nsp_accuracy_generated"} if terms else set()
    shares = {name for name in measured if name.startswith("token_share_")}
    assert len(shares) == (3 * 4 if "nsp" in terms else 0)
    assert measured.keys() - shares == losses | accuracies
    assert all(bool(value.isfinite()) for value in measured.values())
    assert engines.by_name.keys() == {"generator", *(["discriminator"] if terms else [])}
    for name, engine in engines.by_name.items():
        before, after = weights_of(untrained.by_name[name]), weights_of(engine)
        for part in {key.split(".")[0] for key in before}:
            of_part = [key for key in before if key.split(".")[0] == part]
            assert any(not torch.equal(before[key], after[key]) for key in of_part), part


@pytest.mark.parametrize("losses", [{}, {"r1": 1.0}])
def test_shares_of_tokens_are_those_of_the_images(losses: dict[str, float]) -> None:
    recipe = recipe_of("bert", losses, value_noise=0.5)
    batch, engines = random_batch(2), engines_with(recipe)
    pet_fake = batch.pet_real - 4
    masks = engines.sample_masks(6, torch.Generator().manual_seed(2)).to(DEVICE)
    measured = discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
    for image, values in (
        ("mri", summarise_mri(batch.mri)),
        ("pet_real", summarise_pet(batch.pet_real)),
        ("pet_fake", summarise_pet(pet_fake)),
    ):
        for band, share in band_shares(values)._asdict().items():
            assert measured[f"token_share_{image}_{band}"].item() == pytest.approx(share, abs=1e-6)
    assert measured["token_share_pet_fake_negative"] == 1


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [("none", "none"), ("patchgan", "none"), *(("bert", g) for g in GRADIENTS)],
)
def test_an_image_that_is_no_number_teaches_nothing(kind: str, gradient: str) -> None:
    recipe = recipe_of(kind, gradient=gradient)
    untrained, engines, batch = engines_with(recipe), engines_with(recipe), random_batch(2)
    batch.pet_real[1, 0, 2, 3, 4] = torch.nan
    batch.subjects.extend(["001", "002"])
    masks = engines.sample_masks(6, torch.Generator().manual_seed(2)).to(DEVICE)
    for _ in range(4):  # the first steps of the schedule have a learning rate of 0
        pet_fake = engines.generator(batch.mri)
        if kind != "none":
            with pytest.raises(GanbertError, match="sub-001, sub-002: expected a finite loss"):
                discriminator_step(engines, batch, pet_fake, masks[:4], recipe.run.losses)
        with pytest.raises(GanbertError, match=r"finite loss \(l1"):
            generator_step(engines, batch, pet_fake, masks[4:], recipe.run.losses, 0)
    for name, engine in engines.by_name.items():
        assert same_weights(untrained.by_name[name], engine)


def test_reins_reach_the_steps() -> None:
    batch = random_batch(2)
    # A discriminator that is always too good, and has nothing but that to learn.
    lazy = recipe_of("bert_patchgan", {"lazy_above_accuracy": 0.0, "mlm": 0.0})
    untrained, engines = engines_with(lazy), engines_with(lazy)
    run_steps(engines, batch, lazy)
    assert same_weights(untrained.discriminator, engines.discriminator)
    assert not same_weights(untrained.generator, engines.generator)

    plain, smooth = recipe_of("bert"), recipe_of("bert", {"label_smoothing": 0.4})
    one, other = (run_steps(engines_with(r), batch, r) for r in (plain, smooth))
    assert one["loss_nsp_discriminator"] != other["loss_nsp_discriminator"]

    slow = recipe_of("bert", {"adversary_warmup_steps": 1000})
    early, late = engines_with(slow), engines_with(slow)
    run_steps(early, batch, slow, step=0)
    run_steps(late, batch, slow, step=1000)
    assert not same_weights(early.generator, late.generator)


@pytest.mark.parametrize("kind", ["bert", "bert_patchgan", "patchgan"])
def test_r1_keeps_the_discriminator_steady_under_noise(kind: str) -> None:
    batch, unsteadiness = random_batch(2), {}
    assert "loss_r1_discriminator" not in run_steps(
        engines_with(recipe_of(kind)), batch, recipe_of(kind)
    )
    for weight in (1e-9, 100.0):
        recipe = recipe_of(kind, {"r1": weight, "r1_sigma": 1.0, "mlm": 0.0})
        engines = engines_with(with_learning_rates(recipe, 0.0, 1e-2))
        for _ in range(5):
            measured = run_steps(engines, batch, recipe)
        unsteadiness[weight] = measured["loss_r1_discriminator"]
    assert unsteadiness[100.0] < unsteadiness[1e-9] / 2


def test_generator_hears_nothing_from_a_head_that_always_sees_through_it() -> None:
    batch = random_batch(2)
    recipe = recipe_of("bert", {"reweight": True, "mlm": 0.0, "l1": 20.0})
    alone = recipe_of("none")
    engines, without = engines_with(recipe), engines_with(alone)
    with torch.no_grad():  # "generated", whatever it is shown
        engines.discriminator.module.bert.bert.cls.seq_relationship.bias.copy_(
            torch.tensor([-50.0, 50.0])
        )
    for network in (engines, without):
        pet_fake = network.generator(batch.mri)
        masks = network.sample_masks(2, torch.Generator()).to(DEVICE)
        generator_step(network, batch, pet_fake, masks, recipe.run.losses, 0)
    assert same_weights(engines.generator, without.generator)


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("scheduled", [False, True])
def test_settings_of_the_recipe_hold_in_a_resumed_run(
    scheduled: bool, zero_stage: int, tmp_path: Path
) -> None:
    def engines_at(rate: float, betas: list[float]) -> Engines:
        recipe = recipe_with(zero_optimization={"stage": zero_stage})
        config = with_learning_rates(recipe, rate, rate).generator_engine
        config["optimizer"]["params"]["betas"] = betas
        if scheduled:
            given = {"warmup_max_lr": rate, "warmup_num_steps": 2, "warmup_type": "linear"}
            config["scheduler"] = {"type": "WarmupLR", "params": given}
        both = {"generator_engine": config, "discriminator_engine": config}
        return engines_with(recipe.model_copy(update=both))

    first, batch = engines_at(1e-3, [0.9, 0.999]), random_batch(1)
    for _ in range(3 * first.accumulation):
        generator_step(
            first,
            batch,
            first.generator(batch.mri),
            masks_for(first, 1),
            load_recipe(RECIPE).run.losses,
            0,
        )
    first.generator.save_checkpoint(str(tmp_path), tag="t", save_latest=False)
    resumed = engines_at(5e-4, [0.5, 0.9])
    with recipe_settings(resumed):
        resumed.generator.load_checkpoint(str(tmp_path), tag="t")
    (group,) = resumed.generator.optimizer.param_groups
    assert (group["lr"], list(group["betas"])) == (5e-4, [0.5, 0.9])
    # The state is still that of the checkpoint.
    state = next(iter(resumed.generator.optimizer.state.values()))
    assert state["step"] == 3
    assert same_weights(first.generator, resumed.generator)
