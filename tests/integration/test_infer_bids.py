"""The official BIDS validator and pybids accept what `infer` writes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids import BIDSLayout
from nilearn.datasets import load_mni152_brain_mask
from rich.console import Console

from ganbert.infer import InferOptions, infer

VALIDATOR = shutil.which("bids-validator-deno", path=Path(sys.executable).parent) or shutil.which(
    "bids-validator-deno"
)


@pytest.fixture
def out(tmp_path: Path, tiny_export: Path) -> Path:
    x, y, z = np.mgrid[:30, :36, :32]
    ball = 500.0 * ((x - 15) ** 2 + (y - 17) ** 2 + (z - 16) ** 2 < 12**2)
    image = nib.Nifti1Image(ball.astype(np.float32), np.diag([6.0, 6.0, 6.0, 1.0]))
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz"):
        (tmp_path / "bids" / name).parent.mkdir(parents=True)
        nib.save(image, tmp_path / "bids" / name)
    out = tmp_path / "bids" / "derivatives" / "ganbert"
    options = InferOptions(passes=2)  # the maps of uncertainty are to be valid too
    infer(
        tmp_path / "bids", out, model=tiny_export, options=options,
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    return out


needs_validator = pytest.mark.skipif(VALIDATOR is None, reason="no bids-validator-deno here")


def errors_of(dataset: Path) -> list[tuple[str, str | None]]:
    command = [str(VALIDATOR), str(dataset), "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    return [(i["code"], i.get("subCode")) for i in issues if i["severity"] == "error"]


@needs_validator
def test_the_official_validator_reports_no_error(out: Path) -> None:
    assert errors_of(out) == []


@needs_validator
def test_the_validator_would_see_a_missing_key(out: Path) -> None:
    sidecar = next(out.rglob("*_desc-synth_pet.json"))
    content = json.loads(sidecar.read_text())
    del content["SkullStripped"]
    sidecar.write_text(json.dumps(content))
    assert errors_of(out) == [("SIDECAR_KEY_REQUIRED", "SkullStripped")]


@needs_validator
def test_the_sidecar_answers_every_key_that_an_acquired_pet_needs(
    out: Path, tmp_path: Path
) -> None:
    """In derivatives the validator does not ask for them, readers of PET do."""
    raw = tmp_path / "raw"
    (raw / "sub-01" / "pet").mkdir(parents=True)
    for file in (out / "sub-01" / "pet").iterdir():
        name = file.name.replace("_space-T1w_desc-synth", "")
        shutil.copy(file, raw / "sub-01" / "pet" / name)
    description = {"Name": "as if raw", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (raw / "dataset_description.json").write_text(json.dumps(description))
    assert errors_of(raw) == []


def test_pybids_finds_the_images_by_what_they_are(out: Path) -> None:
    layout = BIDSLayout(out, validate=False)
    found = layout.get(suffix="pet", space="T1w", desc="synth", extension=".nii.gz")
    assert [(f.entities["subject"], f.entities.get("session")) for f in found] == [
        ("01", None), ("02", "b"),
    ]  # fmt: skip
    assert found[0].get_metadata()["Units"] == "SUVR"


def test_a_real_t1w_gets_a_pet_that_lies_on_its_brain(
    tmp_path: Path, tiny_export: Path, repository: Path
) -> None:
    """The MNI152 template, by way of the script that the demo uses."""
    script = repository / "benchmarks" / "real_t1w.py"
    command = [sys.executable, str(script), str(tmp_path / "mni")]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    assert (
        subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    )
    again = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    console = Console(file=io.StringIO())
    image = nib.load(
        infer(tmp_path / "mni", tmp_path / "out", model=tiny_export, console=console).images[0]
    )
    mask = load_mni152_brain_mask(resolution=4)
    brain = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0))
    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape[:3]) - 1) / 2)
    assert np.linalg.norm(centre - brain.mean(axis=0)) < 15.0
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), brain)
    inside = ((voxels > -0.5) & (voxels < np.array(image.shape[:3]) - 0.5)).all(axis=1)
    assert inside.mean() > 0.98
