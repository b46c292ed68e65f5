"""ZeRO 1 under the real launcher: its checkpoints hold a part of the optimiser for each rank."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganbert.checkpoint import list_checkpoints
from ganbert.errors import EXIT_USER_ERROR

from .conftest import RECIPE, Launch
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


def cut_in_half(whole: Path, cut: Path) -> Path:
    """The run as it was at its first checkpoint."""
    shutil.copytree(whole, cut)
    _, last = list_checkpoints(cut)
    shutil.rmtree(last)
    shutil.rmtree(cut / "export")
    return cut


def one_error(output: str) -> str:
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if "error:" in line]
    assert len(lines) == 1, output
    return lines[0]


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

    cut = cut_in_half(whole, tmp_path / "cut")
    before = (cut / "run.json").read_bytes()
    code, output = finish(launch(*options, cut, num_ranks=1))
    assert code == EXIT_USER_ERROR, output
    assert "number of ranks as in the run that is resumed: 2, found 1" in one_error(output)
    assert (cut / "run.json").read_bytes() == before, "a refused resume leaves no trace"

    code, output = finish(launch(*options, cut))
    assert code == 0, output
    expected, actual = weights_of(whole), weights_of(cut)
    assert expected.keys() == actual.keys()
    assert all(bool((expected[name] == actual[name]).all()) for name in expected)
    # The log is only appended to: of a step that was done twice, the later line counts.
    losses = [
        {line["step"]: line["loss_mlm_discriminator"] for line in read_log(run)}
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]
