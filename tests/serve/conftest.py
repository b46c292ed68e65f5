"""One service for the tests that leave it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.images import measured_export
from tests.serve.running import RunningService


@pytest.fixture(scope="session")
def service(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    folder = tmp_path_factory.mktemp("serve")
    model = measured_export(tiny_export, folder)
    with RunningService(model, folder / "work", "--max-upload-mb", "8") as running:
        running.wait_until_ready()
        yield running
