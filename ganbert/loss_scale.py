"""float16's loss scale at its lowest: the end of a run, in one line.

An overflow makes DeepSpeed pass over a step and lower the scale. At the lowest scale its optimisers
differ: ZeRO's raises a bare `Exception`; those without ZeRO pass over every step from then on
without a word, and the run goes on for days and learns nothing.
"""

from typing import Any

from torch import Tensor

from ganbert.errors import GanbertError

_SAID_BY_ZERO = "loss scale already at minimum"


def backward_and_step(engine: Any, loss: Tensor, network: str) -> None:
    """Backward pass of a micro-batch; with the last one of a step, the optimiser's step.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine
    loss : Tensor (), float32
    network : "generator" or "discriminator", for the message

    Raises
    ------
    GanbertError
        If gradients overflow in float16 at the lowest dynamic loss scale (design decision): on all
        ranks alike, since DeepSpeed asks all of them whether there was an overflow.
    """
    engine.backward(loss)
    floor = _lowest_scale(engine)
    was_lowest = floor is not None and engine.optimizer.loss_scale <= floor
    ends_step = engine.is_gradient_accumulation_boundary()
    try:
        engine.step()
    except Exception as error:
        if floor is None or _SAID_BY_ZERO not in str(error):
            raise
        raise _at_floor(network, floor) from error
    if floor is not None and was_lowest and ends_step and engine.optimizer.overflow:
        raise _at_floor(network, floor)


def _lowest_scale(engine: Any) -> float | None:
    """Lowest value of a dynamic loss scale; None where there is none."""
    if not (engine.fp16_enabled() and engine.dynamic_loss_scale()):
        return None
    scaler = getattr(engine.optimizer, "loss_scaler", None)  # ZeRO's
    if scaler is not None:
        return float(scaler.min_scale)
    return float(engine.optimizer.loss_scale_config.min_loss_scale)


def _at_floor(network: str, floor: float) -> GanbertError:
    return GanbertError(
        f"loss scale of the {network}",
        expected="gradients that float16 can hold at some scale",
        found=f"an overflow at the lowest, {floor:g}",
        remedy="lower the learning rate or the loss weights, or use bf16, and resume from a "
        "checkpoint",
    )
