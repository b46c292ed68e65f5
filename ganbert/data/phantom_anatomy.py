"""Anatomy of the phantom: the MNI152 maps, regions in MNI space, and one person's own shape.

Source of the anatomy: the MNI152 T1, grey- and white-matter maps that nilearn bundles (ICBM 2009a,
symmetric, brain-extracted, 1 mm). Nothing is downloaded. nilearn carries no atlas, so the regions
are a handful of ellipsoids and nearest-seed territories written down here in MNI mm; they are meant
to carry uptake patterns, not to measure anyone's brain.

Design decisions: every number below that is not marked otherwise. MNI152 is larger than most heads,
hence a mean scale below 1. Atrophy acts on the tissue maps, so that the MRI and the PET (through
partial volume) both show it.

Arrays here are (x, y, z) as NIfTI stores them, RAS+, unlike the (C, D, H, W) of `volume.py`: the
phantom only ever writes NIfTI.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nilearn import datasets
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

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
# Share of the grey matter lost at severity 1: medial temporal and temporoparietal first (design
# decision; the usual order in Alzheimer's disease).
_ATROPHY: dict[str, float] = {
    "medial_temporal": 0.42,
    "lateral_temporal": 0.32,
    "precuneus_posterior_cingulate": 0.30,
    "lateral_parietal": 0.28,
    "frontal": 0.16,
    "anterior_cingulate": 0.14,
    "insula": 0.14,
    "occipital": 0.08,
    "sensorimotor": 0.06,
    "thalamus": 0.05,
    "striatum": 0.05,
}
_AGEING_LOSS = 0.14  # share of the cortex lost between 55 and 90 years
_RANDOM_LOSS = 0.035  # sd over regions of what neither age nor severity explains
_MEAN_SCALE, _SCALE_SD = 0.93, 0.035
_ROTATION_SD_DEG, _SHIFT_SD_MM = 4.0, 4.0
# (spacing of the control points mm, sd mm) of the displacement, coarse then fine.
_DEFORMATION = ((55.0, 4.0), (24.0, 1.4))


@dataclass(frozen=True)
class Person:
    """Who is scanned.

    Attributes
    ----------
    label : BIDS label without `sub-`
    age_years : 55 to 90
    sex : "F" or "M"
    diagnosis : "CN", "MCI" or "AD"
    severity : true severity of the disease, 0 to 1
    """

    label: str
    age_years: float
    sex: str
    diagnosis: str
    severity: float


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


@dataclass(frozen=True)
class Anatomy:
    """One person's brain on the T1w grid, all (X, Y, Z).

    Attributes
    ----------
    grey, white, fluid : fractions of the voxel after atrophy
    t1_detail : T1 contrast that the tissue fractions do not explain, white matter = 1
    territory, dseg : uint8 labels of `REGIONS`, without and with regard to tissue
    atrophy : (NUM_LABELS,) share of the grey matter lost by region
    expected_atrophy : the same without its random part
    affine : voxel index to the person's RAS+ mm
    """

    grey: FloatArray
    white: FloatArray
    fluid: FloatArray
    t1_detail: FloatArray
    territory: LabelArray
    dseg: LabelArray
    atrophy: FloatArray
    expected_atrophy: FloatArray
    affine: Affine


# Contrast of a T1w, white matter = 1 (brainweb's classes: CSF 48, grey 106, white matter 154).
T1_CONTRAST = {"fluid": 48 / 154, "grey": 106 / 154, "white": 1.0}


def load_template(spacing_mm: int) -> Template:
    """Load the bundled MNI152 maps, band-limited to a grid of `spacing_mm`."""
    affine = np.asarray(datasets.load_mni152_template(resolution=1).affine, dtype=np.float64)
    loaders = (
        *(datasets.load_mni152_gm_template, datasets.load_mni152_wm_template),
        *(datasets.load_mni152_brain_mask, datasets.load_mni152_template),
    )
    images = (np.asarray(loader(resolution=1).dataobj, dtype=np.float32) for loader in loaders)
    grey, white, brain, t1 = (_downsample(image, spacing_mm) for image in images)
    fluid = np.clip(brain - grey - white, 0, 1)
    detail = t1 / np.percentile(t1[white > 0.9 * white.max()], 50) - _t1_of(grey, white, fluid)
    affine[:3, :3] *= spacing_mm
    points = _mni_points(grey.shape, affine)
    return Template(
        maps=np.stack([grey, white, brain, np.clip(detail, -0.4, 0.4)]),
        territory=_territories(points),
        ventricle_pull=_ventricle_pull(fluid, points, spacing_mm),
        affine=affine,
    )


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
        offset = (points - np.float32(centre)) / np.float32(semi_axes)
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


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: tuple[float, ...], knots_mm: float
) -> FloatArray:
    """A random smooth field of unit variance: cubic B-splines on knots `knots_mm` apart.

    The knots lie in mm about the centre of the grid, so that one person has the same field at every
    size of the phantom.

    Returns
    -------
    (X, Y, Z) float32
    """
    # 300 mm cover every grid of the phantom, whatever its voxels.
    num_knots = int(300 / knots_mm) + 5
    coefficients = rng.standard_normal((num_knots,) * 3)
    for axis, (size, step) in enumerate(zip(shape, spacing_mm, strict=True)):
        position = (np.arange(size) - (size - 1) / 2) * step / knots_mm + (num_knots - 1) / 2
        weights = _cubic_spline(position[:, None] - np.arange(num_knots))
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        coefficients = np.moveaxis(np.tensordot(weights, coefficients, (1, axis)), 0, axis)
    return coefficients.astype(np.float32)


def _cubic_spline(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    distance = np.abs(x)
    centre = 2 / 3 - distance**2 + distance**3 / 2
    return np.where(distance < 1, centre, np.clip(2 - distance, 0, None) ** 3 / 6)


def rigid(rotation_deg: npt.ArrayLike, shift_mm: npt.ArrayLike) -> Affine:
    """(4, 4) of a rotation (vector along its axis, deg) about the origin, then a shift."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(np.asarray(rotation_deg), degrees=True).as_matrix()
    affine[:3, 3] = shift_mm
    return affine


