"""The generator: shapes, geometry, precision, checkpointing, and learning from the first step."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ganbert.config import (
    GRIDS,
    PAPER_MRI_GRID,
    PAPER_PET_GRID,
    GeneratorConfig,
    Grid,
    stem_stride,
)
from ganbert.errors import ConfigError
from ganbert.models.generator import Generator, build_generator, pyramid

TINY_MRI, TINY_PET = GRIDS["tiny"]
SMALL_PET = Grid(shape=(7, 5, 6), spacing_mm=(16.0, 16.0, 16.0))


def cube(size: int, spacing_mm: float) -> Grid:
    return Grid(shape=(size,) * 3, spacing_mm=(spacing_mm,) * 3)


def tiny(**settings: object) -> Generator:
    config = GeneratorConfig.model_validate({"channels": (4, 8), **settings})
    return build_generator(config, TINY_MRI, TINY_PET)


def position_mm(grid: Grid, axis: int) -> Tensor:
    """Distance of voxel centres from the grid's centre along one axis, mm."""
    size = grid.shape[axis]
    return (torch.arange(size) + 0.5 - size / 2) * grid.spacing_mm[axis]


def test_papers_pyramid() -> None:
    shapes = pyramid((93, 76, 76), 5)
    assert shapes == [(93, 76, 76), (47, 38, 38), (24, 19, 19), (12, 10, 10), (6, 5, 5)]


def test_stem_strides_to_the_finest_pet_spacing() -> None:
    assert stem_stride(PAPER_MRI_GRID, PAPER_PET_GRID) == 2
    assert stem_stride(cube(8, 1.0), Grid(shape=(8, 8, 8), spacing_mm=(4.0, 3.0, 5.0))) == 3
    assert stem_stride(cube(8, 2.0), cube(8, 1.0)) == 1


@pytest.mark.parametrize("name", GRIDS)
def test_every_named_pair_of_grids_fits(name: str) -> None:
    # Built on the meta device: shapes are followed through, and nothing is computed.
    mri_grid, pet_grid = GRIDS[name]
    with torch.device("meta"):
        generator = build_generator(GeneratorConfig(channels=(4, 4, 4, 4)), mri_grid, pet_grid)
        pet_fake = generator(torch.empty(1, 1, *mri_grid.shape))
    assert pet_fake.shape == (1, 2, *pet_grid.shape)


@pytest.mark.parametrize(
    ("mri_grid", "pet_grid"),
    [
        (TINY_MRI, TINY_PET),
        (cube(16, 16.0), SMALL_PET),
        (cube(16, 8.0), cube(1, 16.0)),
        (Grid(shape=(16, 24, 8), spacing_mm=(8.0, 8.0, 8.0)), SMALL_PET),  # PET beyond the MRI
    ],
)
@pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 8, 8)])
def test_output_lies_on_the_pet_grid(
    mri_grid: Grid, pet_grid: Grid, channels: tuple[int, ...]
) -> None:
    generator = build_generator(GeneratorConfig(channels=channels), mri_grid, pet_grid)
    pet_fake = generator(torch.randn(2, 1, *mri_grid.shape))
    assert pet_fake.shape == (2, 2, *pet_grid.shape)
    assert pet_fake.dtype == torch.float32


@pytest.mark.parametrize("size", [17, 18, 30])
def test_grid_that_cannot_be_halved_evenly_is_refused(size: int) -> None:
    # A level that rounds would lie off-centre, and the skips would be shifted against the PET.
    with pytest.raises(ConfigError, match="multiples of 4"):
        build_generator(GeneratorConfig(channels=(4, 8)), cube(size, 8.0), SMALL_PET)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 31), (1, 2, 32, 32, 32), (32, 32, 32)])
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mri: expected \(N, 1, \(32, 32, 32\)\), got"):
        tiny()(torch.zeros(shape))


def averaging(mri_grid: Grid, pet_grid: Grid) -> Generator:
    """The generator's own stem, skip and head, with weights that average and nothing else."""
    config = GeneratorConfig(channels=(4,), activation="linear")
    generator = build_generator(config, mri_grid, pet_grid)
    # Without normalisation and activation: what is left is linear, and only moves values.
    generator.stem = next(m for m in generator.stem.modules() if isinstance(m, nn.Conv3d))
    with torch.no_grad():
        generator.stem.weight.fill_(1 / generator.stem.kernel_size[0] ** 3)
        generator.head.weight.fill_(1 / 4)
        for layer in (generator.stem, generator.head):
            layer.bias.zero_()
    return generator


GEOMETRIES = [
    (cube(24, 4.0), Grid(shape=(9, 7, 8), spacing_mm=(8.0, 8.0, 8.0))),
    (cube(24, 4.0), Grid(shape=(9, 12, 11), spacing_mm=(8.0, 5.0, 6.0))),
    (cube(24, 4.0), Grid(shape=(5, 4, 4), spacing_mm=(12.0, 12.0, 12.0))),
]


