"""DeepSpeed's files: no code is run, nothing is lost, and any number of ranks can read them."""

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbert.checkpoint import load_checkpoint, read_generator, save_checkpoint
from ganbert.checkpoint_files import TrainingState, find_damage, list_checkpoints
from ganbert.engine_files import DATA_CLASSES, repartition
from ganbert.engines import Engines
from ganbert.errors import CheckpointError, OutputError
from ganbert.weights_only import load_plain
from tests.saved_checkpoints import room_for
from tests.saved_engines import assert_same

from .test_two_engines import _steps, engines_with, recipe_with, same_weights

pytestmark = pytest.mark.usefixtures("world_of_one")
STATE = TrainingState(step=2, samples_seen=4, index_sha256="0" * 64, seed=0)
PRECISIONS = ({}, {"bf16": {"enabled": True}})
KINDS = list(itertools.product((0, 1), PRECISIONS))


def everything_of(engines: Engines) -> dict[str, Any]:
    return {
        name: [
            dict(engine.module.state_dict()),
            engine.optimizer.state_dict(),
            engine.lr_scheduler.state_dict(),
            engine.global_steps,
        ]
        for name, engine in engines.by_name.items()
    }


def save(folder: Path, engines: Engines) -> Path:
    return save_checkpoint(folder, engines.by_name, STATE, keep=1, description={}).folder


@pytest.mark.parametrize(("stage", "precision"), KINDS)
def test_engines_come_back_as_they_were(
    stage: int, precision: dict[str, Any], tmp_path: Path
) -> None:
    rising = {"warmup_min_lr": 1e-3, "warmup_max_lr": 1e-2, "warmup_num_steps": 9}
    schedule = {"type": "WarmupLR", "params": rising}
    recipe = recipe_with(zero_optimization={"stage": stage}, scheduler=schedule, **precision)
    trained, fresh = _steps(recipe), engines_with(recipe)
    folder = save(tmp_path, trained)
    assert find_damage(folder) is None
    assert not same_weights(trained.generator, fresh.generator)
    load_checkpoint(folder, fresh.by_name)
    assert_same(everything_of(trained), everything_of(fresh))
    weights = trained.generator.module.state_dict()
    assert_same(dict(read_generator(folder)), dict(weights))


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    stage: int, zipped: bool, tmp_path: Path
) -> None:
    engines = engines_with(recipe_with(zero_optimization={"stage": stage}))
    folder = save(tmp_path, engines)
    for file in sorted(folder.rglob("*.pt")):
        whole = file.read_bytes()
        content = torch.load(file, weights_only=False)
        evil = content | {"mind": Malice(tmp_path / "owned")}
        torch.save(evil, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="expected tensors and plain values") as caught:
            load_checkpoint(folder, engines.by_name)
        assert len(str(caught.value).splitlines()) == 1
        if zipped:
            assert "found code (posix.system)" in str(caught.value)
        assert not (tmp_path / "owned").exists()
        file.write_bytes(whole)
    load_checkpoint(folder, engines.by_name)
    # The file would have been made by whoever unpickles it.
    pickle.loads(pickle.dumps(Malice(tmp_path / "owned")))  # noqa: S301
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("stage", [0, 1])
def test_full_disk_leaves_the_checkpoint_before(stage: int, tmp_path: Path) -> None:
    engines = engines_with(recipe_with(zero_optimization={"stage": stage}))
    before = save(tmp_path, engines)
    later = STATE.model_copy(update={"step": 3})
    with room_for(2**14), pytest.raises(OutputError, match="expected room") as caught:
        save_checkpoint(tmp_path, engines.by_name, later, keep=1, description={})
    assert len(str(caught.value).splitlines()) == 1
    assert list_checkpoints(tmp_path) == [before]
    assert find_damage(before) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a file of torch"])
def test_torn_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "torn.pt"
    with pytest.raises(CheckpointError, match="No such file"):
        load_plain(file)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="cut off or damaged") as caught:
        load_plain(file)
    assert len(str(caught.value).splitlines()) == 1


def test_classes_that_are_let_in_only_hold_data() -> None:
    hooks = {"__setstate__", "__reduce__", "__del__"}
    for kind in DATA_CLASSES:
        assert not hooks & vars(kind).keys(), kind


def test_a_dynamic_loss_scale_comes_back(tmp_path: Path) -> None:
    # fp16 needs a GPU; what it keeps does not.
    scaler = DynamicLossScaler(
        init_scale=2.0**9, scale_window=7, min_scale=1.0, delayed_shift=2,
        consecutive_hysteresis=False, raise_error_at_min_scale=True, dtype=torch.float16,
    )  # fmt: skip
    scaler.update_scale(overflow=True)
    torch.save({"loss_scaler": scaler}, tmp_path / "state.pt")
    loaded = load_plain(tmp_path / "state.pt", DATA_CLASSES)["loss_scaler"]
    assert type(loaded) is DynamicLossScaler
    assert vars(loaded) == vars(scaler)


def part_of(weights: torch.Tensor, rank: int, num_ranks: int) -> dict[str, Any]:
    """What a rank of ZeRO 1 saves of a group of these weights, told in another way."""
    size = -(-len(weights) // (2 * num_ranks)) * 2
    padded = torch.zeros(size * num_ranks)
    padded[: len(weights)] = weights
    own = padded.view(num_ranks, size)[rank]
    padding = min(max((rank + 1) * size - len(weights), 0), size)
    return {
        "single_partition_of_fp32_groups": [own[: size - padding].clone()],
        "group_paddings": [padding],
        "base_optimizer_state": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": 2 * own}},
            "param_groups": [{"lr": 0.1}],
        },
        "overflow": False,
    }


@settings(max_examples=60, deadline=None)
@given(
    num_weights=st.integers(1, 60), before=st.integers(1, 9), after=st.integers(1, 9)
)  # fmt: skip
def test_a_part_is_what_so_many_ranks_would_have_saved(
    num_weights: int, before: int, after: int
) -> None:
    weights = torch.arange(1.0, num_weights + 1)
    parts = [part_of(weights, rank, before) for rank in range(before)]
    for rank in range(after):
        assert_same(repartition(parts, rank, after), part_of(weights, rank, after))


def test_optimiser_without_a_number_for_each_parameter_is_refused() -> None:
    parts = [part_of(torch.arange(8.0), rank, 2) for rank in range(2)]
    for part in parts:
        part["base_optimizer_state"]["state"][0]["row_mean"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="'row_mean': expected a number for each parameter"):
        repartition(parts, 0, 1)
