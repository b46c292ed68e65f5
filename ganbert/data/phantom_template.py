"""The phantom's template: the MNI152 maps and the regions drawn on them.

Source of the anatomy: the MNI152 T1, grey- and white-matter maps that nilearn bundles (ICBM 2009a,
symmetric, brain-extracted, 1 mm). Nothing is downloaded. nilearn carries no atlas, so the regions
are a handful of ellipsoids and nearest-seed territories written down here in MNI mm (design
decision); they are meant to carry uptake patterns, not to measure anyone's brain.

Arrays of the phantom are (x, y, z) as NIfTI stores them, RAS+, unlike the (C, D, H, W) of
`volume.py`: the phantom only ever writes NIfTI.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from ganbert.data.volume import Affine, FloatArray

LabelArray = npt.NDArray[np.uint8]
Points = tuple[tuple[float, float, float], ...]
Ellipsoids = tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]

# Labels of the `_dseg`. Left and right are not told apart.
REGIONS: dict[str, int] = {
    "cerebrospinal_fluid": 1,
    "cerebral_white_matter": 2,
    "cerebellar_white_matter": 3,
    "cerebellar_grey_matter": 4,
    "pons": 5,
    "brainstem": 6,
    "striatum": 7,
    "thalamus": 8,
    "choroid_plexus": 9,
    "medial_temporal": 10,
    "lateral_temporal": 11,
    "precuneus_posterior_cingulate": 12,
    "lateral_parietal": 13,
    "frontal": 14,
    "anterior_cingulate": 15,
    "insula": 16,
    "sensorimotor": 17,
    "occipital": 18,
}
NUM_LABELS = len(REGIONS) + 1

# Each cortical voxel belongs to the region of its nearest seed, (|x|, y, z) in MNI mm.
CORTICAL_SEEDS: dict[str, Points] = {
    "medial_temporal": ((24, -12, -24), (28, -28, -10), (22, -2, -22), (22, -34, -14)),
    "lateral_temporal": (
        *((56, -20, -14), (58, -42, 2), (50, -8, -30), (42, 12, -30), (50, -56, -12)),
        *((60, -28, 8), (54, 0, -10), (40, -35, -22)),
    ),
    "precuneus_posterior_cingulate": ((6, -52, 26), (6, -64, 40), (8, -48, 12), (6, -40, 40)),
    "lateral_parietal": ((45, -50, 44), (28, -62, 50), (56, -40, 30), (46, -64, 28)),
    "frontal": (
        *((20, 58, 6), (36, 42, 20), (10, 52, 30), (40, 18, 38), (24, 26, 50), (10, 34, -18)),
        *((30, 34, -14), (48, 26, 10), (8, 12, 60), (26, 2, 58), (50, 10, 20)),
    ),
    "anterior_cingulate": ((5, 36, 8), (5, 22, 28), (5, 2, 38)),
    "insula": ((38, 8, -2), (38, -10, 6), (36, 18, 2)),
    "sensorimotor": ((40, -20, 52), (18, -24, 66), (54, -8, 32), (6, -26, 60), (56, -20, 34)),
    "occipital": ((8, -80, 6), (24, -94, 4), (12, -88, -10), (30, -82, 20), (34, -76, -10)),
}
# (centre, semi-axes) in MNI mm, for both signs of x; a later region overrules an earlier one.
DEEP_ELLIPSOIDS: dict[str, Ellipsoids] = {
    "brainstem": (((0, -30, -14), (17, 14, 16)), ((0, -40, -52), (13, 12, 20))),
    "pons": (((0, -28, -32), (18, 14, 14)),),
    "thalamus": (((11, -18, 8), (10, 14, 9)),),
    "striatum": (
        *(((12, 14, 6), (8, 13, 11)), ((15, -2, 19), (6, 15, 6))),
        *(((26, 3, 2), (8, 18, 12)), ((19, -4, 0), (6, 8, 6))),
    ),
    "choroid_plexus": (((24, -41, 11), (7, 10, 9)), ((8, -14, 20), (5, 14, 4))),
}
_LATERAL_VENTRICLES: Ellipsoids = (
    *(((13, -6, 16), (15, 40, 17)), ((26, -42, 9), (13, 20, 17)), ((31, -22, -12), (7, 18, 7))),
)
_SHARPNESS = np.float32(2.0)  # exponent of the tissue maps, see `_sharpen`
_DETAIL = np.float32(0.6)  # share of the template's T1 that is kept beyond what tissue explains

# Contrast of a T1w, white matter = 1 (brainweb's classes: CSF 48, grey 106, white matter 154).
T1_CONTRAST = {"fluid": 48 / 154, "grey": 106 / 154, "white": 1.0}


@dataclass(frozen=True)
class Template:
    """The MNI152 maps on a grid of whole mm.

    Attributes
    ----------
    maps : (4, X, Y, Z) float32: grey matter, white matter, brain, T1 detail that tissue lacks
    territory : (X, Y, Z) uint8, the region to which each voxel would belong if it were grey matter
    ventricle_pull : (3, X, Y, Z) float32, towards the lateral ventricles, longest vector 1
    affine : voxel index to MNI mm
    """

    maps: FloatArray
    territory: LabelArray
    ventricle_pull: FloatArray
    affine: Affine


@functools.lru_cache(maxsize=1)
def load_template(spacing_mm: int) -> Template:
    """Load the bundled MNI152 maps, band-limited to a grid of `spacing_mm`."""
    # Here, not above: nilearn takes seconds to import, and only the first process needs it.
    from nilearn import datasets

    affine = np.array(datasets.load_mni152_template(resolution=1).affine, dtype=np.float64)
    loaders = (
        *(datasets.load_mni152_gm_template, datasets.load_mni152_wm_template),
        *(datasets.load_mni152_brain_mask, datasets.load_mni152_template),
    )
    images = (np.asarray(loader(resolution=1).dataobj, dtype=np.float32) for loader in loaders)
    grey, white, brain, t1 = images
    grey, white = _sharpen(grey, white, brain)
    grey, white, brain, t1 = (_downsample(image, spacing_mm) for image in (grey, white, brain, t1))
    t1 = t1 / np.median(t1[white > 0.9])
    detail = _DETAIL * (t1 - _t1_of(grey, white, np.clip(brain - grey - white, 0, 1)))
    affine[:3, :3] *= spacing_mm
    points = _mni_points(grey.shape, affine)
    return Template(
        maps=np.stack([grey, white, brain, np.clip(detail, -0.4, 0.4)]),
        territory=_territories(points),
        ventricle_pull=_ventricle_pull(np.clip(brain - grey - white, 0, 1), points, spacing_mm),
        affine=affine,
    )


def _sharpen(
    grey: FloatArray, white: FloatArray, brain: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Undo some of the averaging over 152 people: one person's voxel is mostly one tissue."""
    of_grey, of_white, of_fluid = (
        np.clip(share, 0, 1) ** _SHARPNESS for share in (grey, white, brain - grey - white)
    )
    total = np.maximum(of_grey + of_white + of_fluid, 1e-6)
    return brain * of_grey / total, brain * of_white / total


