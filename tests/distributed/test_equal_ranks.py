"""How many ranks share the work, whether they share the optimiser, and when they exchange their
gradients, changes no weight."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import free_port

SCRIPT = Path(__file__).parents[1] / "equal_ranks.py"


def weights_after(
    folder: Path, num_ranks: int, zero_stage: int, *more: str
) -> dict[str, torch.Tensor]:
    """Train on the same four images, shared by so many ranks."""
    launcher = Path(sys.executable).with_name("deepspeed")
    out = folder / f"{num_ranks}-{zero_stage}.safetensors"
    command = [launcher, "--num_gpus", num_ranks, "--master_port", free_port(), SCRIPT]
    paths = f"{SCRIPT.parent}:{SCRIPT.parents[1]}"
    environment = {
        **os.environ, "PATH": f"{launcher.parent}:{os.environ['PATH']}", "PYTHONPATH": paths,
    }  # fmt: skip
    done = subprocess.run(
        [str(part) for part in (*command, out, zero_stage, *more)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return load_file(out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_are_one_and_zero_1_is_zero_0(tmp_path: Path) -> None:
    alone = weights_after(tmp_path, 1, 0)
    for num_ranks, zero_stage, *more in ((2, 0), (2, 1), (2, 1, "--overlap")):
        shared = weights_after(tmp_path, num_ranks, zero_stage, *more)
        assert shared.keys() == alone.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-6, msg=name)
