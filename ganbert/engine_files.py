"""The files of DeepSpeed's checkpoints: written with their checksums, read without running code.

DeepSpeed reads its checkpoints with a full unpickler, and those of ZeRO 1 on as many ranks as wrote
them and no others. Each engine gets a `PlainFiles` as its checkpoint engine, which is the door that
DeepSpeed has for this. It shows the checkpoint as if so many ranks had written it as there are now.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from ganbert.data.index import file_sha256
from ganbert.errors import CheckpointError
from ganbert.weights_only import load_plain

# What ZeRO 1 writes beside tensors: numbers in classes that do nothing when they are made.
DATA_CLASSES = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
_PART = re.compile(r"(.*zero_pp_rank_)(\d+)(_mp_rank_\d+_optim_states\.pt)")
# `DeepSpeedZeroOptimizer.nccl_start_alignment_factor`.
_ALIGNMENT = 2
State = dict[str, Any]


class PlainFiles(TorchCheckpointEngine):
    """Writes and reads the files of one engine's checkpoints.

    Attributes
    ----------
    written : (SHA-256, bytes) of what this rank has written since it was last emptied, by path
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.written: dict[Path, tuple[str, int]] = {}
        self._saved_ranks = 0

    def save(self, state_dict: State, path: str) -> None:
        """Write a file, wait until it is on the disk, and keep its checksum."""
        super().save(state_dict, path)
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
        self.written[Path(path)] = file_sha256(Path(path)), size

    def load(self, path: str, map_location: Any = None) -> State:
        """Read a file onto the CPU; `map_location` is DeepSpeed's, and always that.

        Raises
        ------
        CheckpointError
            If it is torn or holds more than data, or cannot be split over the ranks there are.
        """
        part = _PART.fullmatch(Path(path).name)
        if part is None:
            state = _read(Path(path))
            self._saved_ranks = state["dp_world_size"]
            return state | {"dp_world_size": dist.get_world_size()}
        if self._saved_ranks == dist.get_world_size():
            return _read(Path(path))
        names = [f"{part[1]}{rank}{part[3]}" for rank in range(self._saved_ranks)]
        parts = [_read(Path(path).with_name(name)) for name in names]
        merged = repartition(
            [state["optimizer_state_dict"] for state in parts], int(part[2]), dist.get_world_size()
        )
        return parts[0] | {"optimizer_state_dict": merged}


def _read(file: Path) -> State:
    state: State = load_plain(file, DATA_CLASSES)
    return state


def repartition(parts: list[State], rank: int, num_ranks: int) -> State:
    """One rank's part of an optimiser that other ranks have split.

    ZeRO 1 lays the parameters of a group end to end, in the same order on any number of ranks,
    fills up to a multiple of 2 x ranks and cuts into equal parts.

    Parameters
    ----------
    parts : states of `DeepSpeedZeroOptimizer`, of all ranks that wrote the checkpoint, in order
    rank, num_ranks : whose part is wanted, and of how many

    Raises
    ------
    CheckpointError
        If the optimiser keeps something that is not a number for each parameter.
    """
    first = parts[0]
    base = first["base_optimizer_state"]
    weights, paddings, states = [], [], {}
    for group in range(len(first["single_partition_of_fp32_groups"])):
        of_group = [part["single_partition_of_fp32_groups"][group] for part in parts]
        size = _part_size(sum(len(weight) for weight in of_group), num_ranks)
        own = _cut(of_group, rank, size)
        weights.append(own)
        paddings.append(size - len(own))
        states[group] = {
            name: _cut_padded([p["base_optimizer_state"]["state"][group][name] for p in parts],
                              of_group, rank, size, name)
            if torch.is_tensor(value) and value.dim() > 0
            else value
            for name, value in base["state"].get(group, {}).items()
        }  # fmt: skip
    return first | {
        "single_partition_of_fp32_groups": weights,
        "group_paddings": paddings,
        "base_optimizer_state": base | {"state": states if base["state"] else {}},
    }


def _part_size(num_weights: int, num_ranks: int) -> int:
    return math.ceil(num_weights / (_ALIGNMENT * num_ranks)) * _ALIGNMENT


def _cut(parts: list[torch.Tensor], rank: int, size: int) -> torch.Tensor:
    return torch.cat(parts)[rank * size : (rank + 1) * size].clone()


def _cut_padded(
    parts: list[torch.Tensor], weights: list[torch.Tensor], rank: int, size: int, name: str
) -> torch.Tensor:
    """The same for what the optimiser remembers, which is saved with its padding."""
    sizes = {len(part) for part in parts}
    if len(sizes) != 1 or sizes.pop() != _part_size(sum(map(len, weights)), len(parts)):
        raise CheckpointError(
            f"optimiser state '{name}'",
            expected="a number for each parameter",
            found="another shape",
            remedy="resume on as many ranks as before",
        )
    own = _cut([p[: len(w)] for p, w in zip(parts, weights, strict=True)], rank, size)
    return torch.nn.functional.pad(own, (0, size - len(own)))
