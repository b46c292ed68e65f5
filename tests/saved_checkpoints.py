"""Checkpoints of engines that are a number, for the tests of what surrounds DeepSpeed's files."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ganbert.checkpoint import EngineFiles, save_checkpoint
from ganbert.checkpoint_files import TrainingState, list_checkpoints, measure

INDEX = "a" * 64


class FakeFiles:
    """Knows what was written."""

    def __init__(self) -> None:
        self.written: dict[Path, tuple[str, int]] = {}


class FakeEngine:
    """Saves a number where DeepSpeed saves an engine."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.checkpoint_engine: EngineFiles = FakeFiles()

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> None:
        assert not save_latest
        folder = Path(save_dir) / tag
        folder.mkdir(parents=True)
        (folder / "weight").write_text(str(self.weight))
        (folder / "zero_to_fp32.py").write_text("print('unpickles all it finds')")
        self.checkpoint_engine.written[folder / "weight"] = measure(folder / "weight")

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, Any]:
        file = Path(load_dir) / tag / "weight"
        if not file.exists():
            return None, None
        self.weight = int(file.read_text())
        return str(file), {}


def state_at(step: int) -> TrainingState:
    return TrainingState(step=step, samples_seen=4 * step, index_sha256=INDEX, seed=3)


def save_engines(
    run: Path,
    engines: dict[str, FakeEngine],
    step: int,
    *,
    keep: int = 9,
    validation_l1: float | None = None,
    validation_subjects: int = 8,
) -> Path:
    measured = {"validation_l1": validation_l1}
    if validation_l1 is not None:
        measured["validation_subjects"] = validation_subjects
    state = state_at(step).model_copy(update=measured)
    return save_checkpoint(run, engines, state, keep=keep, description={"seed": 3}).folder


def save(run: Path, step: int, *, weight: int = 0, **more: Any) -> Path:
    """`more` goes to `save_engines`."""
    engines = {"generator": FakeEngine(weight), "discriminator": FakeEngine(-weight)}
    return save_engines(run, engines, step, **more)


def names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond this, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
