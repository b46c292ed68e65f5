"""Validation is L1 of whole normalised images, over all ranks' shares, and leaves no trace."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ganbert.data.index import Index
from ganbert.data.reference import reference_batch
from ganbert.validation import validation_l1, validation_rows
from tests.tiny_cache import MRI_GRID, PET_GRID, write_tiny_cache

RATIO = 0.01


class Constant(nn.Module):
    """Synthesises the same number everywhere, and another one with dropout."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, mri: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.value.expand(len(mri), 2, *PET_GRID.shape)


@pytest.fixture(scope="module", autouse=True)
def _world_of_one() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    """Three rows; all count as training but the last."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, write_tiny_cache(folder, 2)


def test_is_the_mean_error_of_normalised_images(cache: tuple[Path, Index]) -> None:
    folder, index = cache
    generator = Constant(0.5).train()
    _, pet = reference_batch(folder, index.rows, RATIO, mri_grid=MRI_GRID, pet_grid=PET_GRID)
    kind = {"intensity_ratio": RATIO, "device": torch.device("cpu")}
    found = validation_l1(generator, folder, index.rows, rank=0, num_ranks=1, **kind)
    assert found == pytest.approx(np.abs(pet - 0.5).mean(), rel=1e-5)
    assert generator.training
    assert generator.value.grad is None
    # The second of two ranks sees the second row alone.
    share = validation_l1(generator, folder, index.rows, rank=1, num_ranks=2, **kind)
    assert share == pytest.approx(np.abs(pet[1] - 0.5).mean(), rel=1e-5)


def test_rows_are_the_first_of_the_validation_split(cache: tuple[Path, Index]) -> None:
    _, index = cache
    assert [row.subject for row in validation_rows(index, "FDG", 8)] == ["02"]
    assert validation_rows(index, "FDG", 0) == []
    assert validation_rows(index, "AV45", 8) == []


def test_without_rows_nothing_is_measured(tmp_path: Path) -> None:
    kind = {"intensity_ratio": RATIO, "device": torch.device("cpu"), "rank": 0, "num_ranks": 1}
    assert validation_l1(Constant(0.5), tmp_path, [], **kind) is None
