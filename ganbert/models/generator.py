"""The U-Net-like generator: T1w MRI to two frames of PET (paper, section 4.1).

The encoder works in MRI space, the decoder on PET's own pyramid (93x76x76, 47x38x38, 24x19x19,
...). Both grids are concentric, so each skip is resampled onto PET by a fixed geometry, and nothing
is computed at a resolution that the PET cannot show: the stem strides to PET's spacing.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ganbert.config import NUM_FRAMES, GeneratorConfig, Grid, stem_stride
from ganbert.models.blocks import (
    Checkpoint,
    Resample,
    ResidualBlock,
    Shape,
    call_directly,
    group_norm,
)

# tanhshrink is flat at 0 (its slope is tanh^2): an output layer that starts there does not learn.
# At 1.5 its slope is 0.82.
_OUTPUT_BIAS = {"tanhshrink": 1.5, "tanh": 0.0, "linear": 0.0}
_ACTIVATIONS = {
    "tanhshrink": torch.nn.functional.tanhshrink,
    "tanh": torch.tanh,
    "linear": lambda features: features,
}


def pyramid(shape: Shape, levels: int) -> list[Shape]:
    """Shapes of a pyramid that halves, rounding up: 93 -> 47 -> 24 -> 12 -> 6."""
    shapes = [shape]
    for _ in range(levels - 1):
        d, h, w = shapes[-1]
        shapes.append(((d + 1) // 2, (h + 1) // 2, (w + 1) // 2))
    return shapes


class Generator(nn.Module):
    """MRI in, PET out, both normalised by the MRI's statistics (paper, section 3.1).

    Parameters
    ----------
    config : widths of the levels and the output activation
    mri_grid, pet_grid : concentric grids of input and output

    Forward
    -------
    mri : Tensor (N, 1, D, H, W), z-scored MRI on `mri_grid`

    Outputs
    -------
    pet_fake : Tensor (N, 2, D, H, W), float32, normalised PET on `pet_grid`

    Raises
    ------
    ConfigError
        If the MRI grid cannot be halved evenly at every level.
    ValueError
        If the MRI does not have the grid's shape.

    Source: Shin et al. 2020, section 4.1 and Fig. 3; widths and PET pyramid: design decision.
    """

    def __init__(self, config: GeneratorConfig, mri_grid: Grid, pet_grid: Grid) -> None:
        super().__init__()
        self.mri_shape = mri_grid.shape
        self.activation = config.activation
        self.checkpoint: Checkpoint = call_directly
        widths = config.channels
        stride = stem_stride(mri_grid, pet_grid)
        config.check_fits(mri_grid, pet_grid)
        self.stem = nn.Sequential(
            nn.Conv3d(1, widths[0], kernel_size=stride + 2, stride=stride, padding=1),
            group_norm(widths[0]),
            nn.SiLU(inplace=True),
        )
        self._build_encoder(widths)
        self._build_decoder(widths, mri_grid, pet_grid, stride)
        self.head = nn.Conv3d(widths[0], NUM_FRAMES, kernel_size=1)
        nn.init.constant_(self.head.get_parameter("bias"), _OUTPUT_BIAS[config.activation])

    def _build_encoder(self, widths: Sequence[int]) -> None:
        # None at the stem's own level: three quarters of those voxels lie outside the PET, and the
        # decoder refines the rest at the same resolution.
        self.encode = nn.ModuleList(ResidualBlock(width, width) for width in widths[1:])
        self.down = nn.ModuleList(
            # Kernel 4, not 3: its outputs lie in the middle of the voxels they replace, so every
            # level keeps the centre that the geometry of the skips counts on.
            nn.Conv3d(narrow, wide, kernel_size=4, stride=2, padding=1)
            for narrow, wide in pairwise(widths)
        )

    def _build_decoder(
        self, widths: Sequence[int], mri_grid: Grid, pet_grid: Grid, stride: int
    ) -> None:
        levels = len(widths)
        d, h, w = (n // stride for n in mri_grid.shape)
        mri_shapes = pyramid((d, h, w), levels)
        pet_shapes = pyramid(pet_grid.shape, levels)
        extents = zip(pet_grid.extent_mm, mri_grid.extent_mm, strict=True)
        ratio = tuple(pet / mri for pet, mri in extents)
        self.skip = nn.ModuleList(
            Resample(mri, pet, ratio) for mri, pet in zip(mri_shapes, pet_shapes, strict=True)
        )
        self.up = nn.ModuleList(
            Resample(coarse, fine, (1.0, 1.0, 1.0)) for fine, coarse in pairwise(pet_shapes)
        )
        self.narrow = nn.ModuleList(
            nn.Conv3d(wide, narrow, kernel_size=1) for narrow, wide in pairwise(widths)
        )
        self.decode = nn.ModuleList(ResidualBlock(2 * width, width) for width in widths[:-1])

    def forward(self, mri: Tensor) -> Tensor:
        """Synthesise the two PET frames."""
        if mri.shape[1:] != (1, *self.mri_shape):
            raise ValueError(f"mri: expected (N, 1, {self.mri_shape}), got {tuple(mri.shape)}")
        skips = self._encode(mri.to(self.head.weight.dtype))
        features = self._decode(skips)
        # The wide range of the output needs float32 whatever the precision of the weights.
        output: Tensor = _ACTIVATIONS[self.activation](self.head(features).float())
        return output

    def _encode(self, mri: Tensor) -> list[Tensor]:
        features = self.checkpoint(self.stem, mri)
        skips = [self.skip[0](features)]
        for down, block, skip in zip(self.down, self.encode, self.skip[1:], strict=True):
            features = self.checkpoint(block, down(features))
            skips.append(skip(features))
        return skips

    def _decode(self, skips: list[Tensor]) -> Tensor:
        features = skips[-1]
        for level in reversed(range(len(skips) - 1)):
            # Narrowed before it is enlarged: an eighth of the work of the other order.
            features = self.up[level](self.narrow[level](features))
            joined = torch.cat((features, skips[level]), dim=1)
            features = self.checkpoint(self.decode[level], joined)
        return features


def build_generator(config: GeneratorConfig, mri_grid: Grid, pet_grid: Grid) -> Generator:
    """Build the generator for a pair of grids."""
    return Generator(config, mri_grid, pet_grid)
