"""TensorBoard and Weights & Biases: what they have after a step, and what is said if they fail."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ganbert.errors import OutputError, PlatformError
from ganbert.monitor import MonitorSink, events
from ganbert.step_stats import StepStats

from .conftest import RECIPE, Launch

STATS = StepStats(
    step=3,
    samples_seen=12,
    epoch=0.5,
    seconds=0.25,
    volumes_per_second=16.0,
    data_wait_seconds=0.125,
    learning_rate_generator=1e-3,
    learning_rate_discriminator=2e-3,
    loss_l1=0.5,
    loss_nsp_generator=0.75,
    loss_nsp_discriminator=0.25,
    gradient_norm_generator=1.5,
    gradient_norm_discriminator=2.5,
    nsp_accuracy_real=1.0,
    nsp_accuracy_generated=0.0,
    token_share_pet_fake_in_range=0.875,
)
TENSORBOARD = {"tensorboard": {"enabled": True}}
OFF = {"tensorboard": {"enabled": False}}
WANDB = {"wandb": {"enabled": True, "project": "pet", "group": "av45", "team": "lab"}}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of every curve, as TensorBoard shows them: (volumes seen, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="no tensorboard (pip install .[tensorboard])",
)


def test_names_tell_the_networks_apart() -> None:
    named = {name: value for name, value, _ in events(STATS)}
    assert len(named) == len(events(STATS))
    expected = {
        "generator/loss_l1": 0.5,
        "generator/loss_nsp": 0.75,
        "discriminator/loss_nsp": 0.25,
        "generator/learning_rate": 1e-3,
        "discriminator/learning_rate": 2e-3,
        "generator/gradient_norm": 1.5,
        "discriminator/gradient_norm": 2.5,
        "discriminator/nsp_accuracy_real": 1.0,
        "discriminator/nsp_accuracy_generated": 0.0,
        "tokens_pet_fake/in_range": 0.875,
        "progress/step": 3.0,
    }
    assert {name: named.get(name) for name in expected} == expected
    assert "validation/l1" not in named  # not measured at this step
    assert {seen for _, _, seen in events(STATS)} == {12}


alone = pytest.mark.usefixtures("world_of_one")


@pytest.mark.parametrize("block", [{}, {"tensorboard": {}}, OFF])
@alone
def test_nothing_is_written_unless_asked_for(block: dict[str, Any], tmp_path: Path) -> None:
    assert MonitorSink.open(block, tmp_path, 0) == []
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
@alone
def test_a_resumed_run_does_not_repeat_itself(tmp_path: Path) -> None:
    (first,) = MonitorSink.open(TENSORBOARD, tmp_path, 0)
    for step in (1, 2, 3):
        first.write(replace(STATS, step=step, samples_seen=4 * step, loss_l1=step))
    first.close()
    first.close()
    (second,) = MonitorSink.open(TENSORBOARD, tmp_path, samples_seen=8)
    second.write(replace(STATS, samples_seen=12, loss_l1=7.0))
    second.close()
    assert scalars(tmp_path / "tensorboard")["generator/loss_l1"] == [(4, 1), (8, 2), (12, 7)]


@needs_tensorboard
@alone
def test_deepspeeds_own_keys_say_where(tmp_path: Path) -> None:
    where = {"enabled": True, "output_path": str(tmp_path / "events"), "job_name": "av45"}
    (sink,) = MonitorSink.open({"tensorboard": where}, tmp_path / "run", 0)
    sink.write(STATS)
    sink.close()
    assert scalars(tmp_path / "events" / "av45")["generator/loss_l1"] == [(12, 0.5)]
    assert not (tmp_path / "run").exists()


@needs_tensorboard
@alone
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = {"enabled": True, "output_path": str(tmp_path / "file")}
    with pytest.raises(OutputError, match="a place that can be written, found Not a directory"):
        MonitorSink.open({"tensorboard": where}, tmp_path, 0)


@alone
def test_weights_and_biases_hears_once_of_a_run(wandb: SimpleNamespace, tmp_path: Path) -> None:
    (sink,) = MonitorSink.open(WANDB, tmp_path, 0)
    sink.write(STATS)
    sink.close()
    assert wandb.runs == [{"project": "pet", "group": "av45", "entity": "lab"}]
    assert wandb.logged["generator/loss_nsp"] == (0.75, 12)
    assert wandb.logged["discriminator/loss_nsp"] == (0.25, 12)
    assert not [name for name in wandb.logged if name.startswith("Train/")]
    assert os.environ["WANDB_CONSOLE"] == "off"  # lines of errors name subjects


@alone
def test_weights_and_biases_that_refuses_is_one_line(
    wandb: SimpleNamespace, tmp_path: Path
) -> None:
    wandb.refusal = "api_key not configured"
    with pytest.raises(PlatformError, match="found api_key not configured; log in"):
        MonitorSink.open(WANDB, tmp_path, 0)


class Refused(Exception):
    """What wandb raises."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What DeepSpeed calls of the package, which sends to a service on the internet."""
    for name in ("WANDB_CONSOLE", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    seen = SimpleNamespace(runs=[], logged={}, refusal=None, Error=Refused)

    def init(**settings: str) -> None:
        if seen.refusal:
            raise Refused(seen.refusal)
        seen.runs.append(settings)

    def log(data: dict[str, float], step: int, commit: bool | None) -> None:
        seen.logged |= {name: (value, step) for name, value in data.items()}

    seen.init, seen.log = init, log
    monkeypatch.setitem(sys.modules, "wandb", seen)
    return seen


@needs_tensorboard
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_of_two_ranks_writes_one_file_of_both_networks(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    recipe, run = tmp_path / "recipe", tmp_path / "run"
    recipe.mkdir()
    (recipe / "run.yaml").write_text(f"base: {RECIPE}\ncheckpoint_every: 2\n")
    (recipe / "generator.json").write_text(json.dumps(TENSORBOARD))
    options = ("--config", recipe, "--data", prepared, "--output", run, "--max-steps")
    for steps in (2, 4):
        process = launch(*options, steps)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    files = sorted(run.glob("**/*tfevents*"))
    assert len(files) == 2  # one a start, of rank 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curves = scalars(run / "tensorboard")
    for name, key in (
        ("generator/loss_l1", "loss_l1"),
        ("generator/loss_mlm", "loss_mlm_generator"),
        ("discriminator/loss_mlm", "loss_mlm_discriminator"),
        ("generator/learning_rate", "learning_rate_generator"),
        ("tokens_pet_real/in_range", "token_share_pet_real_in_range"),
    ):
        logged = [(line["samples_seen"], pytest.approx(line[key], rel=1e-6)) for line in lines]
        assert curves[name] == logged, name
    assert [name for name in curves if name.startswith("Train/")] == []
