"""The first steps of a training against numbers that are kept here: what nobody meant to change.

A short run of the demo's recipe on a tiny cohort, through phantom, `prepare`, DALI, both networks,
all terms, both engines and the schedule, and the scores of a method that needs no training.
If a change of the code moves a number, every stored table is of older code.

The numbers hold on any CPU. With one thread and with two, with AVX-512, AVX2 and SSE 4.1 they
differed by 2e-7 at most. They drift apart afterwards: after 300 steps by 0.3 % of the loss
(docs/results.md, "The same numbers again"), so a longer run could not be held to anything.

To renew them after a change that is meant: copy what the failure prints, and in the same commit say
in docs/results.md and docs/decisions/0006-taming.md that the tables there are of the code before,
and in CHANGELOG.md what moved and by how much.
"""

import csv
import json
from pathlib import Path

import pytest

from ganbert.evaluate import evaluate

from .conftest import Launch

RELATIVE = 1e-4
TRAJECTORY = {
    "learning_rate_generator": [
        0,
        0.001,
        0.002,
        0.001666667,
        0.001333333,
        0.001,
        0.0006666667,
        0.0003333333,
    ],
    "loss_l1": [2.134437, 1.997655, 2.103924, 1.805411, 1.896574, 1.794519, 1.595033, 1.663182],
    "loss_nsp_generator": [
        0.7030927,
        0.7030994,
        0.6554867,
        0.6720234,
        0.7096705,
        0.7139766,
        0.7030264,
        0.69295,
    ],
    "loss_mlm_generator": [
        9.190989,
        9.212045,
        9.07089,
        8.83694,
        8.801071,
        8.76861,
        8.681446,
        8.62992,
    ],
    "loss_nsp_discriminator": [
        0.6931867,
        0.6931831,
        0.693188,
        0.6938462,
        0.6932876,
        0.6931357,
        0.6931916,
        0.6930218,
    ],
    "loss_mlm_discriminator": [
        9.198552,
        9.189374,
        9.197947,
        9.052929,
        8.935323,
        8.856896,
        8.688393,
        8.695422,
    ],
}
# PSNR (dB) and SSIM of the mean of the training PETs within the head, by test subject.
MEAN_OF_TRAINING = {"005": (23.1193, 0.918943), "007": (22.2446, 0.900437)}


def test_the_first_steps_are_those_that_the_tables_began_with(
    launch: Launch,
    prepared: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run, recipe = tmp_path / "run", repository / "ds_configs" / "demo"
    options = ("--config", recipe, "--data", prepared, "--output", run, "--max-steps", 8)
    process = launch(*options, num_ranks=1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = {name: [line[name] for line in log] for name in TRAJECTORY}
    assert found == {
        name: pytest.approx(numbers, rel=RELATIVE) for name, numbers in TRAJECTORY.items()
    }, f"see the docstring of this file; found {json.dumps(found)}"

    evaluate(run, device="cpu")
    with (run / "evaluation" / "metrics.tsv").open() as stream:
        scores = {
            row["subject"]: (float(row["psnr"]), float(row["ssim"]))
            for row in csv.DictReader(stream, delimiter="\t")
            if (row["method"], row["mask"], row["reference"])
            == ("mean_of_training", "head", "real")
        }
    assert scores == {
        subject: pytest.approx(figures, rel=RELATIVE)
        for subject, figures in MEAN_OF_TRAINING.items()
    }
