"""From a nibabel image to PET, uncertainty and flags: the Python door, and how light it is."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import ganbert
from ganbert import load_generator
from ganbert.data.nifti import from_nibabel, read_volume
from ganbert.errors import CheckpointError, ConfigError, ImageError
from ganbert.predict import load_predictor
from ganbert.synthesis import (
    CHANGES,
    MAX_PASSES,
    Change,
    _move,
    augmented_pass,
    synthesise,
)


def head(codes: str = "RAS") -> nib.Nifti1Image:
    """A ball of tissue with a dark middle, off the world's origin, 6 mm voxels."""
    x, y, z = np.mgrid[:30, :36, :32]
    distance = np.sqrt((x - 15) ** 2 + (y - 17) ** 2 + (z - 16) ** 2)
    array = np.where(distance < 12, 500 - 80 * (distance < 4), 0).astype(np.float32)
    affine = np.array([[6, 0, 0, -80], [0, 6, 0, -110], [0, 0, 6, -60], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(array, affine)
    to_codes = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(to_codes)


def test_a_nibabel_image_goes_in_and_one_comes_out(tiny_export: Path) -> None:
    pet = load_generator(tiny_export)(head())
    assert isinstance(pet, nib.Nifti1Image)
    assert pet.shape == (10, 12, 10, 2)
    assert pet.get_data_dtype() == np.float32
    centre = nib.affines.apply_affine(pet.affine, (np.array(pet.shape[:3]) - 1) / 2)
    np.testing.assert_allclose(centre, [10, -8, 36], atol=4.0)


def test_it_is_what_the_file_gives(tiny_export: Path, tmp_path: Path) -> None:
    """In memory and from disk, in whatever order its axes lie."""
    generator = load_generator(str(tiny_export), device="cpu")
    nib.save(head("PIL"), tmp_path / "t1w.nii.gz")
    from_file = load_predictor(tiny_export, "cpu").predict(read_volume(tmp_path / "t1w.nii.gz"))
    for image in (head(), head("PIL"), nib.load(tmp_path / "t1w.nii.gz")):
        pet = generator(image)
        np.testing.assert_allclose(
            pet.get_fdata().transpose(3, 1, 2, 0), from_file.array, atol=1e-5
        )
    assert generator.card.tracer == "AV45"


def test_importing_ganbert_loads_nothing_heavy() -> None:
    code = "import sys, ganbert; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(result.stdout.decode().split())
    assert not loaded & {"torch", "numpy", "nibabel", "scipy", "pydantic", "deepspeed"}
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = ganbert.load_model


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing"):
        load_generator(tmp_path / "absent")


def without_orientation() -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.float32), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (nib.Nifti1Image(np.ones((8, 8), np.float32), np.eye(4)), "3D or 4D"),
        (nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), "finite"),
        (nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), "contrast"),
        (nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.diag([1, 1, 500, 1])), "voxels of"),
        (without_orientation(), "known orientation"),
        (nib.MGHImage(np.ones((8, 8, 8), np.float32), np.diag([1, 1, 500, 1])), "voxels of"),
    ],
)
def test_what_is_no_head_is_refused(
    image: nib.spatialimages.SpatialImage, message: str, tiny_export: Path
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_generator(tiny_export)(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("sub-01_T1w.nii.gz", "found a str; pass nibabel.load(path)"),
        (Path("sub-01_T1w.nii.gz"), "Path; pass nibabel.load(path)"),
        (np.ones((8, 8, 8)), "found a numpy.ndarray; pass nibabel.Nifti1Image(array, affine)"),
        (None, "found a NoneType"),
    ],
)
def test_what_is_no_nibabel_image_is_answered_with_what_to_pass(
    given: object, found: str, tiny_export: Path
) -> None:
    generator = load_generator(tiny_export)
    for call in (generator, generator.synthesise):
        with pytest.raises(TypeError, match="expected a nibabel image") as caught:
            call(given)
        assert found in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_image_is_named_by_its_file(tiny_export: Path, tmp_path: Path) -> None:
    two = nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 8, 2), np.float32), np.eye(4))
    with pytest.raises(ImageError, match=r"^image: expected one volume, found 2 volumes"):
        load_generator(tiny_export)(two)
    nib.save(two, tmp_path / "two.nii")
    with pytest.raises(ImageError, match=r"two\.nii: expected one volume"):
        load_generator(tiny_export).synthesise(nib.load(tmp_path / "two.nii"))


