"""A point keeps its place in the world: dataset -> cache -> pipeline -> network -> output affine.

Each subject has a bright spot at a random point of a head, in T1w and PET alike, painted from its
world coordinates onto grids of any axis order, direction and voxel size, and stored in any of the
forms that NIfTI has. Wherever the spot is found afterwards, the affine there must say the same
point, within half a voxel.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import inv_ornt_aff
from rich.console import Console
from scipy import ndimage

import ganbert.infer
from ganbert.config import GRIDS
from ganbert.data.index import Index, load_index
from ganbert.data.loader import build_loader
from ganbert.data.nifti import read_cache
from ganbert.infer import infer
from ganbert.model_card import read_card
from ganbert.predict import Predictor
from ganbert.prepare import prepare
from tests.bids_tree import write_description, write_pet
from tests.unit.test_nifti import ORIENTATIONS

MRI_GRID, PET_GRID = GRIDS["small"]
QUIET = Console(quiet=True)
SPOT_MM = 9.0  # standard deviation


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Up to about 25 degrees around any axis: rows to columns orthonormal."""
    x, y, z = rng.normal(size=3)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / np.sqrt(x * x + y * y + z * z)
    angle = np.deg2rad(rng.uniform(0, 25))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def native_grid(
    rng: np.random.Generator, orientation: np.ndarray, centre: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine, (i, j, k, 1) to RAS+ mm, of a grid that holds a head at `centre`."""
    spacing = rng.uniform(3.0, 6.0, size=3)
    shape = np.ceil(240.0 / spacing).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(rng) * spacing
    matrix[:3, 3] = centre - matrix[:3, :3] @ ((shape - 1) / 2)
    turned = matrix @ inv_ornt_aff(orientation, shape)
    order = np.argsort(orientation[:, 0])
    return tuple(int(n) for n in shape[order]), turned


def paint(shape: tuple[int, ...], affine: np.ndarray, centre: np.ndarray, spot: np.ndarray) -> Any:
    """Return (I, J, K): a head of 300 with a spot of up to 1200 in it."""
    index = np.indices(shape).reshape(3, -1)
    world = (affine[:3, :3] @ index + affine[:3, 3:]).T
    radius = np.linalg.norm((world - centre) / (70.0, 85.0, 80.0), axis=1)
    bump = np.exp(-((world - spot) ** 2).sum(axis=1) / (2 * SPOT_MM**2))
    return ((300.0 + 900.0 * bump) * (radius < 1)).reshape(shape)


STORAGES = ("float", "integers", "big-endian", "nifti2", "qform")


def store(path: Path, array: np.ndarray, affine: np.ndarray, storage: str) -> None:
    kind = nib.Nifti2Image if storage == "nifti2" else nib.Nifti1Image
    header = kind.header_class(endianness=">" if storage == "big-endian" else "<")
    data = array.astype(np.float32)
    if storage in ("integers", "big-endian"):
        header.set_data_dtype(np.dtype("i2").newbyteorder(header.endianness))
        data = np.rint((array + 50) / 0.05 - 10_000)
    image = kind(data, affine, header)
    if storage in ("integers", "big-endian"):
        image.header.set_slope_inter(0.05, 450.0)
    if storage == "qform":
        image.set_qform(affine, "scanner")
        image.set_sform(None)
    image.to_filename(path)


def write_cohort(root: Path, seeds: range) -> dict[str, np.ndarray]:
    """Write a subject for each seed and return where its spot is, RAS+ mm."""
    write_description(root)
    spots = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        subject = f"{seed:03d}"
        centre = rng.uniform(-60, 60, size=3)
        spots[subject] = spot = centre + rng.uniform(-30, 30, size=3)
        storage = STORAGES[seed % len(STORAGES)]
        mri = root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        mri.parent.mkdir(parents=True)
        grid = native_grid(rng, ORIENTATIONS[seed % 48], centre)
        array = paint(*grid, centre, spot)
        # As some tools write a single volume.
        store(mri, array[..., None] if seed % 2 else array, grid[1], storage)
        pet = write_pet(root, subject)
        grid = native_grid(rng, ORIENTATIONS[rng.integers(48)], centre)
        array = paint(*grid, centre, spot) / 300
        store(pet, np.stack([array, array], -1), grid[1], storage)
    return spots


def find_spot(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of the spot in mm, and the edges of a voxel, mm."""
    array = array - array.min()
    plateau = np.median(array[array > 0.15 * array.max()])
    bright = np.clip(array - (plateau + array.max()) / 2, 0, None)
    pieces, _ = ndimage.label(bright > 0)
    bright[pieces != pieces.flat[bright.argmax()]] = 0
    middle = ndimage.center_of_mass(bright)
    return (affine @ [*middle, 1])[:3], np.linalg.norm(affine[:3, :3], axis=0)


def assert_there(array: np.ndarray, affine: Any, spot: np.ndarray, what: str) -> None:
    affine = np.asarray(affine)
    found, edges = find_spot(np.asarray(array, np.float64), affine)
    # Along the axes of the grid, in its voxels.
    off = np.linalg.solve(affine[:3, :3], found - spot)
    assert np.abs(off).max() < 0.5, f"{what}: {np.round(off, 2)} voxels of {edges} mm"


class Lens(torch.nn.Module):
    """Instead of the generator: shows the MRI on the PET grid, which has the same centre."""

    def forward(self, mri: torch.Tensor) -> torch.Tensor:
        (size,), ratio = set(MRI_GRID.shape), PET_GRID.spacing_mm[0] / MRI_GRID.spacing_mm[0]
        axes = [(np.arange(n) - (n - 1) / 2) * ratio + (size - 1) / 2 for n in PET_GRID.shape]
        places = np.meshgrid(*axes, indexing="ij")
        seen = ndimage.map_coordinates(mri[0, 0].numpy(), places, order=1)
        return torch.from_numpy(np.stack([seen, seen])[None])


def check_cache(index: Index, out: Path, spots: dict[str, np.ndarray]) -> None:
    for row in index.rows:
        for image in (row.mri, row.pet):
            # With nibabel alone, as any viewer would.
            shown = nib.load(out / image.path)
            array = shown.get_fdata()[..., 0]
            assert_there(array, shown.affine, spots[row.subject], image.path)
            again = read_cache(out / image.path)
            np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)


