"""The fused kernels that a GPU can have give torch's own numbers, but for rounding.

The recipes for GPUs use DeepSpeed's Adam. Apex is used by none (docs/decisions/0010); where it is
installed, its kernels are compared too, so that whoever wants it knows what it changes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import FusedAdam

from ganbert.engines import check_engine_configs
from ganbert.errors import PlatformError
from tests.distributed.test_two_engines import recipe_with

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def after_steps(make: Callable[..., torch.optim.Optimizer], **more: Any) -> list[torch.Tensor]:
    """Weights after 20 steps on gradients of many sizes, from 1e-6 to 1e2."""
    draw = torch.Generator().manual_seed(3)
    shapes = [(64, 33), (1,), (4097,), (8, 3, 3, 3)]
    weights = [torch.randn(shape, generator=draw).to(DEVICE).requires_grad_() for shape in shapes]
    optimizer = make(weights, **SETTINGS, **more)
    for step in range(20):
        for number, weight in enumerate(weights):
            scale = 10.0 ** ((step + 3 * number) % 9 - 6)
            weight.grad = (scale * torch.randn(weight.shape, generator=draw)).to(DEVICE)
        optimizer.step()
    return [weight.detach().cpu() for weight in weights]


def assert_equal_but_for_rounding(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for left, right in zip(one, other, strict=True):
        assert not torch.equal(left, torch.zeros_like(left))
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_adam_of_deepspeed_is_adam_of_torch(decoupled: bool) -> None:
    config = {"type": "Adam", "params": {"lr": 1e-3}}
    try:
        check_engine_configs(recipe_with(optimizer=config))
    except PlatformError as error:
        pytest.skip(str(error))
    plain = torch.optim.AdamW if decoupled else torch.optim.Adam
    fused = after_steps(FusedAdam, adam_w_mode=decoupled)
    assert_equal_but_for_rounding(fused, after_steps(plain))


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_adam_of_apex_is_adam_of_torch(decoupled: bool) -> None:
    apex = pytest.importorskip("apex.optimizers", reason="NVIDIA apex is not installed")
    plain = torch.optim.AdamW if decoupled else torch.optim.Adam
    fused = after_steps(apex.FusedAdam, adam_w_mode=decoupled)
    assert_equal_but_for_rounding(fused, after_steps(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_layer_norm_of_apex_is_that_of_torch(dtype: torch.dtype) -> None:
    apex = pytest.importorskip("apex.normalization", reason="NVIDIA apex is not installed")
    results = []
    for kind in (torch.nn.LayerNorm, apex.FusedLayerNorm):
        torch.manual_seed(0)
        layer = kind(768, eps=1e-12).to(DEVICE, dtype)
        tokens = torch.randn(4, 1027, 768, device=DEVICE, dtype=dtype, requires_grad=True)
        normed = layer(tokens)
        normed.square().mean().backward()
        assert tokens.grad is not None
        results.append((normed.detach(), tokens.grad, layer.weight.grad))
    # To a few of the last places of the type.
    tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, **tolerance)
