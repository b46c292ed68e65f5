"""A conditional 3D PatchGAN: the discriminator of pix2pix, and the paper's "CNN-D".

The paper names an "additional CNN discriminator" and takes pix2pix for its baseline; it describes
neither. This is pix2pix's own (Isola et al. 2017, appendix 6.1.2) with 3D convolutions.
"""

import torch
from torch import Tensor, nn

from ganbert.config import NUM_FRAMES, DiscriminatorConfig, Grid
from ganbert.models.blocks import Resample, group_norm

_KERNEL = 4
_SLOPE = 0.2
_INIT_STD = 0.02


class PatchGan(nn.Module):
    """Judges every patch of a PET, given its MRI.

    Forward
    -------
    mri : Tensor (N, 1, D, H, W), normalised, on `mri_grid`
    pet : Tensor (K N, 2, D', H', W'), normalised, on `pet_grid`; K blocks of N

    Outputs
    -------
    Tensor (K N, 1, d, h, w), float32: a logit for each patch, positive where it looks real

    Source: Isola et al. 2017, appendix 6.1.2, in 3D. Design decisions: the MRI is resampled onto
    the PET's grid, so that both are channels of one image; GroupNorm instead of BatchNorm, whose
    statistics mean nothing at micro-batch 1 or 2; an image of under 4 voxels is not halved.
    """

    def __init__(self, config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__()
        extents = zip(pet_grid.extent_mm, mri_grid.extent_mm, strict=True)
        ratio = tuple(pet / mri for pet, mri in extents)
        self.to_pet = Resample(mri_grid.shape, pet_grid.shape, ratio)
        layers: list[nn.Module] = []
        shape, width_in = pet_grid.shape, 1 + NUM_FRAMES
        for number, width in enumerate(config.patch_channels):
            # Either kernel keeps the centre: 4 when it halves, 3 when it does not.
            halves = min(shape) >= _KERNEL
            kernel, stride = (_KERNEL, 2) if halves else (3, 1)
            layers.append(nn.Conv3d(width_in, width, kernel, stride=stride, padding=1))
            if number > 0:
                layers.append(group_norm(width))
            layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
            d, h, w = (n // stride for n in shape)
            shape, width_in = (d, h, w), width
        layers.append(nn.Conv3d(width_in, 1, kernel_size=3, padding=1))
        self.body = nn.Sequential(*layers)
        for part in self.body:
            if isinstance(part, nn.Conv3d):
                nn.init.normal_(part.weight, std=_INIT_STD)

    def forward(self, mri: Tensor, pet: Tensor) -> Tensor:
        """Judge the patches of `pet`."""
        dtype = next(self.parameters()).dtype
        on_pet = self.to_pet(mri.to(dtype)).repeat(len(pet) // len(mri), 1, 1, 1, 1)
        logits: Tensor = self.body(torch.cat((on_pet, pet.to(dtype)), dim=1))
        return logits.float()