def _downsample(image: FloatArray, stride: int) -> FloatArray:
    smooth = ndimage.gaussian_filter(image, 0.42 * stride) if stride > 1 else image
    return np.ascontiguousarray(smooth[::stride, ::stride, ::stride], dtype=np.float32)


def _t1_of(grey: FloatArray, white: FloatArray, fluid: FloatArray) -> FloatArray:
    return (
        np.float32(T1_CONTRAST["grey"]) * grey
        + np.float32(T1_CONTRAST["white"]) * white
        + np.float32(T1_CONTRAST["fluid"]) * fluid
    )


def _mni_points(shape: tuple[int, ...], affine: Affine) -> FloatArray:
    """(|x|, y, z) in mm of every voxel, (X, Y, Z, 3)."""
    axes = [affine[a, a] * np.arange(n) + affine[a, 3] for a, n in enumerate(shape)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    points[..., 0] = np.abs(points[..., 0])
    return points


def _inside(points: FloatArray, ellipsoids: Ellipsoids) -> npt.NDArray[np.bool_]:
    inside = np.zeros(points.shape[:-1], dtype=bool)
    for centre, semi_axes in ellipsoids:
        offset = (points - np.array(centre)) / np.array(semi_axes)
        inside |= np.einsum("xyzc,xyzc->xyz", offset, offset) < 1
    return inside


def _territories(points: FloatArray) -> LabelArray:
    seeds = [seed for seeds in CORTICAL_SEEDS.values() for seed in seeds]
    labels = [REGIONS[name] for name, seeds in CORTICAL_SEEDS.items() for _ in seeds]
    _, nearest = cKDTree(seeds).query(points.reshape(-1, 3), workers=1)
    territory = np.array(labels, dtype=np.uint8)[nearest].reshape(points.shape[:-1])
    x, y, z = np.moveaxis(points, -1, 0)
    # The tentorium: a roof that falls off sideways and rises towards the front.
    below_tentorium = (z < -4 - 0.0105 * x**2 + 0.16 * (y + 60)) & (y < -36)
    territory[below_tentorium] = REGIONS["cerebellar_grey_matter"]
    for name, ellipsoids in DEEP_ELLIPSOIDS.items():
        territory[_inside(points, ellipsoids)] = REGIONS[name]
    return territory


def _ventricle_pull(fluid: FloatArray, points: FloatArray, spacing_mm: int) -> FloatArray:
    ventricles = fluid * _inside(points, _LATERAL_VENTRICLES)
    smooth = ndimage.gaussian_filter(ventricles, 7.0 / spacing_mm)
    pull = np.stack(np.gradient(smooth)).astype(np.float32)
    return pull / np.float32(np.linalg.norm(pull, axis=0).max())
