"""Anatomy of the phantom: one person's own size, pose, shape and atrophy.

Design decisions: every number below that is not marked otherwise. MNI152 is larger than most heads,
hence a mean scale below 1. Atrophy acts on the tissue maps, so that the MRI and the PET (through
partial volume) both show it: the ventricles grow, and the cortex thins where it meets fluid.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ganbert.data.phantom_template import NUM_LABELS, REGIONS, LabelArray, Template
from ganbert.data.volume import Affine, FloatArray

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
_BRAIN = 2  # of `Template.maps`
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
        from_centre = np.arange(size, dtype=np.float64) - (size - 1) / 2
        position = from_centre * (step / knots_mm) + (num_knots - 1) / 2
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
    template: Template,
    person: Person,
    shape: tuple[int, ...],
    affine: Affine,
    rng: np.random.Generator,
) -> FloatArray:
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
    # The pull has faded long before the surface of the brain.
    inside = sample(template.maps[_BRAIN], index) > 0
    pull = np.stack([_sample_inside(c, index, inside) for c in template.ventricle_pull])
    return index + pull * (np.float32(growth_mm) / step)


def sample(image: FloatArray, index: FloatArray) -> FloatArray:
    """Linear interpolation at voxel coordinates (3, ...); zero outside."""
    result: FloatArray = ndimage.map_coordinates(image, index, order=1, output=np.float32)
    return result


def _sample_inside(
    image: FloatArray, index: FloatArray, inside: npt.NDArray[np.bool_]
) -> FloatArray:
    """`sample` where it matters: a brain fills a fifth of its grid."""
    result = np.zeros(inside.shape, dtype=np.float32)
    result[inside] = sample(image, index[:, inside])
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
    inside = sample(template.maps[_BRAIN], index) > 0
    grey, white, brain, detail = (
        _sample_inside(channel, index, inside) for channel in template.maps
    )
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
