"""What the engines' JSON may say, the schedule that follows, and freezing."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ganbert import engines
from ganbert.config import RunConfig
from ganbert.engine_config import check_recipe, compiled_operation, resolve_schedule
from ganbert.engines import check_engine_configs, frozen
from ganbert.errors import ConfigError, GanbertError, PlatformError
from ganbert.recipe import Recipe, load_recipe

RECIPES = sorted(p.parent for p in (Path(__file__).parents[2] / "ds_configs").glob("*/run.yaml"))
COUNTS: dict[str, Any] = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
ADAM = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True, "adam_w_mode": False}}
ENGINE = COUNTS | {"optimizer": ADAM}


def recipe(generator: dict[str, Any], discriminator: dict[str, Any]) -> Recipe:
    return Recipe(
        run=RunConfig(max_steps=1),
        generator_engine=ENGINE | generator,
        discriminator_engine=ENGINE | discriminator,
    )


def optimizer(name: str, **params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": name, "params": params}}


def scheduler(name: str, **params: Any) -> dict[str, Any]:
    return {"scheduler": {"type": name, "params": params}}


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_every_recipe_passes(folder: Path) -> None:
    check_recipe(load_recipe(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"zero_optimization": {"stage": 0}},
        {"zero_optimization": {"stage": 1}},
        {"bf16": {"enabled": True}},
        {"gradient_clipping": 1},
        optimizer("adamw", lr=1e-3, torch_adam=True, weight_decay=0.01),
        optimizer("SGD", lr=0.1, momentum=0.9),
        optimizer("Adagrad", lr=0.1),
        scheduler("WarmupLR", warmup_num_steps="auto"),
        scheduler("WarmupDecayLR", total_num_steps="auto", warmup_type="linear"),
        scheduler("WarmupCosineLR", total_num_steps=10, warmup_num_steps=2),
        scheduler("OneCycle", cycle_min_lr=0.1, cycle_max_lr=0.2),
        scheduler("LRRangeTest"),
    ],
    ids=str,
)
def test_what_works_passes(settings: dict[str, Any]) -> None:
    check_engine_configs(recipe(settings, settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_cliping": 1.0}, "'gradient_cliping'; did you mean 'gradient_clipping'?"),
        ({"amp": {"enabled": True}}, "'amp'; valid: train_micro_batch_size_per_gpu, "),
        ({"train_batch_size": 7}, "'train_batch_size', found 7; remove it"),
        (
            {"train_micro_batch_size_per_gpu": "2"},
            "a whole number above 0, found '2'; write 2, without quotes",
        ),
        ({"train_micro_batch_size_per_gpu": True}, "a whole number above 0, found true"),
        ({"gradient_accumulation_steps": 0}, "a whole number above 0, found 0"),
        ({"gradient_accumulation_steps": None}, "a whole number above 0, found null"),
        ({"gradient_clipping": -1.0}, "a number of at least 0, found -1.0"),
        ({"optimizer": None}, "optimizer: .*, found null"),
        ({"optimizer": {"params": {}}}, "optimizer.type: a value, found nothing"),
        ({"optimizer": {"type": "SGD", "parms": {}}}, "'optimizer.parms'; did you mean 'params'"),
        (optimizer("Adamm"), "optimizer.type: .*'Adamm'; did you mean 'Adam'"),
        (optimizer("LBFGS"), "optimizer.type: .*'LBFGS'"),
        (optimizer("Adam", lrr=1e-3, torch_adam=True), "'lrr'; did you mean 'lr'"),
        (optimizer("Adam", lrr=1e-3), "'lrr'; did you mean 'lr'"),
        (optimizer("SGD", torch_adam=True), "'torch_adam'"),
        (optimizer("Adam", torch_adam="yes"), "torch_adam: expected true or false, found 'yes'"),
        (
            optimizer("Adam", lr="1e-3", torch_adam=True),
            r'optimizer.params.lr: expected a number, found the text "1e-3"; write 1e-3, without',
        ),
        (
            optimizer("Adam", betas=[0.5, "0.9"], torch_adam=True),
            r'betas: .* the text "0.9"; write',
        ),
        (optimizer("Adam", lr="1_0", torch_adam=True), "optimizer.params: .*TypeError"),
        (optimizer("Adam", lr="fast", torch_adam=True), "optimizer.params: .*TypeError"),
        (optimizer("Adam", lr=-1.0, torch_adam=True), "optimizer.params: .*learning rate: -1"),
        (optimizer("Lion", lr=-1.0), "optimizer.params: .*learning rate: -1"),
        ({"scheduler": None}, "scheduler: .*, found null"),
        (scheduler("WarmupLr"), "scheduler.type: .*did you mean 'WarmupLR'"),
        (scheduler("StepLR"), "scheduler.type: .*'StepLR'"),
        (scheduler("WarmupLR", warmup_steps=3), "did you mean 'warmup_num_steps'"),
        (scheduler("WarmupLR", warmup_type="cosine"), "expected 'log' or 'linear'"),
        (scheduler("WarmupLR", warmup_num_steps=1.5), "positive integer, got 1.5"),
        (scheduler("WarmupLR", warmup_max_lr="1e-3"), "params.warmup_max_lr: .* without quotes"),
        (scheduler("WarmupDecayLR"), "missing .*'total_num_steps'"),
        ({"zero_optimization": None}, "zero_optimization: .*, found null"),
        ({"zero_optimization": {"stages": 1}}, "'stages'; did you mean 'stage'"),
        ({"zero_optimization": {"stage": "1"}}, "expected 0 or 1, found '1'"),
        ({"zero_optimization": {"stage": True}}, "expected 0 or 1, found True"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            "offloading is not supported",
        ),
        ({"fp16": {"enabeld": True}}, "fp16: .*'enabeld'; did you mean 'enabled'"),
        ({"fp16": {"enabled": True, "loss_scale": -1}}, "fp16: .*loss_scale"),
        ({"fp16": {"enabled": True, "auto_cast": True}}, "auto_cast: expected false"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "one precision"),
        ({"bf16": {"enabled": "often"}}, "bf16: .*'often'"),
        ({"activation_checkpointing": True}, "activation_checkpointing: .*, found true"),
        ({"activation_checkpointing": {"partition": True}}, "did you mean 'partition_activations'"),
        ({"tensorboard": {"enable": True}}, "tensorboard: .*'enable'; did you mean 'enabled'"),
        ({"tensorboard": True}, "tensorboard: .*, found true"),
        ({"wandb": {"enabled": "often"}}, "wandb: .*'often'"),
        ({"communication_data_type": "fp8"}, "'fp16', 'bf16' or 'fp32', found 'fp8'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["generator", "discriminator"])
def test_mistakes_are_one_line_that_names_the_file(
    settings: dict[str, Any], message: str, side: str
) -> None:
    pair = (settings, {}) if side == "generator" else ({}, settings)
    with pytest.raises(ConfigError, match=message) as caught:
        check_engine_configs(recipe(*pair))
    assert str(caught.value).startswith(f"{side}.json")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", COUNTS)
def test_engines_must_count_the_same_samples(key: str) -> None:
    with pytest.raises(ConfigError, match=f"one '{key}' in both, found 2 and 1"):
        check_engine_configs(recipe({}, {key: 1}))


@pytest.mark.parametrize("key", COUNTS)
def test_a_missing_count_is_not_left_to_deepspeed(key: str) -> None:
    both = recipe({}, {})
    del both.generator_engine[key], both.discriminator_engine[key]
    with pytest.raises(ConfigError, match=f"{key}: a value, found nothing"):
        check_engine_configs(both)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_partitioned_gradients_are_refused_in_either_engine(stage: int, side: int) -> None:
    pair: list[dict[str, Any]] = [{}, {}]
    pair[side] = {"zero_optimization": {"stage": stage}}
    with pytest.raises(ConfigError, match=f"zero_optimization.stage: .*found {stage}; .*4923"):
        check_engine_configs(recipe(*pair))


def test_activation_checkpointing_is_the_same_in_both_or_absent_in_one() -> None:
    on, other = (
        {"activation_checkpointing": {"partition_activations": value}} for value in (False, True)
    )
    check_engine_configs(recipe(on, on))
    check_engine_configs(recipe(on, {}))
    check_engine_configs(recipe({}, on))
    with pytest.raises(ConfigError, match=r"one 'activation_checkpointing'.*DeepSpeed has it once"):
        check_engine_configs(recipe(on, other))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_one_monitor_is_for_both_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganbert.monitor.importlib.util.find_spec", lambda _: object())
    block = {name: {"enabled": True}}
    check_engine_configs(recipe(block, {}))
    with pytest.raises(ConfigError, match=rf"discriminator.json: {name}: .* move it to generator"):
        check_engine_configs(recipe({}, block))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_monitor_without_its_package_is_refused_up_front(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganbert.monitor.importlib.util.find_spec", lambda _: None)
    check_engine_configs(recipe({name: {"enabled": False}}, {}))
    with pytest.raises(PlatformError, match=rf"generator.json: {name}: .*ganbert\[{name}\]"):
        check_engine_configs(recipe({name: {"enabled": True}}, {}))


class Machine:
    """A stand-in for DeepSpeed's accelerator."""

    def __init__(self, device: str, *, precise: bool = True, operation: str | None = None) -> None:
        self.device, self.precise, self.operation = device, precise, operation

    def device_name(self) -> str:
        return self.device

    def is_fp16_supported(self) -> bool | None:
        return self.precise or None  # as DeepSpeed says it on a CPU

    is_bf16_supported = is_fp16_supported

    def create_op_builder(self, name: str) -> Any:
        assert name == "FusedAdamBuilder"
        return SimpleNamespace(name=self.operation) if self.operation else None


