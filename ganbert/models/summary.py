"""Images summarised to text-like sequences of 512 values (paper, section 4.2).

Each value is the one of largest magnitude in its sub-volume, with its sign.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d

from ganbert.config import NUM_FRAMES

SUMMARY_LENGTH = 512
_CELLS = (8, 8, 8)
_CELLS_PER_FRAME = (8 // NUM_FRAMES, 8, 8)


def signed_absmax_pool(volume: Tensor, cells: tuple[int, int, int]) -> Tensor:
    """Value of largest magnitude in each cell, with its sign.

    Parameters
    ----------
    volume : Tensor (N, C, D, H, W), float32
    cells : number of cells along (D, H, W); where a size is no multiple, neighbouring cells
        overlap by one voxel (`adaptive_max_pool3d`)

    Returns
    -------
    Tensor (N, C, *cells); on a tie between v and -v the positive one. The gradient reaches the
    chosen voxel alone.

    Source: Shin et al. 2020, section 4.2 ("absolute maximum values in each sub-voxel").
    """
    highest = adaptive_max_pool3d(volume, cells)
    lowest = -adaptive_max_pool3d(-volume, cells)
    return torch.where(highest >= -lowest, highest, lowest)


def summarise_mri(mri: Tensor) -> Tensor:
    """Summarise an MRI (N, 1, D, H, W) to (N, 512) values in float32."""
    return signed_absmax_pool(mri.float(), _CELLS).flatten(1)


def summarise_pet(pet: Tensor) -> Tensor:
    """Summarise a PET (N, 2, D, H, W) to (N, 512) values in float32.

    Each frame gives (4, 8, 8) values, the first frame first: as if the frames were stacked along
    depth and pooled to 8x8x8. Source: design decision, see docs/architecture.md.
    """
    return signed_absmax_pool(pet.float(), _CELLS_PER_FRAME).flatten(1)
