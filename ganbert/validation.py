"""How good the generator is while it trains, on a few subjects that it does not learn from.

Only as much as it takes to know which checkpoint is the best: L1 of whole images as the generator
learns it, without gradient. What a model is worth is said by `evaluate`, on the test subjects.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ganbert.data.conform import normalise_mri, pet_scale_offset
from ganbert.data.direct import read_image
from ganbert.data.index import Index, Row
from ganbert.losses import l1
from ganbert.ranks import mean_over_ranks


def validation_rows(index: Index, tracer: str, num_rows: int) -> list[Row]:
    """Rows that training is validated on: the first of the validation split, at most `num_rows`."""
    return index.select("val", tracer)[:num_rows]


def validation_l1(
    generator: nn.Module,
    folder: Path,
    rows: Sequence[Row],
    *,
    intensity_ratio: float,
    rank: int,
    num_ranks: int,
    device: torch.device,
) -> float | None:
    """Mean L1 over the subjects, each rank its share; every rank calls this at the same step.

    Parameters
    ----------
    generator : the bare module, so that no hook of its engine is set off
    folder : of the index
    rows : of all ranks together
    intensity_ratio : of paper section 3.1

    Returns
    -------
    Mean over voxels and subjects of the normalised PET, as `loss_l1`; None without rows.

    Raises
    ------
    ImageError, DatasetError
        If an image is missing or not usable.
    """
    if not rows:
        return None
    total = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = generator.training
    generator.eval()
    with torch.no_grad():
        for row in rows[rank::num_ranks]:
            mri, pet_real = _read(folder, row, intensity_ratio)
            total[0] += l1(generator(mri.to(device)), pet_real.to(device)).double()
            total[1] += 1
    generator.train(was_training)
    summed, counted = mean_over_ranks(total).tolist()
    return float(summed / counted)


def _read(folder: Path, row: Row, intensity_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """MRI (1, 1, D, H, W) and PET (1, T, D, H, W), both normalised."""
    mean, std = row.mri.mean, row.mri.std
    mri = normalise_mri(torch.from_numpy(read_image(folder, row.mri).array), mean, std)
    scale, offset = pet_scale_offset(mean, std, intensity_ratio)
    pet = torch.from_numpy(read_image(folder, row.pet, row.unit).array) * scale + offset
    return mri[None], pet[None]
