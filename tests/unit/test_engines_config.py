"""What the engines' JSON may say, the schedule that follows, and freezing."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ganbert.config import Recipe, RunConfig
from ganbert.engines import check_engine_configs, frozen, resolve_schedule
from ganbert.errors import ConfigError

ENGINE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
}


def recipe(generator: dict[str, Any], discriminator: dict[str, Any]) -> Recipe:
    return Recipe(
        run=RunConfig(max_steps=1),
        generator_engine=ENGINE | generator,
        discriminator_engine=ENGINE | discriminator,
    )


@pytest.mark.parametrize("stage", [None, 0, 1])
def test_engines_that_agree_pass(stage: int | None) -> None:
    zero = {} if stage is None else {"zero_optimization": {"stage": stage}}
    check_engine_configs(recipe(zero, {}))


@pytest.mark.parametrize("key", ENGINE)
@pytest.mark.parametrize("value", [1, None])
def test_engines_must_count_the_same_samples(key: str, value: int | None) -> None:
    with pytest.raises(ConfigError, match=f"one '{key}' in both, found 2 and {value}"):
        check_engine_configs(recipe({}, {key: value}))


@pytest.mark.parametrize("key", ENGINE)
def test_a_missing_count_is_not_left_to_deepspeed(key: str) -> None:
    both = recipe({}, {})
    del both.generator_engine[key], both.discriminator_engine[key]
    with pytest.raises(ConfigError, match=f"one '{key}' in both, found None and None"):
        check_engine_configs(both)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_partitioned_gradients_are_refused_in_either_engine(stage: int, side: int) -> None:
    pair: list[dict[str, Any]] = [{}, {}]
    pair[side] = {"zero_optimization": {"stage": stage}}
    with pytest.raises(ConfigError, match=f"zero_optimization.stage: .*found {stage}"):
        check_engine_configs(recipe(*pair))


def schedule(max_steps: int, **parameters: Any) -> dict[str, Any]:
    usual = {"warmup_num_steps": "auto", "total_num_steps": "auto", "warmup_max_lr": 1e-4}
    config = {"scheduler": {"type": "WarmupDecayLR", "params": usual | parameters}}
    before = copy.deepcopy(config)
    resolved = resolve_schedule(config, max_steps)
    assert config == before, "the recipe itself stays as it is written"
    params: dict[str, Any] = resolved["scheduler"]["params"]
    return params


# 5 % of the steps (paper, A.3), at least one.
@pytest.mark.parametrize(
    ("max_steps", "warmup"), [(1, 1), (19, 1), (20, 1), (21, 2), (140, 7), (300, 15), (1000, 50)]
)
def test_auto_follows_from_the_number_of_steps(max_steps: int, warmup: int) -> None:
    assert schedule(max_steps) == {
        "warmup_num_steps": warmup,
        "total_num_steps": max_steps,
        "warmup_max_lr": 1e-4,
    }


def test_numbers_that_were_written_stay() -> None:
    resolved = schedule(1000, warmup_num_steps=3, total_num_steps=7)
    assert (resolved["warmup_num_steps"], resolved["total_num_steps"]) == (3, 7)


def test_schedule_is_not_required() -> None:
    assert resolve_schedule(ENGINE, 10) == ENGINE
    assert resolve_schedule({"scheduler": {"type": "X"}}, 10) == {"scheduler": {"type": "X"}}


@pytest.fixture
def engine() -> Any:
    return SimpleNamespace(module=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))


def test_frozen_network_passes_gradients_but_takes_none(engine: Any) -> None:
    inputs = torch.randn(2, 3, requires_grad=True)
    with frozen(engine) as module:
        assert module is engine.module
        module(inputs).sum().backward()
    assert all(p.grad is None for p in engine.module.parameters())
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_network_thaws_even_after_an_error(engine: Any) -> None:
    class Broken(Exception):
        pass

    with pytest.raises(Broken), frozen(engine):
        raise Broken
    assert all(p.requires_grad for p in engine.module.parameters())


def test_what_was_frozen_before_stays_frozen(engine: Any) -> None:
    engine.module[0].requires_grad_(False)
    with frozen(engine):
        assert not any(p.requires_grad for p in engine.module.parameters())
    assert not any(p.requires_grad for p in engine.module[0].parameters())
    assert all(p.requires_grad for p in engine.module[2].parameters())
