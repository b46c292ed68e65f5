"""What the tests of the service's page share: a service, and a browser that draws."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def service(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.serve.images import measured_export
    from tests.serve.running import RunningService

    folder = tmp_path_factory.mktemp("viewer")
    with RunningService(measured_export(tiny_export, folder), folder / "work") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.browser.test_report_browser import FLAGS
    from tests.browser.viewer import DRAWING, playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(path for path in map(shutil.which, names) if path)
    flags = [flag for flag in FLAGS if flag != "--disable-gpu"] + list(DRAWING)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()
