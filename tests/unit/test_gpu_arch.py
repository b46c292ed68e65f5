"""Which GPUs a build of torch serves."""

import pytest

from ganbert.errors import PlatformError
from ganbert.gpu_arch import Capability, require_code_for, runs_on

CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_13_0 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 0), CUDA_12_6, True),  # V100
        ((7, 0), CUDA_13_0, False),
        ((8, 9), CUDA_12_6, True),  # L40S runs the code of sm_86
        ((8, 0), ["sm_86"], False),  # and the other way round it does not
        ((10, 0), CUDA_12_6, False),  # B200
        ((10, 0), CUDA_13_0, True),
        ((12, 1), ["compute_120"], True),
        ((13, 0), CUDA_13_0, True),  # compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100a", "compute_100f"], False),
        ((9, 0), [], False),
        ((9, 0), ["gfx942"], False),
    ],
)
def test_rules_of_cuda(capability: Capability, architectures: list[str], expected: bool) -> None:
    assert runs_on(capability, architectures) == expected


def test_refusal_names_the_gpu_the_build_and_the_way_out() -> None:
    gpus = [("NVIDIA H100", (9, 0)), ("Tesla V100-SXM2-32GB", (7, 0))]
    require_code_for(gpus, CUDA_12_6, "2.13.0+cu126")
    with pytest.raises(PlatformError) as refusal:
        require_code_for(gpus, CUDA_13_0, "2.13.0+cu130")
    text = str(refusal.value)
    assert text.startswith("GPU 1 (Tesla V100-SXM2-32GB): expected a torch with code for sm_70, ")
    assert "found torch 2.13.0+cu130 for sm_75, " in text
    assert "docs/container.md" in text
    assert "\n" not in text