def centred_affine(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Affine:
    """RAS+ affine of a grid whose centre is the origin."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing_mm, strict=True)]
    return affine


def voxel_coordinates(shape: tuple[int, ...], affine: Affine) -> FloatArray:
    """Image of every voxel under `affine`, (3, X, Y, Z) float32."""
    i, j, k = (np.arange(n, dtype=np.float32) for n in shape)
    m = affine.astype(np.float32)
    rows = [
        (m[r, 0] * i)[:, None, None] + (m[r, 1] * j)[:, None] + m[r, 2] * k + m[r, 3]
        for r in range(3)
    ]
    return np.stack(rows)


def _person_to_mni(person: Person, rng: np.random.Generator) -> Affine:
    size = _MEAN_SCALE + (0.012 if person.sex == "M" else -0.012)
    scale = np.clip(size + _SCALE_SD * rng.standard_normal(3), 0.84, 1.0)
    pose = rigid(
        np.clip(rng.normal(0, _ROTATION_SD_DEG, 3), -8, 8),
        np.clip(rng.normal(0, _SHIFT_SD_MM, 3), -8, 8),
    )
    # The middle of the MNI brain, so that the head lies in the middle of the scanner.
    centre = rigid((0, 0, 0), (0, -18, 8))
    return centre @ np.diag([*(1 / scale), 1.0]) @ np.linalg.inv(pose)


def _mni_index(
    template: Template, person: Person, shape: tuple[int, ...], affine: Affine,
    rng: np.random.Generator,
) -> FloatArray:  # fmt: skip
    """Where in the template each voxel of the person comes from, (3, X, Y, Z) in voxels."""
    to_mni = _person_to_mni(person, rng)
    point = voxel_coordinates(shape, to_mni @ affine)
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    for knots_mm, sd_mm in _DEFORMATION:
        for axis in range(3):
            point[axis] += np.float32(sd_mm) * smooth_field(rng, shape, spacing, knots_mm)
    step = np.float32(template.affine[0, 0])
    index = (point - template.affine[:3, 3].astype(np.float32)[:, None, None, None]) / step
    age = (person.age_years - 55) / 35
    growth_mm = float(np.clip(0.3 + 1.2 * age + 3.2 * person.severity + rng.normal(0, 0.7), 0, 5))
    pull = [sample(channel, index) for channel in template.ventricle_pull]
    return index + np.stack(pull) * (np.float32(growth_mm) / step)


def sample(image: FloatArray, index: FloatArray) -> FloatArray:
    """Linear interpolation at voxel coordinates (3, X, Y, Z); zero outside."""
    result: FloatArray = ndimage.map_coordinates(image, index, order=1, output=np.float32)
    return result


def _atrophy(person: Person, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Share of the grey matter lost by label, and the same without its random part."""
    expected = np.zeros(NUM_LABELS, dtype=np.float32)
    random = np.zeros(NUM_LABELS, dtype=np.float32)
    for name, at_full_severity in _ATROPHY.items():
        ageing = _AGEING_LOSS * (person.age_years - 55) / 35
        expected[REGIONS[name]] = ageing + at_full_severity * person.severity
        random[REGIONS[name]] = rng.normal(0, _RANDOM_LOSS)
    return np.clip(expected + random, 0, 0.65), expected


def _label(
    grey: FloatArray, white: FloatArray, fluid: FloatArray, territory: LabelArray
) -> LabelArray:
    """Tissue and territory to one label."""
    of_grey, of_white, of_fluid = (np.arange(NUM_LABELS, dtype=np.uint8) for _ in range(3))
    of_white[[REGIONS["striatum"], REGIONS["choroid_plexus"]]] = REGIONS["cerebral_white_matter"]
    of_white[REGIONS["medial_temporal"] :] = REGIONS["cerebral_white_matter"]
    of_white[REGIONS["cerebellar_grey_matter"]] = REGIONS["cerebellar_white_matter"]
    of_fluid[:] = REGIONS["cerebrospinal_fluid"]
    of_fluid[REGIONS["choroid_plexus"]] = REGIONS["choroid_plexus"]
    is_grey = (grey >= white) & (grey >= fluid)
    tissue = np.where(white >= fluid, of_white[territory], of_fluid[territory])
    label = np.where(is_grey, of_grey[territory], tissue)
    label[grey + white + fluid < 0.5] = 0
    return label


def build_anatomy(
    template: Template,
    person: Person,
    shape: tuple[int, ...],
    affine: Affine,
    rng: np.random.Generator,
) -> Anatomy:
    """Give the template one person's size, pose, shape and atrophy, on their T1w grid."""
    index = _mni_index(template, person, shape, affine, rng)
    grey, white, brain, detail = (sample(channel, index) for channel in template.maps)
    territory: LabelArray = ndimage.map_coordinates(
        template.territory, index, order=0, mode="nearest"
    )
    atrophy, expected = _atrophy(person, rng)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # Sulci widen: grey matter next to fluid goes first, so the cortex thins from outside.
    near_fluid = ndimage.gaussian_filter(np.clip(brain - grey - white, 0, 1), 2.5 / spacing)
    loss = ndimage.gaussian_filter(atrophy[territory], 3.0 / spacing)
    kept = np.clip(1 - loss * (0.4 + 2.0 * near_fluid), 0.1, 1)
    before = grey + white
    grey = grey * kept
    fluid = np.clip(brain - grey - white, 0, 1)
    return Anatomy(
        grey=grey,
        white=white,
        fluid=fluid,
        t1_detail=detail * (grey + white) / np.maximum(before, 1e-3),
        territory=territory,
        dseg=_label(grey, white, fluid, territory),
        atrophy=atrophy,
        expected_atrophy=expected,
        affine=affine,
    )
