"""Uptake of the phantom: which tissue and region takes up how much of which tracer, and when.

Values are ratios before blurring; the scanner's point spread then mixes grey matter with its
neighbours, and the image is divided by the mean of the tracer's reference region, so what is
measured in the image is lower in the cortex than what stands here. Sources of the targets:

- AV45 (whole cerebellum = 1): young controls' composite 0.96 to 0.98, positivity cut 1.10 to 1.12,
  AD composite 1.48 +- 0.16 with posterior cingulate / precuneus 1.60, anterior cingulate 1.55,
  temporal 1.52, parietal 1.47, prefrontal 1.45, sensorimotor 1.35 (PMC10721982, Table 3, and the
  florbetapir control series quoted with it). White matter keeps more than negative cortex
  (qualitative in the literature; the number here is a design decision). Measured in the phantom's
  true late images (18 subjects, demo size): composite CN 1.05, MCI 1.25, AD 1.49.
- AV1451 (cerebellar grey = 1): Braak-like order (medial temporal, then lateral temporal, then
  parietal and frontal, last sensorimotor and occipital), off-target uptake in the striatum that
  rises with age (Choi 2018) and in the choroid plexus (Lee 2018). Magnitudes: design decision,
  under the 3.5 SUVR that public code uses as range.
- FDG (pons = 1): grey to white 4:1 (brainweb's FDG class); hypometabolism in posterior cingulate
  and temporoparietal cortex (direction from the literature, magnitude a design decision).

Two frames: design decision, since no published frame-to-frame ratio was found. The early frame is a
mixture of a perfusion image, common to all tracers, with the late, specific image.

What the MRI tells about the PET: severity and age, which shape both, local atrophy through partial
volume, and the random part of atrophy, which shifts the regional load. What it cannot tell: an own
random load per person, regional offsets, and patches of a smooth field.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ganbert.data.phantom_anatomy import Anatomy, Person, smooth_field
from ganbert.data.phantom_template import NUM_LABELS, REGIONS
from ganbert.data.regions import find_region
from ganbert.data.volume import FloatArray
from ganbert.tracers import get_tracer

_CORTEX = [name for name, label in REGIONS.items() if label >= REGIONS["medial_temporal"]]


@dataclass(frozen=True)
class Change:
    """What full disease does to a region: `amount`, beginning at `onset` of the load (0 to 1)."""

    amount: float
    onset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UptakePattern:
    """How one tracer spreads, before blurring.

    Attributes
    ----------
    cortex, white, fluid : of all cortical grey matter, white matter and fluid
    grey : exceptions for the grey matter of single regions
    white_of : exceptions for the white matter of single regions
    change : added to the grey matter of a region by disease
    per_decade : added to the grey matter of a region per decade beyond 55 years
    choroid_plexus : uptake of the choroid plexus
    load_sd : sd over people of the load that severity does not explain
    frame_start_s, frame_duration_s : early and late frame
    perfusion_share : of the early frame
    injected_mbq : typical injected activity
    """

    cortex: float
    white: float
    fluid: float
    grey: dict[str, float]
    white_of: dict[str, float]
    change: dict[str, Change]
    per_decade: dict[str, float]
    choroid_plexus: float
    load_sd: float
    frame_start_s: tuple[float, float]
    frame_duration_s: tuple[float, float]
    perfusion_share: float
    injected_mbq: float


UPTAKE: dict[str, UptakePattern] = {
    "AV45": UptakePattern(
        cortex=0.81,
        white=1.55,
        fluid=0.35,
        grey={
            "cerebellar_grey_matter": 0.90,
            "striatum": 1.05,
            "thalamus": 1.25,
            "pons": 1.5,
            "brainstem": 1.5,
            "medial_temporal": 0.90,
        },
        white_of={
            "cerebellar_grey_matter": 1.45,
            "pons": 1.7,
            "brainstem": 1.6,
            "thalamus": 1.35,
        },
        change={
            "precuneus_posterior_cingulate": Change(1.47),
            "anterior_cingulate": Change(1.29),
            "frontal": Change(1.33),
            "lateral_temporal": Change(1.29),
            "lateral_parietal": Change(1.29),
            "occipital": Change(0.92),
            "insula": Change(0.92),
            "sensorimotor": Change(0.83),
            "medial_temporal": Change(0.41),
            "striatum": Change(0.60),
        },
        per_decade={},
        choroid_plexus=0.8,
        load_sd=0.20,
        # Florbetapir: 50 to 60 min is the usual window; 1 to 10 min shows perfusion.
        frame_start_s=(60.0, 3000.0),
        frame_duration_s=(540.0, 600.0),
        perfusion_share=0.7,
        injected_mbq=370.0,
    ),
    "AV1451": UptakePattern(
        cortex=1.13,
        white=1.0,
        fluid=0.45,
        grey={
            "cerebellar_grey_matter": 1.05,
            "striatum": 1.45,
            "thalamus": 1.25,
            "pons": 1.0,
            "brainstem": 1.1,
        },
        white_of={"thalamus": 1.2, "pons": 1.0, "brainstem": 1.05},
        change={
            "medial_temporal": Change(1.5, 0.05),
            "lateral_temporal": Change(1.9, 0.25),
            "precuneus_posterior_cingulate": Change(1.7, 0.40),
            "lateral_parietal": Change(1.6, 0.40),
            "insula": Change(1.0, 0.45),
            "frontal": Change(1.1, 0.50),
            "anterior_cingulate": Change(0.9, 0.50),
            "occipital": Change(1.0, 0.55),
            "sensorimotor": Change(0.5, 0.70),
        },
        per_decade={"striatum": 0.14},
        choroid_plexus=2.6,
        load_sd=0.14,
        # Flortaucipir: 80 to 100 min.
        frame_start_s=(60.0, 4800.0),
        frame_duration_s=(540.0, 1200.0),
        perfusion_share=0.6,
        injected_mbq=370.0,
    ),
    "FDG": UptakePattern(
        cortex=1.0,
        white=0.25,
        fluid=0.02,
        grey={
            "cerebellar_grey_matter": 0.85,
            "striatum": 1.10,
            "thalamus": 1.0,
            "pons": 0.60,
            "brainstem": 0.55,
            "medial_temporal": 0.75,
            "precuneus_posterior_cingulate": 1.15,
            "occipital": 1.08,
        },
        white_of={
            "cerebellar_grey_matter": 0.30,
            "pons": 0.50,
            "brainstem": 0.45,
            "thalamus": 0.8,
        },
        change={
            "precuneus_posterior_cingulate": Change(-0.42),
            "lateral_parietal": Change(-0.36),
            "lateral_temporal": Change(-0.33),
            "medial_temporal": Change(-0.20),
            "frontal": Change(-0.18, 0.35),
            "anterior_cingulate": Change(-0.10, 0.35),
            "insula": Change(-0.10),
        },
        per_decade={"frontal": -0.02, "anterior_cingulate": -0.02},
        choroid_plexus=0.1,
        load_sd=0.14,
        # FDG: the early frame while the tracer is still being taken up, the late one at 30 min.
        frame_start_s=(120.0, 1800.0),
        frame_duration_s=(480.0, 1200.0),
        perfusion_share=0.7,
        injected_mbq=185.0,
    ),
}
# Perfusion, cortex = 1 (design decision): grey to white about 3:1, less where disease is.
_PERFUSION_GREY = {
    "cerebellar_grey_matter": 1.0,
    "striatum": 1.1,
    "thalamus": 1.1,
    "pons": 0.75,
    "brainstem": 0.7,
    "medial_temporal": 0.8,
    "precuneus_posterior_cingulate": 1.15,
    "occipital": 1.05,
    "insula": 1.08,
}
_PERFUSION_WHITE = {
    "cerebellar_grey_matter": 0.45,
    "pons": 0.65,
    "brainstem": 0.6,
    "thalamus": 0.9,
}
_HYPOPERFUSION = {
    "precuneus_posterior_cingulate": -0.30,
    "lateral_parietal": -0.26,
    "lateral_temporal": -0.22,
    "medial_temporal": -0.12,
}
_REGIONAL_SD = 0.05  # relative, by region, unknown to the MRI
_PATCH_SD, _PATCH_KNOTS_MM = 0.06, 22.0  # relative, smooth in space, unknown to the MRI
_LOAD_PER_ATROPHY = 1.5  # load that comes with each unit of unexplained regional atrophy


@dataclass(frozen=True)
class Uptake:
    """True activity on the T1w grid.

    Attributes
    ----------
    activity : (2, X, Y, Z) float32, ratio to be normalised by the reference region
    load : the person's own burden of disease as the tracer sees it, 0 to 1.3
    """

    activity: FloatArray
    load: float


def _regional_load(
    pattern: UptakePattern, anatomy: Anatomy, person: Person, rng: np.random.Generator
) -> tuple[float, FloatArray]:
    load = float(np.clip(person.severity + rng.normal(0, pattern.load_sd), 0, 1.3))
    unexplained = anatomy.atrophy - anatomy.expected_atrophy
    return load, np.clip(load + _LOAD_PER_ATROPHY * unexplained, 0, 1.4)


def _by_label(default: float, values: dict[str, float]) -> FloatArray:
    table = np.full(NUM_LABELS, default, dtype=np.float32)
    for name, value in values.items():
        table[REGIONS[name]] = value
    return table


def _late_grey(pattern: UptakePattern, load: FloatArray, person: Person) -> FloatArray:
    table = _by_label(pattern.cortex, pattern.grey)
    for name, change in pattern.change.items():
        label = REGIONS[name]
        progress = np.clip((load[label] - change.onset) / (1 - change.onset), 0, 1.4)
        table[label] += change.amount * progress
    decades = (person.age_years - 55) / 10
    return table + decades * _by_label(0.0, pattern.per_decade)


def _tables(
    pattern: UptakePattern, load: FloatArray, person: Person
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Uptake by frame and label of grey matter, white matter and fluid, each (2, NUM_LABELS)."""
    perfused = _by_label(1.0, _PERFUSION_GREY) + load * _by_label(0.0, _HYPOPERFUSION)
    late = np.stack(
        [
            _late_grey(pattern, load, person),
            _by_label(pattern.white, pattern.white_of),
            _by_label(pattern.fluid, {}),
        ]
    )
    perfusion = np.stack([perfused, _by_label(0.33, _PERFUSION_WHITE), _by_label(0.1, {})])
    early = pattern.perfusion_share * perfusion + (1 - pattern.perfusion_share) * late
    for frame, tissue in ((early, "early"), (late, "late")):
        factor = 0.5 if tissue == "early" else 1.0
        frame[0::2, REGIONS["choroid_plexus"]] = factor * pattern.choroid_plexus
    grey, white, fluid = np.stack([early, late], axis=1).astype(np.float32)
    return grey, white, fluid


