"""Convolution blocks and the fixed linear resampling from MRI space to PET space.

Normalisation is GroupNorm: it does not depend on the batch, which is 1 or 2 volumes here (paper,
A.3), and unlike InstanceNorm it keeps the ratio between channels, which carries absolute uptake.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Checkpoint = Callable[..., Any]


def call_directly(function: Callable[..., Any], *args: Any) -> Any:
    """Run `function` without activation checkpointing; `engines` puts DeepSpeed's in its place."""
    return function(*args)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of at least four channels, at most eight groups."""
    groups = max(g for g in (1, 2, 4, 8) if (channels % g == 0 and channels // g >= 4) or g == 1)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut.

    Shapes: (N, in_channels, D, H, W) -> (N, out_channels, D, H, W). Source: design decision.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
            group_norm(out_channels),
            nn.SiLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            group_norm(out_channels),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same spatial shape."""
        output: Tensor = torch.nn.functional.silu(self.body(features) + self.shortcut(features))
        return output


def interpolation_matrix(size_in: int, size_out: int, extent_ratio: float) -> Tensor:
    """Weights of linear interpolation between two concentric 1-D grids.

    Parameters
    ----------
    size_in, size_out : voxels of the two grids
    extent_ratio : field of view of the output grid divided by that of the input grid

    Returns
    -------
    Tensor (size_out, size_in), float32; rows sum to 1, edges are clamped.
    """
    centres = (torch.arange(size_out, dtype=torch.float64) + 0.5) / size_out - 0.5
    position = ((centres * extent_ratio + 0.5) * size_in - 0.5).clamp(0, size_in - 1)
    lower = position.floor().long().clamp(max=max(size_in - 2, 0))
    fraction = position - lower
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    rows = torch.arange(size_out)
    matrix[rows, lower] += 1 - fraction
    matrix[rows, (lower + 1).clamp(max=size_in - 1)] += fraction
    return matrix.float()


class Resample(nn.Module):
    """Trilinear resampling between two concentric grids as three small matrix products.

    Matrix products are deterministic in both directions on every device, where the backward of
    `grid_sample` adds atomically on a GPU, and they run on tensor cores.
    """

    matrix_d: Tensor
    matrix_h: Tensor
    matrix_w: Tensor

    def __init__(self, shape_in: Shape, shape_out: Shape, extent_ratio: tuple[float, ...]) -> None:
        super().__init__()
        for name, n_in, n_out, ratio in zip("dhw", shape_in, shape_out, extent_ratio, strict=True):
            matrix = interpolation_matrix(n_in, n_out, ratio)
            self.register_buffer(f"matrix_{name}", matrix, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) on the input grid -> (N, C, D', H', W') on the output grid."""
        # The innermost axis first: it shrinks the work of the two that need a transposed copy.
        features = torch.matmul(features, self.matrix_w.to(features.dtype).t())
        features = torch.matmul(self.matrix_h.to(features.dtype), features)
        n, c, d, h, w = features.shape
        features = torch.matmul(self.matrix_d.to(features.dtype), features.reshape(n, c, d, h * w))
        return features.reshape(n, c, -1, h, w)
