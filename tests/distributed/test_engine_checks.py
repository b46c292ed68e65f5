"""The checks of tests/gpu on the CPU: they hold where they should, and fail where they should."""

from typing import Any

import pytest
import torch

from tests.engine_checks import (
    CHECKPOINTED,
    IN_HALVES,
    TOLERANCES,
    ZERO_1,
    assert_alike,
    checked_recipe,
    sgd,
    three_steps,
)

pytestmark = pytest.mark.usefixtures("world_of_one")


@pytest.mark.parametrize(
    "settings", [CHECKPOINTED, IN_HALVES, ZERO_1], ids=["checkpointing", "accumulation", "zero_1"]
)
def test_what_must_not_change_a_step_does_not(settings: dict[str, Any]) -> None:
    found, reference = three_steps(checked_recipe(**settings)), three_steps(checked_recipe())
    # In halves, the generator is judged by a discriminator that has not learnt from them yet.
    assert_alike(found, reference, losses=1e-2 if settings is IN_HALVES else 1e-5, ways=1e-3)


def test_bf16_stays_near_fp32() -> None:
    found, reference = (
        three_steps(checked_recipe(**settings)) for settings in ({"bf16": {"enabled": True}}, {})
    )
    assert (found.dtype, reference.dtype) == (torch.bfloat16, torch.float32)
    # Losses were 5e-4 apart and ways 0.22 when this was written: weights of 8 bits.
    assert_alike(found, reference, **TOLERANCES["bf16"])


def test_another_training_is_seen() -> None:
    faster, reference = (three_steps(checked_recipe(**s)) for s in (sgd(0.02), sgd(0.01)))
    with pytest.raises(AssertionError, match="allowed"):
        assert_alike(faster, reference, **TOLERANCES["bf16"])
