"""A cohort of two tracers under the real launcher: one of them is trained on, and judged."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.index import Index, load_index
from ganbert.data.phantom import make_cohort
from ganbert.errors import EXIT_USER_ERROR
from ganbert.evaluate import evaluate
from ganbert.prepare import prepare
from ganbert.sample_log import read_samples

from .conftest import RECIPE, Launch
from .test_train import finish, read_log

NUM_STEPS = 6


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: AV45 of ten subjects, and FDG of the first six of them."""
    folder = tmp_path_factory.mktemp("two")
    for tracer, number in (("AV45", 10), ("FDG", 6)):
        make_cohort(
            folder / tracer, num_subjects=number, tracer=tracer, seed=5, size="tiny", jobs=1
        )
    # The same seed is the same people.
    for pet in folder.glob("FDG/**/sub-*_trc-18FFDG*"):
        shutil.copy(pet, folder / "AV45" / pet.relative_to(folder / "FDG"))
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "AV45", folder / "prepared", seed=0, jobs=1, **grids)
    return folder / "prepared"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(RECIPE, tmp_path / "recipe"))
    run = yaml.safe_load((folder / "run.yaml").read_text())
    run |= {"max_steps": NUM_STEPS, "checkpoint_every": 3, "log_samples": True}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


def subjects(index: Index, split: str, tracer: str) -> set[str]:
    return {row.subject for row in index.rows if (row.split, row.tracer) == (split, tracer)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_of_one_tracer_from_the_shards_to_the_evaluation(
    launch: Launch, both: Path, recipe: Path, tmp_path: Path
) -> None:
    index, run = load_index(both), tmp_path / "run"
    assert {tracer: len(index.select("train", tracer)) for tracer in ("AV45", "FDG")} == {
        "AV45": 7,
        "FDG": 4,
    }
    options = ("--config", recipe, "--data", both, "--output", run)
    code, output = finish(launch(*options, "--tracer", "FDG"))
    assert code == 0, output

    seen = read_samples(run)
    samples = [row for _, row in seen.values()]
    assert list(seen) == list(range(NUM_STEPS * 2 * 2))
    assert [rank for rank, _ in seen.values()] == [0, 1] * NUM_STEPS * 2
    for epoch in range(len(samples) // 4):
        assert sorted(samples[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
    assert read_log(run)[-1]["epoch"] == len(samples) / 4
    card = json.loads((run / "export/generator.json").read_text())
    ratio = index.intensity_ratio["FDG"]
    assert (card["tracer"], card["num_training_rows"]) == ("FDG", 4)
    assert card["intensity_ratio"] == pytest.approx(ratio)

    with (evaluate(run, device="cpu") / "metrics.tsv").open(newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    assert {line["tracer"] for line in lines} == {"FDG"}
    assert {line["subject"] for line in lines} == subjects(index, "test", "FDG")

    # Going on with the other one would forget what was learnt.
    code, output = finish(launch(*options, "--tracer", "AV45", "--max-steps", 9, num_ranks=1))
    assert code == EXIT_USER_ERROR
    (line,) = [line for line in output.splitlines() if "error:" in line]
    assert "tracer as in the run that is resumed: FDG, found AV45" in line


@pytest.mark.timeout(120)
def test_a_tracer_must_be_named_and_the_launcher_is_not_started_without(
    both: Path, recipe: Path, tmp_path: Path, repository: Path
) -> None:
    command = [sys.executable, "-m", "ganbert.cli", "train", "--output", str(tmp_path / "run")]
    command += ["--config", str(recipe), "--data", str(both)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == EXIT_USER_ERROR
    (line,) = result.stderr.splitlines()
    assert line.endswith("found AV45, FDG; choose one with --tracer")
    assert not (tmp_path / "run").exists()
