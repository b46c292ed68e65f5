import dataclasses

import numpy as np
import pytest

from ganbert.data.phantom import SIZES
from ganbert.data.phantom_anatomy import (
    Anatomy,
    Person,
    build_anatomy,
    centred_affine,
    rigid,
    smooth_field,
    voxel_coordinates,
)
from ganbert.data.phantom_template import REGIONS, Template, load_template

SPACING_MM = 4
SHAPE = (48, 58, 48)
HEALTHY = Person(label="001", age_years=60, sex="F", diagnosis="CN", severity=0.0)


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(SPACING_MM)


def anatomy_of(template: Template, seed: int = 0, **changes: float) -> Anatomy:
    person = dataclasses.replace(HEALTHY, **changes)
    affine = centred_affine(SHAPE, (float(SPACING_MM),) * 3)
    return build_anatomy(template, person, SHAPE, affine, np.random.default_rng(seed))


def test_template_has_every_region_on_both_sides(template: Template) -> None:
    cortical_and_deep = set(REGIONS.values()) - {1, 2, 3}
    assert set(np.unique(template.territory)) == cortical_and_deep
    np.testing.assert_array_equal(template.territory, template.territory[::-1])


def test_template_tissue_is_where_it_should_be(template: Template) -> None:
    def tissue_at(x: float, y: float, z: float) -> np.ndarray:
        index = np.rint(np.linalg.inv(template.affine) @ (x, y, z, 1))[:3].astype(int)
        grey, white, brain, _ = template.maps[(slice(None), *index)]
        return np.array([grey, white, brain - grey - white])

    assert tissue_at(26, -24, 30).argmax() == 1  # corona radiata
    assert tissue_at(14, -4, 20).argmax() != 1  # caudate and lateral ventricle
    assert tissue_at(26, 4, 2).argmax() == 0  # putamen


def test_every_label_is_in_the_dseg(template: Template) -> None:
    dseg = anatomy_of(template).dseg
    assert set(np.unique(dseg)) == {0, *REGIONS.values()}


def test_tissue_fractions_are_fractions(template: Template) -> None:
    anatomy = anatomy_of(template, severity=0.7)
    for tissue in (anatomy.grey, anatomy.white, anatomy.fluid):
        assert tissue.dtype == np.float32
        assert tissue.min() >= 0
    assert (anatomy.grey + anatomy.white + anatomy.fluid).max() < 1.01


def test_disease_enlarges_fluid_and_thins_the_medial_temporal_lobe_most(
    template: Template,
) -> None:
    healthy, ill = anatomy_of(template), anatomy_of(template, severity=1.0)
    ventricles = {name: a.fluid.sum() for name, a in (("healthy", healthy), ("ill", ill))}
    assert ventricles["ill"] > 1.15 * ventricles["healthy"]

    def kept(region: str) -> float:
        label = REGIONS[region]
        before, after = (float(a.grey[a.territory == label].sum()) for a in (healthy, ill))
        return after / before

    assert kept("medial_temporal") < 0.85 < kept("occipital") < kept("cerebellar_grey_matter") + 0.1
    assert kept("cerebellar_grey_matter") == pytest.approx(1, abs=0.06)


def test_age_alone_thins_the_cortex(template: Template) -> None:
    young, old = anatomy_of(template, age_years=55), anatomy_of(template, age_years=90)
    assert old.grey.sum() < 0.97 * young.grey.sum()


def test_people_differ_in_size_and_shape(template: Template) -> None:
    one, other = (anatomy_of(template, seed=seed).dseg > 0 for seed in (1, 2))
    overlap = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert 0.75 < overlap < 0.97


@pytest.mark.parametrize("size", SIZES)
def test_the_head_lies_within_both_fields_of_view(size: str) -> None:
    grids = SIZES[size]
    for shape, spacing in (
        (grids.mri_shape, (grids.mri_spacing_mm,) * 3),
        (grids.pet_shape, grids.pet_spacing_mm),
    ):
        extent = [n * s for n, s in zip(shape, spacing, strict=True)]
        # The MNI152 brain is about 146 x 182 x 155 mm, and nobody's is larger here.
        assert all(e > b for e, b in zip(extent, (160, 195, 170), strict=True))


def test_smooth_field_has_unit_variance_and_does_not_depend_on_the_voxels() -> None:
    fine = smooth_field(np.random.default_rng(0), (101, 101, 101), (2.0, 2.0, 2.0), 20.0)
    coarse = smooth_field(np.random.default_rng(0), (51, 51, 51), (4.0, 4.0, 4.0), 20.0)
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-5)
    assert fine.std() == pytest.approx(1, abs=0.15)
    assert np.abs(np.diff(fine, axis=0)).max() < 0.5


def test_rigid_turns_then_shifts() -> None:
    moved = rigid((0, 0, 90), (1, 2, 3)) @ (1, 0, 0, 1)
    np.testing.assert_allclose(moved, (1, 3, 3, 1), atol=1e-12)


def test_centred_affine_puts_the_middle_at_the_origin() -> None:
    affine = centred_affine((3, 5, 4), (2.0, 1.0, 3.0))
    np.testing.assert_allclose(affine @ (1, 2, 1.5, 1), (0, 0, 0, 1))
    assert affine.diagonal().tolist() == [2, 1, 3, 1]


def test_voxel_coordinates_equal_the_matrix_product() -> None:
    affine = rigid((3, -5, 8), (1, 2, 3)) @ np.diag([2.0, 3.0, 4.0, 1.0])
    coordinates = voxel_coordinates((2, 3, 4), affine)
    expected = (affine @ (1, 2, 3, 1))[:3]
    np.testing.assert_allclose(coordinates[:, 1, 2, 3], expected, rtol=1e-5)
