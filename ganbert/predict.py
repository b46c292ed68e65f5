"""An exported generator as a function from MRI to PET, shared by evaluation, inference and service.

An export is two files: `generator.safetensors` (weights, which cannot run code when they are read)
and `generator.json` (the model card: everything else that a prediction needs, and the checksum of
the weights). Nothing of the training, its data or DeepSpeed is needed here.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ganbert.config import ModelCard
from ganbert.data.conform import concentric_affine, conform_mri, normalise_mri, restore_pet
from ganbert.data.index import file_sha256
from ganbert.data.volume import FloatArray, Volume
from ganbert.errors import CheckpointError, PlatformError
from ganbert.model_card import read_card
from ganbert.models.generator import Generator, build_generator
from ganbert.run_folder import CARD_NAME, DESCRIPTION_NAME, EXPORT_NAME, WEIGHTS_NAME


class Predictor:
    """A loaded generator and its card.

    Parameters
    ----------
    generator : with its weights, in evaluation mode
    card : what the weights were made for
    device : where the network runs
    """

    def __init__(self, generator: Generator, card: ModelCard, device: torch.device) -> None:
        self.generator = generator.to(device).eval()
        self.card = card
        self.device = device

    def predict(self, mri: Volume) -> Volume:
        """Synthesise the PET that belongs to a T1w of any grid, orientation or intensity scale.

        Parameters
        ----------
        mri : (1, D, H, W) float32

        Returns
        -------
        Volume
            (2, D, H, W) float32 in `card.unit`, on the PET grid centred on the head of `mri`

        Raises
        ------
        ImageError
            If the T1w has no contrast or more than one frame.
        """
        conformed = conform_mri(mri, self.card.mri_grid)
        array = self.predict_conformed(conformed.volume.array, conformed.mean, conformed.std)
        affine = concentric_affine(conformed.volume.affine, self.card.mri_grid, self.card.pet_grid)
        return Volume(array, affine, self.card.unit)

    def predict_conformed(self, mri: FloatArray, mean: float, std: float) -> FloatArray:
        """Synthesise from an MRI that is on the MRI grid already.

        Parameters
        ----------
        mri : (1, D, H, W), 0..255
        mean, std : of `mri` over all its voxels

        Returns
        -------
        (2, D, H, W) float32 in `card.unit`

        Source
        ------
        Shin et al. 2020, section 3.1: the MRI's statistics normalise both and restore the PET.
        """
        array = np.ascontiguousarray(mri, np.float32)
        with torch.inference_mode():
            # (1, D, H, W) -> (N, 1, D, H, W)
            batch = torch.from_numpy(array)[None].to(self.device)
            pet_fake = self.generator(normalise_mri(batch, mean, std))[0].float()
            restored = restore_pet(pet_fake, mean, std, self.card.intensity_ratio)
        result: FloatArray = restored.cpu().numpy()
        return result


def find_export(path: Path) -> Path:
    """Return the folder of an exported generator.

    Parameters
    ----------
    path : a run, its `export` folder, or either of the two files in it

    Raises
    ------
    CheckpointError
        If there is none at `path`.
    """
    expected = f"a run or a folder with {CARD_NAME} and {WEIGHTS_NAME}"
    remedy = "give the folder that `ganbert train` wrote, or its export/ folder"
    if path.is_file() and path.name in (CARD_NAME, WEIGHTS_NAME):
        return path.parent
    if not path.is_dir():
        found = "another kind of file" if path.exists() else "nothing"
        raise CheckpointError(path, expected=expected, found=found, remedy=remedy)
    for folder in (path, path / EXPORT_NAME):
        if (folder / CARD_NAME).exists():
            return folder
    if (path / DESCRIPTION_NAME).exists() or (path / "checkpoints").is_dir():
        found = "a run that has exported no generator yet"
        remedy = "train it further to its end, or write one of a checkpoint with `ganbert export`"
        raise CheckpointError(path, expected=expected, found=found, remedy=remedy)
    raise CheckpointError(path, expected=expected, found="neither", remedy=remedy)


def _load_weights(generator: Generator, file: Path, expected_sha256: str) -> None:
    remedy = "copy or export the two files again, together"
    if not file.is_file():
        expected = f"{WEIGHTS_NAME} beside {CARD_NAME}"
        raise CheckpointError(file, expected=expected, found="nothing", remedy=remedy)
    digest = file_sha256(file)
    if digest != expected_sha256:
        expected = f"weights with SHA-256 {expected_sha256[:12]}..., as the card says"
        found = f"{digest[:12]}..."
        raise CheckpointError(file, expected=expected, found=found, remedy=remedy)
    try:
        generator.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        found = lines[min(1, len(lines) - 1)]
        expected = "the weights of the generator that the card describes"
        raise CheckpointError(file, expected=expected, found=found, remedy=remedy) from error


def choose_device(device: str = "auto") -> torch.device:
    """Return the named device; "auto" is the first GPU if there is any, else the CPU.

    Raises
    ------
    PlatformError
        If there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        found = str(error).splitlines()[0]
        remedy = "choose auto, cpu or cuda"
        raise PlatformError(
            "device", expected=f"a usable {device!r}", found=found, remedy=remedy
        ) from error
    return chosen


def load_predictor(path: Path, device: str = "auto") -> Predictor:
    """Load an exported generator.

    Parameters
    ----------
    path : a run, its `export` folder, or either of the two files in it
    device : "auto", "cpu", "cuda", "cuda:1", ...

    Raises
    ------
    CheckpointError
        If there is none, its card or weights cannot be read, or they do not belong together.
    PlatformError
        If the device is not there.
    """
    folder = find_export(path)
    card = read_card(folder)
    generator = build_generator(card.generator, card.mri_grid, card.pet_grid)
    _load_weights(generator, folder / WEIGHTS_NAME, card.weights_sha256)
    return Predictor(generator, card, choose_device(device))
