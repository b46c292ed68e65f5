"""The page of the service, opened in a browser; who imports this skips where that cannot be."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ganbert.serve.pages import is_built

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install .[dev])")
pytest.importorskip("fastapi", reason="no fastapi (pip install .[serve])")
if not is_built():
    pytest.skip("the page is not built (make viewer)", allow_module_level=True)

# WebGL 2 without a GPU.
DRAWING = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Page:
    """An open page, and what it complained about."""

    def __init__(self, browser: "playwright.Browser", port: int, width: int) -> None:
        self.address = f"http://127.0.0.1:{port}/"
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 700})
        self.page = page = self.context.new_page()
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on(
            "console",
            lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.goto(self.address)

    def upload(self, content: bytes, name: str = "scan") -> None:
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        self.page.set_input_files("#file", [file])

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def until(self, is_true: Callable[[], bool]) -> None:
        """Wait; the page's policy forbids Playwright's own way, which evaluates a text."""
        end = time.monotonic() + 90
        while not is_true():
            assert time.monotonic() < end, self.text("body")
            self.page.wait_for_timeout(100)

    def colours(self) -> int:
        """Pixels of the images that are not grey: only the PET has a colour."""
        shot = self.page.locator("#canvas").screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
        # The crosshair is blue, the colour map `hot` never.
        return int((pixels[..., 0] - pixels[..., 2] > 40).sum())