def on_machine(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(engines, "get_accelerator", lambda: machine)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_that_the_machine_lacks_is_refused_up_front(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, Machine("cpu", precise=False))
    with pytest.raises(PlatformError, match=f"generator.json: {precision}: .*found cpu"):
        check_engine_configs(recipe({precision: {"enabled": True}}, {}))
    check_engine_configs(recipe({precision: {"enabled": False}}, {}))


def test_compiled_optimiser_without_a_toolkit_is_refused_up_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_toolkit() -> None:
        raise engines.op_builder.MissingCUDAException("CUDA_HOME does not exist")

    monkeypatch.setattr(engines.op_builder, "assert_no_cuda_mismatch", no_toolkit)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    on_machine(monkeypatch, Machine("cuda", operation="fused_adam"))
    compiled = recipe(optimizer("Adam", lr=1e-3), {})
    with pytest.raises(PlatformError, match='CUDA_HOME does not exist; set "torch_adam": true'):
        check_engine_configs(compiled)
    check_engine_configs(recipe(optimizer("Adam", lr=1e-3, torch_adam=True), {}))
    monkeypatch.setitem(engines.installed_ops, "fused_adam", True)
    check_engine_configs(compiled)


def test_compiled_optimiser_without_a_compiler_is_refused_up_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_machine(monkeypatch, Machine("cpu", operation="fused_adam"))
    compiled = recipe(optimizer("Adam", lr=1e-3), {})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlatformError, match="found no C\\+\\+ compiler"):
        check_engine_configs(compiled)


