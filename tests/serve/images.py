"""T1w images as bytes, each of another head; and a model that has seen heads like them."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from ganbert.data.conform import conform_mri
from ganbert.data.nifti import from_nibabel
from ganbert.model_card import read_card
from ganbert.run_folder import CARD_NAME
from ganbert.seen import measure_mri, summarise_seen
from tests.bids_tree import affine, head


def t1w(seed: int, *, packed: bool = True) -> bytes:
    """Return a NIfTI of 16 x 18 x 14 voxels."""
    content = nib.Nifti1Image(head(seed).astype(np.float32), affine()).to_bytes()
    return gzip.compress(content, 1, mtime=0) if packed else content


def large_t1w(edge: int = 140) -> bytes:
    """Return a NIfTI that a worker is busy with for a while."""
    x = np.linspace(-1, 1, edge, dtype=np.float32)
    ball = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < 0.5
    noise = np.random.default_rng(0).random((edge,) * 3, np.float32)
    place = np.diag([250 / edge] * 3 + [1.0])
    image = nib.Nifti1Image((ball * (500 + 300 * noise)).astype(np.int16), place)
    return image.to_bytes()


def cut_t1w() -> bytes:
    """Return a head like the others, of which the image holds the upper half."""
    content = head(1)[:, :, 7:]
    place = affine()
    place[:3, 3] = nib.affines.apply_affine(affine(), [0, 0, 7])
    return nib.Nifti1Image(content, place).to_bytes()


def noisy_t1w() -> bytes:
    """Return a head in air that is nearly as bright: nothing that a T1w looks like."""
    air = np.random.default_rng(0).uniform(150, 350, head(1).shape)
    return nib.Nifti1Image(np.maximum(head(1), air).astype(np.float32), affine()).to_bytes()


def measured_export(export: Path, folder: Path) -> Path:
    """Return a copy of an export whose card says that its training images were such heads."""
    copy = folder / "export"
    shutil.copytree(export, copy)
    grid = read_card(export).mri_grid
    measured = []
    for seed in range(4):
        mri = from_nibabel(nib.Nifti1Image(head(seed), affine()))
        conformed = conform_mri(mri, grid).volume.array
        measured.append(measure_mri(conformed, grid.spacing_mm))
    seen = summarise_seen(measured)
    assert seen is not None
    card = json.loads((copy / CARD_NAME).read_text()) | {"seen": seen.model_dump(mode="json")}
    (copy / CARD_NAME).write_text(json.dumps(card))
    return copy
