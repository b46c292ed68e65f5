"""ZeRO 1 under the real launcher: its checkpoints hold a part of the optimiser for each rank.

Any number of ranks can read them: what two have written one reads and writes, and two again.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ganbert.checkpoint_files import find_damage, list_checkpoints
from tests.saved_engines import assert_same, engines_of

from .conftest import RECIPE, Launch, free_port
from .test_train import finish, read_log, weights_of


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe at ZeRO 1, with a checkpoint half-way."""
    folder = tmp_path / "recipe"
    shutil.copytree(RECIPE, folder)
    for name in ("generator.json", "discriminator.json"):
        text = (folder / name).read_text()
        assert '"stage": 0' in text
        (folder / name).write_text(text.replace('"stage": 0', '"stage": 1'))
    run = yaml.safe_load((folder / "run.yaml").read_text())
    run |= {"max_steps": 10, "checkpoint_every": 5}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


def damage_last(whole: Path, cut: Path) -> Path:
    """The run with its last checkpoint torn: a rank's part of an optimiser is half."""
    shutil.copytree(whole, cut)
    _, last = list_checkpoints(cut)
    part = sorted(last.glob("generator/engine/*zero_pp_rank_1_*"))[0]
    os.truncate(part, part.stat().st_size // 2)
    shutil.rmtree(cut / "export")
    return cut


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_partitioned_run_resumes_on_as_many_ranks_to_the_weights_of_an_undisturbed_one(
    launch: Launch, prepared: Path, recipe: Path, tmp_path: Path
) -> None:
    options: tuple[Any, ...] = ("--config", recipe, "--data", prepared, "--output")
    whole = tmp_path / "whole"
    code, output = finish(launch(*options, whole))
    assert code == 0, output
    parts = list(list_checkpoints(whole)[0].glob("*/engine/*zero_pp_rank_*optim_states.pt"))
    assert len(parts) == 4, "two networks, two ranks"

    cut = damage_last(whole, tmp_path / "cut")
    code, output = finish(launch(*options, cut))
    assert code == 0, output
    first, last = (folder.name for folder in list_checkpoints(cut))
    (warning,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: checkpoint {last} is damaged (generator/engine/")
    assert warning.endswith(f"); going on from {first}")
    assert (cut / "checkpoints" / f"{last}.damaged").is_dir()
    assert find_damage(cut / "checkpoints" / last) is None
    expected, actual = weights_of(whole), weights_of(cut)
    assert expected.keys() == actual.keys()
    assert all(bool((expected[name] == actual[name]).all()) for name in expected)
    # The log is only appended to: of a step that was done twice, the later line counts.
    losses = [
        {line["step"]: line["loss_mlm_discriminator"] for line in read_log(run)}
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]

    # On another number of ranks: nothing is left to learn, and what was read is exported.
    shutil.rmtree(cut / "export")
    code, output = finish(launch(*options, cut, num_ranks=1))
    assert code == 0, output
    assert "resumed with other settings: number of ranks 2 -> 1" in output
    read = weights_of(cut)
    assert all(bool((expected[name] == read[name]).all()) for name in expected)


def save_on(num_ranks: int, folder: Path, given: Path | None = None) -> Path:
    """Have so many ranks train (or read `given`) and save; see `tests.zero_ranks`."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.zero_ranks", folder, *([given] if given else [])],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            | {"WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks)}
            | {"MASTER_ADDR": "127.0.0.1"},
            cwd=Path(__file__).parents[2],
        )
        for rank in range(num_ranks)
    ]
    assert [rank.wait(120) for rank in ranks] == [0] * num_ranks
    (saved,) = list_checkpoints(folder)
    return saved


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_one_rank_and_two_again_lose_nothing(tmp_path: Path) -> None:
    two = save_on(2, tmp_path / "two")
    one = save_on(1, tmp_path / "one", two)
    again = save_on(2, tmp_path / "again", one)
    before, between, after = (engines_of(folder) for folder in (two, one, again))
    assert len(before) == 6, "two networks: their weights, and a part of the optimiser each rank"
    assert len(between) == 4
    assert_same(before, after)
    for name, whole in between.items():
        if "optim_states" in name:
            second = before[name.replace("rank_0_", "rank_1_")]["optimizer_state_dict"]
            first = before[name]["optimizer_state_dict"]
            (merged,) = whole["optimizer_state_dict"]["single_partition_of_fp32_groups"]
            halves = [part["single_partition_of_fp32_groups"][0] for part in (first, second)]
            assert torch.equal(merged, torch.cat(halves))
            assert bool(first["base_optimizer_state"]["state"][0]["exp_avg"].any())
        else:
            assert_same(before[name]["module"], whole["module"])