@pytest.mark.parametrize("operation", [None, "deepspeed_not_implemented"])
def test_optimiser_that_the_device_does_not_have_is_refused(
    operation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, Machine("cpu", operation=operation))
    with pytest.raises(PlatformError, match="found none for cpu"):
        check_engine_configs(recipe(optimizer("Adam", lr=1e-3), {}))


def test_which_optimisers_are_compiled() -> None:
    assert compiled_operation(ENGINE) is None
    assert compiled_operation(optimizer("SGD")) is None
    assert compiled_operation(optimizer("AdamW")) == "FusedAdamBuilder"
    assert compiled_operation(optimizer("Lamb")) == "FusedLambBuilder"


def test_what_deepspeed_refuses_later_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**_: Any) -> None:
        raise AssertionError("You are using an untested optimizer\nand more")

    monkeypatch.setattr(engines.deepspeed, "initialize", initialize)
    with pytest.raises(GanbertError, match=r"generator.json: .*AssertionError: You are using") as e:
        engines.build_engines(nn.Linear(1, 1), nn.Linear(1, 1), recipe({}, {}), 1)
    assert "and more" not in str(e.value)


@pytest.mark.parametrize(("answer", "device"), [("cpu", "cpu"), ("cuda", "cuda:1")])
def test_deepspeed_is_asked_for_the_device(
    answer: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimpleNamespace(device_name=lambda: answer, device_count=lambda: 2)
    monkeypatch.setattr(engines, "get_accelerator", lambda: machine)
    # Whatever torch would say of itself.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: answer == "cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert engines.find_device() == torch.device(device)


@pytest.mark.parametrize(("answer", "message"), [("cuda", "one GPU for each"), ("xpu", "or cpu")])
def test_devices_that_are_not_there_are_refused(
    answer: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimpleNamespace(device_name=lambda: answer, device_count=lambda: 1)
    monkeypatch.setattr(engines, "get_accelerator", lambda: machine)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(PlatformError, match=message):
        engines.find_device()


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
