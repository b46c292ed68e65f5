"""A tiny BIDS tree made with nibabel alone: a fixture that shares no code with what it tests."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (16, 18, 14)  # x, y, z
SPACING_MM = 12.0
TRACER_NAMES = {"18FAV45": "florbetapir", "18FAV1451": "flortaucipir"}


def head(seed: int) -> np.ndarray:
    """Return (X, Y, Z) float32: a bright ball with structure, dark outside."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    radius = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    inside = radius < 0.7
    return (inside * (400 + 200 * rng.random(SHAPE))).astype(np.float32)


def affine() -> np.ndarray:
    """Return the RAS+ affine that puts the middle of the image at (0, 0, 0) mm."""
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    matrix[:3, 3] = -SPACING_MM * (np.array(SHAPE) - 1) / 2
    return matrix


def write_image(path: Path, array: np.ndarray) -> None:
    """Write (X, Y, Z[, T]) with `affine()`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine()).to_filename(path)


def write_t1w(root: Path, subject: str, session: str | None = None) -> Path:
    """Write a T1w and return its path."""
    folder, stem = _place(root, subject, session)
    path = folder / "anat" / f"{stem}_T1w.nii.gz"
    write_image(path, head(_seed(subject)))
    return path


def write_pet(
    root: Path, subject: str, session: str | None = None, tracer: str | None = "18FFDG", **keys
) -> Path:
    """Write a PET of two frames with its sidecar; `keys` replace the sidecar's (None: removed)."""
    folder, stem = _place(root, subject, session)
    name = f"{stem}_trc-{tracer}_pet" if tracer else f"{stem}_pet"
    path = folder / "pet" / f"{name}.nii.gz"
    frame = head(_seed(subject)) / 300
    write_image(path, np.stack([frame, 0.5 * frame], axis=-1))
    sidecar = {
        "Units": "SUVR",
        "TracerName": TRACER_NAMES.get((tracer or "").partition("_")[0], "fluorodeoxyglucose"),
        "FrameTimesStart": [1800, 2400],
        "FrameDuration": [600, 600],
    } | keys
    content = {key: value for key, value in sidecar.items() if value is not None}
    path.with_suffix("").with_suffix(".json").write_text(json.dumps(content))
    return path


def write_tree(root: Path, num_subjects: int) -> Path:
    """Write a dataset of pairs, sub-01, sub-02, ..., and return its root."""
    write_description(root)
    for number in range(1, num_subjects + 1):
        write_t1w(root, f"{number:02d}")
        write_pet(root, f"{number:02d}")
    return root


def write_description(root: Path, **keys) -> None:
    """Write `dataset_description.json`."""
    root.mkdir(parents=True, exist_ok=True)
    content = {"Name": "tiny", "BIDSVersion": "1.10.0"} | keys
    (root / "dataset_description.json").write_text(json.dumps(content))


def _seed(subject: str) -> int:
    return sum(subject.encode())


def _place(root: Path, subject: str, session: str | None) -> tuple[Path, str]:
    if session is None:
        return root / f"sub-{subject}", f"sub-{subject}"
    return root / f"sub-{subject}" / f"ses-{session}", f"sub-{subject}_ses-{session}"
