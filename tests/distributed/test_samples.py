"""RUN/samples of a run that is resumed with another accumulation and another number of ranks."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ganbert.data.index import load_index
from ganbert.data.sample_order import SampleOrder
from ganbert.sample_log import read_samples

from .conftest import RECIPE, Launch
from .test_train import finish


def recipe_with(folder: Path, accumulation: int) -> Path:
    shutil.copytree(RECIPE, folder)
    run = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump(run | {"log_samples": True}))
    for name in ("generator.json", "discriminator.json"):
        engine = json.loads((folder / name).read_text())
        engine["gradient_accumulation_steps"] = accumulation
        (folder / name).write_text(json.dumps(engine))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_sample_of_the_stream_is_there_once_whatever_a_resume_changes(
    launch: Launch, prepared: Path, tmp_path: Path
) -> None:
    run, seen = tmp_path / "run", 0
    for number, (accumulation, num_ranks) in enumerate(((2, 2), (1, 2), (3, 1)), start=1):
        recipe = recipe_with(tmp_path / f"recipe-{number}", accumulation)
        options = ("--config", recipe, "--data", prepared, "--output", run)
        code, output = finish(launch(*options, "--max-steps", 4 * number, num_ranks=num_ranks))
        assert code == 0, output
        seen += 4 * accumulation * num_ranks
    samples = read_samples(run)
    assert list(samples) == list(range(seen))
    order = SampleOrder(num_rows=len(load_index(prepared).select("train")), seed=3)
    assert [row for _, row in samples.values()] == [order.sample(k) for k in range(seen)]