def test_uncertainty_is_repeatable_and_on_the_grid_of_the_pet(tiny_export: Path) -> None:
    generator = load_generator(tiny_export)
    first, second = (generator.synthesise(head(), passes=4) for _ in range(2))
    assert first.uncertainty is not None
    assert second.uncertainty is not None
    assert first.uncertainty.array.shape == first.pet.array.shape
    assert (first.uncertainty.affine == first.pet.affine).all()
    assert first.uncertainty.unit == "SUVR"
    assert np.array_equal(first.uncertainty.array, second.uncertainty.array)
    assert first.uncertainty.array.min() >= 0 < first.uncertainty.array.max()
    assert generator.synthesise(head()).uncertainty is None


def test_uncertainty_is_the_deviation_over_the_passes(tiny_export: Path) -> None:
    predictor = load_predictor(tiny_export, "cpu")
    result = synthesise(predictor, from_nibabel(head()), passes=4)
    answers = [augmented_pass(predictor, result.conformed, change) for change in CHANGES[:4]]
    known = np.ma.masked_invalid([result.pet.array, *answers])
    expected = np.ma.filled(known.std(axis=0, ddof=1), 0.0)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty.array, expected, atol=1e-5)


def test_a_pass_without_change_is_the_plain_one(tiny_export: Path) -> None:
    predictor = load_predictor(tiny_export, "cpu")
    result = synthesise(predictor, from_nibabel(head()))
    same = augmented_pass(predictor, result.conformed, Change((0, 0, 0), 1.0))
    np.testing.assert_allclose(same, result.pet.array, atol=1e-5)


def test_a_moved_head_is_moved_back() -> None:
    """With a network that only averages, the answer to a moved head is the answer, moved back."""
    from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID, GeneratorConfig, ModelCard
    from ganbert.data.conform import ConformedMri
    from ganbert.data.volume import Volume

    class Averages:
        card = ModelCard(
            ganbert_version="0", generator=GeneratorConfig(), mri_grid=TINY_MRI_GRID,
            pet_grid=TINY_PET_GRID, intensity_ratio=1.0, tracer="AV45", unit="SUVR",
            data_range=(0.0, 1.0), frame_start_s=(0.0, 1.0), frame_duration_s=(1.0, 1.0),
            num_steps=1, num_training_rows=1, index_sha256="", weights_sha256="",
        )  # fmt: skip

        def predict_conformed(self, mri: np.ndarray, mean: float, std: float) -> np.ndarray:
            # The PET's field of view, two MRI voxels to one of the PET.
            d, h, w = TINY_PET_GRID.shape
            middle = mri[0, 16 - d : 16 + d, 16 - h : 16 + h, 16 - w : 16 + w]
            return np.stack(2 * [middle.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5))])

    d, h, w = np.mgrid[:32, :32, :32]
    blob = 200 * np.exp(-((d - 17) ** 2 + (h - 14) ** 2 + (w - 16) ** 2) / 30)
    volume = Volume(blob[None].astype(np.float32), np.eye(4), "arbitrary")
    conformed = ConformedMri(volume, float(blob.mean()), float(blob.std()))
    network = Averages()
    plain = network.predict_conformed(volume.array, 0, 1)
    for change in CHANGES[:8]:
        back = augmented_pass(network, conformed, Change(change.shift, 1.0))  # type: ignore[arg-type]
        # Not at the edge, where what comes in from outside is not known.
        error = np.abs(back - plain)[:, 2:-2, 2:-2, 2:-2]
        assert error.max() < 0.03 * plain.max()
    unmoved = network.predict_conformed(_move(volume.array, (1, 1, 1)), 0, 1)
    assert np.abs(unmoved - plain)[:, 2:-2, 2:-2, 2:-2].max() > 0.1 * plain.max()


def test_changes_differ_and_opposite_ones_follow_each_other() -> None:
    assert len(set(CHANGES)) == MAX_PASSES == len(CHANGES)
    for first, second in zip(CHANGES[::2], CHANGES[1::2], strict=True):
        assert np.add(first.shift, second.shift).tolist() == [0, 0, 0]
        assert first.gamma != second.gamma


@pytest.mark.parametrize("passes", [-1, MAX_PASSES + 1])
def test_a_number_of_passes_that_there_is_not_is_refused(passes: int, tiny_export: Path) -> None:
    with pytest.raises(ConfigError, match="0 to 16"):
        load_generator(tiny_export).synthesise(head(), passes=passes)
