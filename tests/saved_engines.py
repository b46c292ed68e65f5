"""What DeepSpeed has saved, leaf by leaf, to compare runs to the last bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ganbert.engine_files import DATA_CLASSES
from ganbert.weights_only import load_plain


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value of nested containers, by its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, part in enumerate(value):
            yield from leaves(part, f"{name}/{key}")
    else:
        yield name, vars(value) if hasattr(value, "cur_scale") else value


def assert_same(one: Any, other: Any) -> None:
    """Hold two nested containers to the same keys, types and bits."""
    left, right = dict(leaves(one)), dict(leaves(other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if torch.is_tensor(value):
            assert value.dtype == right[name].dtype, name
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


def engines_of(checkpoint: Path) -> dict[str, Any]:
    """All files of both engines: weights, moments, schedule, loss scale, counters."""
    files = sorted(checkpoint.glob("*/engine/*.pt"))
    return {str(file.relative_to(checkpoint)): load_plain(file, DATA_CLASSES) for file in files}
