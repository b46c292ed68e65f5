"""A conditional 3D PatchGAN: the discriminator of pix2pix, and the paper's "CNN-D".

The paper names an "additional CNN discriminator" and takes pix2pix for its baseline; it describes
neither. This follows pix2pix (Isola et al. 2017, appendix 6.1.2): 4x4x4 convolutions, all but the
last two of stride 2, leaky ReLU, one logit a patch. With three hidden layers a logit sees 34 voxels
(68 mm at the paper's spacing), with four 70, as in the two variants of that paper.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganbert.config import NUM_FRAMES, DiscriminatorConfig, Grid
from ganbert.models.blocks import Resample, Shape, group_norm

_KERNEL = 4
_SLOPE = 0.2
_INIT_STD = 0.02


def _convolution(
    shape: Shape, width_in: int, width_out: int, *, stride: int
) -> tuple[nn.Conv3d, Shape]:
    """Return a convolution for an image of that shape, and the shape of its output."""
    if min(shape) < _KERNEL:
        return nn.Conv3d(width_in, width_out, 3, padding=1), shape
    d, h, w = ((n - _KERNEL + 2) // stride + 1 for n in shape)
    return nn.Conv3d(width_in, width_out, _KERNEL, stride=stride, padding=1), (d, h, w)


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
    statistics mean nothing at micro-batch 1 or 2; fewer channels; where an image has become
    smaller than a kernel, it keeps its size (kernel 3).
    """

    def __init__(self, config: DiscriminatorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__()
        extents = zip(pet_grid.extent_mm, mri_grid.extent_mm, strict=True)
        ratio = tuple(pet / mri for pet, mri in extents)
        self.to_pet = Resample(mri_grid.shape, pet_grid.shape, ratio)
        layers: list[nn.Module] = []
        shape, width_in = pet_grid.shape, 1 + NUM_FRAMES
        last = len(config.patch_channels) - 1
        for number, width in enumerate(config.patch_channels):
            layer, shape = _convolution(shape, width_in, width, stride=1 if number == last else 2)
            layers.append(layer)
            if number > 0:
                layers.append(group_norm(width))
            layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
            width_in = width
        layers.append(_convolution(shape, width_in, 1, stride=1)[0])
        self.body = nn.Sequential(*layers)
        for part in self.body:
            if isinstance(part, nn.Conv3d):
                nn.init.normal_(part.weight, std=_INIT_STD)
                if config.spectral_norm:
                    # Miyato et al. 2018: a bound on how steep the judgement can be.
                    spectral_norm(part)

    def forward(self, mri: Tensor, pet: Tensor) -> Tensor:
        """Judge the patches of `pet`."""
        dtype = next(self.parameters()).dtype
        on_pet = self.to_pet(mri.to(dtype)).repeat(len(pet) // len(mri), 1, 1, 1, 1)
        logits: Tensor = self.body(torch.cat((on_pet, pet.to(dtype)), dim=1))
        return logits.float()
