"""Eight hosts, and a tiny prepared cohort that all of them see."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.phantom import make_cohort
from ganbert.prepare import prepare

from .hosts import Cluster, cluster

NUM_HOSTS = 8


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    """The hosts, up and reachable by ssh."""
    with cluster(NUM_HOSTS) as made:
        yield made


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four tiny phantom subjects, prepared."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder / "bids", num_subjects=24, tracer="AV45", seed=5, size="tiny", jobs=2)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "bids", folder / "prepared", seed=0, jobs=2, **grids)
    return folder / "prepared"
