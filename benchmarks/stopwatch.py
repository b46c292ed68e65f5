"""Time between marks in a step: CUDA events on a GPU, which wait for nothing, else the host's."""

import time
from typing import Any

import torch

PARTS = (
    "data",
    "generator forward",
    "discriminator forward",
    "discriminator backward",
    "discriminator optimiser",
    "judgement forward",
    "judgement backward",
    "generator backward",
    "generator optimiser",
)


class Stopwatch:
    """Adds up seconds by part of a step.

    Parameters
    ----------
    device : whose time is measured
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """End a part: what was done since the mark before belongs to it. The first only starts."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def take(self) -> dict[str, float]:
        """Wait for the device, return the sums in seconds and begin anew."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = {}
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if self._device.type == "cuda":
                lasted = before.elapsed_time(after) / 1000
            else:
                lasted = after - before
            seconds[part] = seconds.get(part, 0.0) + lasted
        self._marks = []
        return seconds
