"""Mutated images in a process of their own, under a limit of memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES, SECONDS = 400, 10


def fuzz(seed: int, count: int, repository: Path) -> dict[str, int]:
    options = {"seed": seed, "count": count, "megabytes": MEGABYTES, "seconds": SECONDS}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-W", "error", "-m", "tests.fuzz_nifti", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not result.stderr
    counts: dict[str, int] = json.loads(result.stdout)
    assert counts["read"] + counts["refused"] == count
    return counts


def test_a_broken_image_is_read_or_refused(repository: Path) -> None:
    counts = fuzz(0, 200, repository)
    # Both happen often enough for the test to mean something.
    assert min(counts.values()) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_broken_images_are_read_or_refused(repository: Path) -> None:
    # For more: python -m tests.fuzz_nifti --help
    assert min(fuzz(100_000, 2000, repository).values()) > 200
