"""Both images, and a cohort that one of them has made."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .containers import Engine, Unavailable, own_folder

RECIPE = Path(__file__).parents[1] / "data" / "recipe_tiny"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine whose store holds both images.

    With `GANBERT_IMAGES=FOLDER` it lies there and stays, so that a second run builds what changed.
    While `python -m tests.images.containers` makes them in that folder, it waits.
    """
    kept = os.environ.get("GANBERT_IMAGES")
    # Not pytest's folder: that keeps the last three, of several gigabytes each.
    folder = Path(kept or tempfile.mkdtemp(prefix="ganbert-images-"))
    engine = Engine(folder)
    try:
        try:
            engine.make_images()
        except Unavailable as reason:
            pytest.skip(f"containers cannot be built or run here: {reason}")
        yield engine
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is mounted, by place: data and runs as volumes of a cluster, one cache for all."""
    folder = tmp_path_factory.mktemp("volumes")
    return {place: own_folder(folder / place[1:]) for place in ("/data", "/runs", "/cache")}


@pytest.fixture(scope="session")
def prepared(engine: Engine, places: dict[str, Path]) -> Path:
    """Eight tiny phantom subjects, made and prepared in the image for training."""
    data = {"/data": places["/data"]}
    size = ("--size", "tiny", "--jobs", "1")
    for words in (
        ("phantom", "/data/bids", "--subjects", "8", *size),
        ("prepare", "/data/bids", "/data/prepared", *size),
    ):
        done = engine.run("train", "ganbert", *words, mounts=data)
        assert done.returncode == 0, done.stdout + done.stderr
    return places["/data"] / "prepared"


@pytest.fixture(scope="session")
def training(prepared: Path, places: dict[str, Path]) -> dict[str, dict[str, object]]:
    """Mounts and environment of a training on the CPU, as the manifests give them."""
    assert prepared.is_dir()
    mounts = {"/data:ro": places["/data"], "/recipe:ro": RECIPE}
    mounts |= {place: places[place] for place in ("/runs", "/cache")}
    environment = {"GANBERT_CONFIG": "/recipe", "GANBERT_DATA": "/data/prepared"}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {"mounts": dict(mounts), "environment": dict(environment)}
