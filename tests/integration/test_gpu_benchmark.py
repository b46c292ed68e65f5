"""benchmarks/gpu.py on the CPU, small: what needs no GPU runs, what cannot run says why."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "data" / "recipe_tiny"
SMALL = ["--size", "tiny", "--device", "cpu", "--recipe", str(RECIPE)]
SMALL += ["--steps", "2", "--seconds", "0.1"]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/ as the others see it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rates_and_inference_have_figures(module: Any, tmp_path: Path) -> None:
    options = module("gpu").parse(["--out", str(tmp_path), *SMALL])
    parts = module("gpu_parts")
    rates = parts.run_part("rates", options)
    assert len(rates) == 6
    assert all(rate > 0 for rate in rates.values())
    for precision in ("bf16", "fp32"):
        found = parts.run_part(f"inference:ganbert:{precision}", options)
        assert 0 < found["p50_seconds"] <= found["p99_seconds"]


def test_counts_are_those_of_two_other_countings(module: Any) -> None:
    step, work, scaling = module("step"), module("work"), module("scaling")
    recipe = step.recipe_in("bf16", 2, RECIPE)
    found = work.count_work(recipe, "tiny", "bf16")
    in_all = found.convolutions + found.products + found.again
    assert in_all == scaling.count(recipe, "tiny").operations
    # PyTorch's counter knows what is left out, and that attention has a full backward pass even
    # where BERT is frozen.
    assert found.counted == pytest.approx(in_all, rel=0.1)
    assert found.least_bytes < found.written_bytes
    assert found.attention_bytes > 0
    without = module("switches").SWITCHES["no_checkpointing"].recipe(recipe)
    assert work.count_work(without, "tiny", "bf16").again == 0


def test_traffic_is_read_and_written_once(module: Any) -> None:
    numbers = torch.zeros(10, dtype=torch.float32, device="meta")
    with module("work").Traffic() as traffic:
        added = numbers + numbers  # two reads and a write
        added.view(2, 5).t()  # nothing
        added.add_(numbers)  # two reads and a write
    assert (traffic.bytes, traffic.operations) == (2 * 3 * 40, 2)
    with module("work").Traffic(square=5) as traffic:
        torch.zeros(2, 5, 5, device="meta").exp()
    assert (traffic.bytes, traffic.square_bytes) == (0, 3 * 200)


def test_floors_follow_from_rates_and_counts(module: Any) -> None:
    rates = {"product_flops": 100.0, "convolution_deep_contiguous_flops": 10.0,
             "convolution_deep_channels_last_flops": 20.0, "copy_bytes": 5.0}  # fmt: skip
    counts = {"products": 200.0, "convolutions": 40.0, "least_bytes": 30.0, "written_bytes": 300.0}
    found = module("gpu_tables").floors({"rates": rates, "counts": counts})
    assert found == {"arithmetic": 4.0, "memory": 6.0, "floor": 6.0, "written": 60.0}
    assert module("gpu_tables").floors({"rates": {"failed": "no torch"}}) == {}


@pytest.mark.parametrize("name", ["no_checkpointing", "half_top_channels", "padded_sequence",
                                  "micro_batch_4", "zero_1", "compiled_adam",
                                  "no_checkpointing_bert"])  # fmt: skip
def test_a_switch_of_the_recipe_changes_what_it_says(module: Any, name: str) -> None:
    recipe = module("step").recipe_in("bf16", 2, RECIPE)
    changed = module("switches").SWITCHES[name].recipe(recipe)
    assert changed != recipe
    in_all = {"no_checkpointing", "micro_batch_4", "zero_1", "compiled_adam"}
    if name in in_all:
        assert changed.run == recipe.run
        assert changed.generator_engine != recipe.generator_engine
    if name == "no_checkpointing_bert":
        assert changed.generator_engine == recipe.generator_engine
        assert "activation_checkpointing" not in changed.discriminator_engine


def test_one_look_for_overflows_sees_what_many_do(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime import utils

    before = utils.CheckOverflow.has_overflow_serial
    monkeypatch.setattr(utils.CheckOverflow, "has_overflow_serial", before)  # put back afterwards
    module("switches").SWITCHES["one_look_for_overflow"].start()
    assert utils.CheckOverflow.has_overflow_serial is not before
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    look = utils.CheckOverflow([weights]).has_overflow_serial
    assert look(weights) is before(None, weights) is False
    for wrong in (torch.inf, -torch.inf, torch.nan, 1.0):
        weights[1].grad = torch.tensor([0.0, wrong, 0.0])
        assert look(weights) is (wrong != 1.0)


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run("--out", str(tmp_path / "results"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected a GPU that torch can use, found none" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_measures_all_that_needs_no_gpu(tmp_path: Path) -> None:
    candidates = ["--candidates", "channels_last_3d", "cuda_graph_generator", "trusted_losses"]
    half = [f"{part}:bf16" for part in ("step:ganbert", "step:plain", "inference:monai")]
    parts = ["--parts", "rates", "counts", "data", "candidate", *half]
    done = run("--out", str(tmp_path), *SMALL, *candidates, *parts, "--minutes", "14")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    found = result["parts"]
    failed = {name: part["failed"] for name, part in found.items() if "failed" in part}
    # Five levels are too many for MONAI's UNet on windows of 16^3.
    expected = {"candidate:cuda_graph_generator", "inference:monai:bf16"}
    assert failed.keys() == expected, failed
    assert failed["candidate:cuda_graph_generator"] == "needs CUDA"
    for name in ("step:ganbert:bf16", "step:plain:bf16", "candidate:channels_last_3d"):
        part = found[name]
        assert part["step_seconds"] == pytest.approx(sum(part["seconds"].values()), rel=0.5)
        assert part["peak_allocated_bytes"] > 0
        learnt = ("generator backward", "discriminator optimiser", "judgement backward")
        assert all(part["seconds"][name] > 0 for name in learnt)
    assert found["step:ganbert:bf16"]["remark"] == "images come from the loader"
    assert {"date", "driver", "versions", "commit", "command"} <= result["about"].keys()
    for line in ("generator backward (ms)", "floor / step", "not measured: needs CUDA"):
        assert line in done.stdout