def paint_uptake(tracer: str, anatomy: Anatomy, person: Person, rng: np.random.Generator) -> Uptake:
    """Paint both frames of `tracer` onto a person's anatomy."""
    pattern = UPTAKE[tracer]
    load, regional = _regional_load(pattern, anatomy, person, rng)
    grey, white, fluid = _tables(pattern, regional, person)
    offsets = 1 + _REGIONAL_SD * rng.standard_normal(NUM_LABELS).astype(np.float32)
    spacing = tuple(float(s) for s in np.linalg.norm(anatomy.affine[:3, :3], axis=0))
    patches = 1 + _PATCH_SD * smooth_field(rng, anatomy.grey.shape, spacing, _PATCH_KNOTS_MM)
    activity = np.empty((2, *anatomy.grey.shape), dtype=np.float32)
    for frame in range(2):
        # Territories have sharp borders and brains do not.
        of_grey = ndimage.gaussian_filter(
            (grey[frame] * offsets)[anatomy.territory], [3.0 / s for s in spacing]
        )
        activity[frame] = anatomy.grey * of_grey * patches
        activity[frame] += anatomy.white * white[frame][anatomy.territory]
        activity[frame] += anatomy.fluid * fluid[frame][anatomy.territory]
    return Uptake(activity=activity, load=load)


def reference_mask(tracer: str, anatomy: Anatomy) -> FloatArray:
    """Reference region of `tracer` on the T1w grid, (X, Y, Z), 0 or 1."""
    names = {label: name for name, label in REGIONS.items()}
    labels = find_region(names, get_tracer(tracer).reference_region)
    return np.isin(anatomy.dseg, labels).astype(np.float32)