@pytest.mark.parametrize(("mri_grid", "pet_grid"), GEOMETRIES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_picture_of_positions_comes_out_as_positions(
    mri_grid: Grid, pet_grid: Grid, axis: int
) -> None:
    view = [1, 1, 1, 1, 1]
    view[axis + 2] = -1
    mri = position_mm(mri_grid, axis).view(view).expand(1, 1, *mri_grid.shape)
    pet = averaging(mri_grid, pet_grid)(mri)
    expected = position_mm(pet_grid, axis).view(view).expand_as(pet)
    # The border of the MRI is zero-padded: compare where the stem sees only voxels that exist.
    inside = torch.ones(pet_grid.shape, dtype=torch.bool)
    for other in range(3):
        limit = mri_grid.extent_mm[other] / 2 - 4 * mri_grid.spacing_mm[other]
        near = position_mm(pet_grid, other).abs() <= limit
        shape = [1, 1, 1]
        shape[other] = -1
        inside &= near.view(shape)
    assert inside.sum() >= 8
    torch.testing.assert_close(pet[:, :, inside], expected[:, :, inside], atol=1e-3, rtol=0)


def test_each_step_of_the_encoder_keeps_the_centre_of_the_grid() -> None:
    generator = tiny(channels=(1, 1, 1))
    for layer, factor in ((generator.stem[0], 2), (generator.down[0], 2), (generator.down[1], 2)):
        with torch.no_grad():
            nn.init.constant_(layer.weight, 1 / layer.weight[0, 0].numel())
            nn.init.zeros_(layer.bias)
            fine = position_mm(cube(16, 1.0), 2).expand(1, 1, 16, 16, 16)
            coarse = layer(fine)[0, 0, 3, 3]
        expected = position_mm(cube(16 // factor, float(factor)), 2)
        # The outermost see the zeros beyond the edge.
        torch.testing.assert_close(coarse[1:-1], expected[1:-1])


def test_marked_voxel_lands_at_its_place_in_pet() -> None:
    mri_grid, pet_grid = cube(24, 4.0), Grid(shape=(11, 9, 10), spacing_mm=(8.0, 8.0, 8.0))
    place = (17, 9, 6)  # another side of the centre, and another distance, along each axis
    mri = torch.zeros(1, 1, *mri_grid.shape)
    mri[(0, 0, *place)] = 1.0
    pet = averaging(mri_grid, pet_grid)(mri)[0, 0]
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        centre = (pet.sum(others) * position_mm(pet_grid, axis)).sum() / pet.sum()
        # Half a PET voxel: what linear interpolation can blur a point by.
        assert abs(centre - position_mm(mri_grid, axis)[place[axis]]) <= 4.0


def test_whole_network_looks_at_the_right_place() -> None:
    mri_grid, pet_grid = cube(32, 8.0), TINY_PET
    generator = tiny(activation="linear")
    mri = torch.randn(1, 1, *mri_grid.shape, requires_grad=True)
    asked = (9, 3, 7)
    (gradient,) = torch.autograd.grad(generator(mri)[(0, 0, *asked)], mri)
    weight = gradient[0, 0] ** 2
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        centre = (weight.sum(others) * position_mm(mri_grid, axis)).sum() / weight.sum()
        expected = position_mm(pet_grid, axis)[asked[axis]]
        assert abs(centre - expected) <= pet_grid.spacing_mm[axis]


@pytest.mark.parametrize("activation", ["tanhshrink", "tanh", "linear"])
def test_every_parameter_learns_from_the_first_step(activation: str) -> None:
    generator = tiny(activation=activation, channels=(4, 8, 8))
    pet_fake = generator(torch.randn(1, 1, *TINY_MRI.shape))
    (pet_fake - torch.randn_like(pet_fake)).abs().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 1e-7, name


def test_tanhshrink_starts_where_it_is_steep() -> None:
    generator = tiny()
    before_activation = []
    generator.head.register_forward_hook(lambda *arguments: before_activation.append(arguments[2]))
    generator(torch.randn(1, 1, *TINY_MRI.shape))
    slope = before_activation[0].tanh() ** 2
    assert slope.median() > 0.5


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("tanhshrink", 2.0 - 0.9640276), ("tanh", 0.9640276), ("linear", 2.0)],
)
def test_activation_is_the_one_asked_for(activation: str, expected: float) -> None:
    generator = tiny(activation=activation)
    with torch.no_grad():
        generator.head.weight.zero_()
        generator.head.bias.fill_(2.0)  # tanh(2) = 0.9640276
        pet_fake = generator(torch.randn(1, 1, *TINY_MRI.shape))
    torch.testing.assert_close(pet_fake, torch.full_like(pet_fake, expected), atol=1e-6, rtol=0)


def test_bfloat16_weights_give_a_float32_image_close_to_the_exact_one() -> None:
    generator, mri = tiny(), torch.randn(1, 1, *TINY_MRI.shape)
    with torch.no_grad():
        exact = generator(mri)
        rounded = generator.bfloat16()(mri)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def gradients(generator: Generator, mri: Tensor) -> list[Tensor]:
    generator.zero_grad()
    generator(mri).square().mean().backward()
    return [p.grad.clone() for p in generator.parameters() if p.grad is not None]


def test_checkpointing_changes_nothing_but_memory() -> None:
    generator, mri = tiny(), torch.randn(1, 1, *TINY_MRI.shape)
    plain = gradients(generator, mri)
    calls = []

    def counted(function: nn.Module, *arguments: Tensor) -> Tensor:
        calls.append(function)
        return checkpoint(function, *arguments, use_reentrant=False)

    generator.checkpoint = counted
    checkpointed = gradients(generator, mri)
    assert {*generator.encode, *generator.decode} <= set(calls)
    assert len(plain) == len(checkpointed) == len(list(generator.parameters()))
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)


def test_volumes_of_a_batch_do_not_see_each_other() -> None:
    generator, mri = tiny(), torch.randn(2, 1, *TINY_MRI.shape)
    together = generator(mri)
    alone = torch.cat([generator(one[None]) for one in mri])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_same_seed_builds_the_same_network() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(tiny().state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_weights_fit_any_grid() -> None:
    # What depends on the grid is geometry, and geometry is not saved.
    names = [set(build_generator(GeneratorConfig(channels=(4, 8)), *grids).state_dict())
             for grids in product([TINY_MRI], [TINY_PET, SMALL_PET])]  # fmt: skip
    assert names[0] == names[1]
    assert not [name for name in names[0] if "matrix" in name]
