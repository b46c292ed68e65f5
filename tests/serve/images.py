"""T1w images as bytes, each of another head."""

import gzip

import nibabel as nib
import numpy as np

from tests.bids_tree import affine, head


def t1w(seed: int, *, packed: bool = True) -> bytes:
    """Return a NIfTI of 16 x 18 x 14 voxels."""
    content = nib.Nifti1Image(head(seed).astype(np.float32), affine()).to_bytes()
    return gzip.compress(content, 1, mtime=0) if packed else content


def large_t1w(edge: int = 140) -> bytes:
    """Return a NIfTI that a worker is busy with for a while."""
    x = np.linspace(-1, 1, edge, dtype=np.float32)
    ball = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < 0.5
    noise = np.random.default_rng(0).random((edge,) * 3, np.float32)
    place = np.diag([250 / edge] * 3 + [1.0])
    image = nib.Nifti1Image((ball * (500 + 300 * noise)).astype(np.int16), place)
    return image.to_bytes()
