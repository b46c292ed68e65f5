"""Plot a PET over its T1w in world coordinates, and measure whether it lies where the brain is.

    python benchmarks/overlay.py T1W PET PNG

nilearn draws both by their own affines, without any of this project's code: what looks aligned here
is aligned in any viewer. The number printed is the share of the PET's brightest tenth (by volume,
of the part of its field of view that the T1w covers) that lies in the foreground of the T1w.
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import nibabel as nib
import numpy as np
from interruption import interruptible
from nilearn import plotting
from nilearn.image import mean_img, resample_to_img
from nilearn.masking import compute_background_mask
from scipy import ndimage

BRIGHTEST_SHARE = 0.1


def foreground(t1w: nib.Nifti1Image) -> nib.Nifti1Image:
    """Mask of the head, or of the brain if the T1w is brain-extracted; without holes."""
    mask = compute_background_mask(t1w, opening=1)
    filled = ndimage.binary_fill_holes(np.asarray(mask.dataobj) > 0)
    return nib.Nifti1Image(filled.astype(np.uint8), mask.affine)


def share_inside(t1w: nib.Nifti1Image, pet: nib.Nifti1Image) -> tuple[float, float]:
    """Return (share of the brightest PET voxels in the foreground, share of all voxels in it)."""
    mask = resample_to_img(
        foreground(t1w), pet, interpolation="nearest", force_resample=True, copy_header=True
    )
    inside = np.asarray(mask.dataobj) > 0
    values = np.asarray(pet.dataobj)
    brightest = values > np.quantile(values, 1 - BRIGHTEST_SHARE)
    return float(inside[brightest].mean()), float(inside.mean())


def draw_overlay(t1w: nib.Nifti1Image, pet: nib.Nifti1Image, file: Path, unit: str) -> None:
    """Draw three planes: the PET in colour over the T1w, and the outline of the T1w."""
    values = np.asarray(pet.dataobj)
    display = plotting.plot_stat_map(
        pet,
        bg_img=t1w,
        cut_coords=plotting.find_xyz_cut_coords(foreground(t1w)),
        threshold=float(np.quantile(values, 0.5)),
        vmin=0,
        vmax=float(np.quantile(values, 0.999)),
        cmap="inferno",
        transparency=0.6,
        title=f"Synthetic PET over its T1w ({unit}, mean of the frames)",
        figure=mpl.pyplot.figure(figsize=(12, 5)),
    )
    display.add_contours(foreground(t1w), levels=[0.5], colors="cyan", linewidths=0.8)
    display.savefig(file, dpi=120)
    display.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("t1w", "pet", "png"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--unit", default="SUVR")
    arguments = parser.parse_args()
    t1w, pet = nib.load(arguments.t1w), nib.load(arguments.pet)
    pet = mean_img(pet, copy_header=True) if pet.ndim == 4 else pet
    draw_overlay(t1w, pet, arguments.png, arguments.unit)
    inside, chance = share_inside(t1w, pet)
    sys.stdout.write(
        f"{arguments.png}: {100 * inside:.1f} % of the brightest tenth of the PET lies in the "
        f"foreground of the T1w (of all voxels: {100 * chance:.1f} %)\n"
    )


if __name__ == "__main__":
    with interruptible():
        main()
