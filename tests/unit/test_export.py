"""The export of any checkpoint is what training would have exported there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ganbert.checkpoint_files import TrainingState, checkpoint_folder, measure, write_manifest
from ganbert.errors import CheckpointError
from ganbert.export import export
from ganbert.model_card import read_card
from ganbert.predict import load_predictor


@pytest.fixture
def run(tiny_export: Path, tmp_path: Path) -> Path:
    """Three checkpoints, the second the best; their weights are multiples of the export's."""
    weights = load_file(tiny_export / "generator.safetensors")
    card = json.loads((tiny_export / "generator.json").read_text())
    del card["weights_sha256"]
    for step, score in ((1, 0.4), (2, 0.2), (3, None)):
        folder = checkpoint_folder(tmp_path, step)
        (folder / "generator" / "engine").mkdir(parents=True)
        model = {"module": {name: step * weight for name, weight in weights.items()}}
        torch.save(model, folder / "generator" / "engine" / "mp_rank_00_model_states.pt")
        (folder / "run.json").write_text(json.dumps({"card": card | {"num_steps": step}}))
        state = TrainingState(
            step=step, samples_seen=step, index_sha256="0" * 64, seed=0, validation_l1=score
        )
        (folder / "state.json").write_text(state.model_dump_json())
        files = [path for path in folder.rglob("*") if path.is_file()]
        write_manifest(folder, {str(file.relative_to(folder)): measure(file) for file in files})
    return tmp_path


@pytest.mark.parametrize(
    ("which", "step"), [("last", 3), ("best", 2), ("1", 1), ("00000002", 2), ("step-00000002", 2)]
)
def test_checkpoint_that_was_asked_for_is_exported(
    run: Path, tiny_export: Path, which: str, step: int
) -> None:
    folder = export(run, which)
    assert read_card(folder).num_steps == step
    first = load_file(tiny_export / "generator.safetensors")
    exported = load_file(folder / "generator.safetensors")
    assert all(torch.equal(exported[name], step * first[name]) for name in first)
    load_predictor(run, "cpu")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("4", "a checkpoint of step 4, found steps 1, 2, 3; give --checkpoint last, best or"),
        ("newest", "expected a checkpoint of step newest"),
        ("../1", "expected a checkpoint of step ../1"),
    ],
)
def test_checkpoint_that_is_not_there_is_one_line(run: Path, which: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        export(run, which)
    assert len(str(caught.value).splitlines()) == 1
    assert not (run / "export").exists()


def test_damaged_checkpoint_is_not_exported(run: Path) -> None:
    (checkpoint_folder(run, 2) / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"found a damaged one \(run.json: 2 bytes"):
        export(run, "best")
    with pytest.raises(CheckpointError, match="a damaged one"):
        export(run, "2")
    assert read_card(export(run)).num_steps == 3


def test_run_without_checkpoints_is_told_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    for which in ("last", "best", "1"):
        with pytest.raises(CheckpointError, match="found none; give the folder of a run"):
            export(run, which)


@pytest.mark.parametrize("description", [{}, {"card": 3}, {"card": {"tracer": "AV45"}}])
def test_checkpoint_without_a_card_is_one_line(run: Path, description: dict[str, Any]) -> None:
    folder = checkpoint_folder(run, 3)
    (folder / "run.json").write_text(json.dumps(description))
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    files = {name: measure(folder / name) for name in listed}
    write_manifest(folder, files)
    with pytest.raises(CheckpointError, match="expected the description of a run with its model"):
        export(run)


def test_export_writes_a_model_card_for_people(run: Path) -> None:
    page = (export(run, "best") / "MODEL_CARD.md").read_text()
    assert read_card(run / "export").weights_sha256 in page
    assert "| Optimiser steps | 2 |" in page
    assert "Synthetic images, for research only" in page
    assert "Not evaluated" in page
    assert "is not recorded, so that unusual ones cannot be flagged" in page
    assert "{{" not in page
    assert "\n\n\n\n" not in page


def test_the_model_card_has_the_evaluation_of_these_weights_alone(run: Path) -> None:
    weights = read_card(export(run, "best")).weights_sha256
    score = {"tracer": "AV45", "reference": "real", "mask": "head", "metric": "psnr",
             "num": 3, "low": 20.0, "high": 22.0}  # fmt: skip
    scores = [
        score | {"method": method, "mean": mean}
        for method, mean in (("ganbert", 21.5), ("mean_of_training", 19.25))
    ]
    summary = {"split": "test", "unit": "SUVR", "data_range": [0.0, 3.0], "num_steps": 2,
               "weights_sha256": weights, "results": scores}  # fmt: skip
    (run / "evaluation").mkdir()
    (run / "evaluation" / "summary.json").write_text(json.dumps(summary))
    row = "| real | head | psnr | 21.5 dB | 19.2 dB |"
    assert row in (export(run, "best") / "MODEL_CARD.md").read_text()
    assert row not in (export(run, "1") / "MODEL_CARD.md").read_text()