def check_batches(index: Index, out: Path, spots: dict[str, np.ndarray]) -> None:
    rows = index.select("train")
    with build_loader(
        out,
        index,
        "train",
        intensity_ratio=index.intensity_ratio["FDG"],
        micro_batch=1,
        rank=0,
        world_size=1,
        seed=0,
        start_micro_step=0,
        num_micro_steps=len(rows),
        device_id=None,
    ) as loader:
        seen = set()
        for batch in loader:
            row = rows[batch.rows[0]]
            spot = spots[row.subject]
            assert_there(batch.mri[0, 0].numpy(), row.mri.affine, spot, f"batch {row.subject}")
            for frame in batch.pet_real[0]:
                assert_there(frame.numpy(), row.pet.affine, spot, f"batch {row.subject}")
            seen.add(row.subject)
    assert len(seen) == len(rows)


def check_round_trip(tmp_path: Path, seeds: range, export: Path, patch: pytest.MonkeyPatch) -> None:
    spots = write_cohort(tmp_path / "bids", seeds)
    out = tmp_path / "out"
    result = prepare(
        tmp_path / "bids",
        out,
        mri_grid=MRI_GRID,
        pet_grid=PET_GRID,
        fractions=(1.0, 0.0, 0.0),
        jobs=1,
        console=QUIET,
    )
    assert not result.refusals
    index = load_index(out)
    check_cache(index, out, spots)
    check_batches(index, out, spots)
    card = read_card(export).model_copy(update={"mri_grid": MRI_GRID, "pet_grid": PET_GRID})
    predictor = Predictor(Lens(), card, torch.device("cpu"))  # type: ignore[arg-type]
    patch.setattr(ganbert.infer, "load_predictor", lambda *_: predictor)
    images = infer(tmp_path / "bids", tmp_path / "synthetic", model=export, console=QUIET).images
    assert len(images) == len(spots)
    for path in images:
        subject = path.name.removeprefix("sub-").split("_")[0]
        image = nib.load(path)
        assert_there(image.get_fdata()[..., 0], image.affine, spots[subject], path.name)


def test_a_point_stays_where_it_was(
    tmp_path: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_round_trip(tmp_path, range(0, 48, 7), tiny_export, monkeypatch)


@pytest.mark.slow
def test_a_point_stays_where_it_was_in_all_axis_orders(
    tmp_path: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_round_trip(tmp_path, range(48, 96), tiny_export, monkeypatch)
