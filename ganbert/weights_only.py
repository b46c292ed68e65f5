"""Reading what torch has saved without running any of it.

A pickle is a program: whoever can write a checkpoint could run code on every rank. So nothing but
tensors, numbers, text and plain containers is taken from one, and from DeepSpeed's files the few
classes of data that it writes.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ganbert.errors import CheckpointError


def load_plain(file: Path, also: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save`, onto the CPU.

    Parameters
    ----------
    also : classes that may be in it besides; of data alone, for their `__setstate__` would be run

    Raises
    ------
    CheckpointError
        If there is anything else in it, or it is torn or gone.
    """
    try:
        with torch.serialization.safe_globals(list(also)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        strange = _strange_names(file, also)
        raise CheckpointError(
            file,
            expected="tensors and plain values",
            found=f"code ({', '.join(strange)})" if strange else _describe(error),
            remedy="it is not what training writes: do not load it with anything else, find out "
            "who wrote it"
            if strange
            else "remove this checkpoint to go on from the one before",
        ) from error


def _strange_names(file: Path, also: Sequence[type]) -> list[str]:
    """Names that the pickle would call; none where that cannot be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError, KeyError):
        return []
    return sorted(set(names) - {f"{kind.__module__}.{kind.__qualname__}" for kind in also})


def _describe(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "a file that cannot be read"
    return "a file that is cut off or damaged"
