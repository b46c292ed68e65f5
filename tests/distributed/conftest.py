"""A prepared tiny cohort, and the real launcher."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ganbert.config import TINY_MRI_GRID, TINY_PET_GRID
from ganbert.data.phantom import make_cohort
from ganbert.engines import init_world, leave_world
from ganbert.prepare import prepare

RECIPE = Path(__file__).parents[1] / "data" / "recipe_tiny"
Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tiny phantom subjects, prepared."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder / "bids", num_subjects=8, tracer="AV45", seed=5, size="tiny", jobs=1)
    grids = {"mri_grid": TINY_MRI_GRID, "pet_grid": TINY_PET_GRID}
    prepare(folder / "bids", folder / "prepared", seed=0, jobs=1, **grids)
    return folder / "prepared"


@pytest.fixture(scope="module")
def world_of_one() -> Iterator[None]:
    """A process group of one, as the launcher would have set it up."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    init_world()
    yield
    leave_world()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def launch(repository: Path) -> Launch:
    """Start `deepspeed --num_gpus 2 ganbert/train.py ...` as a user does."""

    train = repository / "ganbert" / "train.py"

    def start(
        *arguments: object, num_ranks: int = 2, script: Path = train
    ) -> subprocess.Popen[str]:
        launcher = Path(sys.executable).with_name("deepspeed")
        environment = {**os.environ, "PATH": f"{launcher.parent}:{os.environ['PATH']}"}
        command = [launcher, "--num_gpus", num_ranks, "--master_port", free_port()]
        return subprocess.Popen(
            [str(part) for part in (*command, script, *arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    return start


def place_of(rank: int, size: int, port: int, *, ranks_here: int = 1) -> dict[str, str]:
    """The environment of a rank as the launcher makes it; a node has so many of them."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % ranks_here),
        "LOCAL_SIZE": str(ranks_here),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }


def free_port() -> int:
    """A port that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
