"""The report in a real browser: quiet, complete, offline, and readable on a narrow screen."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ganbert.report import write_report
from tests.synthetic_run import make_run

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install .[dev])")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PICTURES = """() => [...document.images].map(i => [i.alt, i.complete, i.naturalWidth])"""
# Visible text that sticks out of the window, which a missing scroll bar alone would hide.
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest('svg');
}).map(e => e.tagName + ' ' + e.className)"""
SHOWN_FRAMES = """() => [...document.querySelectorAll('.stage img.frame')]
  .filter(i => i.offsetParent).map(i => i.className)"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("browser")))


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(path for path in map(shutil.which, names) if path)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_report_opens(browser: "playwright.Browser", report: Path, width: int, scheme: str) -> None:
    complaints: list[str] = []
    requests: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    pictures = page.evaluate(PICTURES)
    scrolled = page.evaluate("document.documentElement.scrollWidth")
    outside = page.evaluate(OUTSIDE)
    context.close()
    assert not complaints
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert len(pictures) > 20
    assert all(alt and complete and natural for alt, complete, natural in pictures)
    assert scrolled <= width
    assert not outside


def test_frame_selector_works_with_the_keyboard(
    browser: "playwright.Browser", report: Path
) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    assert set(page.evaluate(SHOWN_FRAMES)) == {"frame frame-0"}
    page.focus("#frame-0")
    page.keyboard.press("ArrowRight")
    assert set(page.evaluate(SHOWN_FRAMES)) == {"frame frame-1"}
    page.close()


def test_text_has_contrast(browser: "playwright.Browser", report: Path) -> None:
    """Ink and muted text reach WCAG AA (4.5:1) on page and cards, light and dark."""
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report.as_uri())
        colors = {
            name: page.evaluate(
                "n => getComputedStyle(document.documentElement).getPropertyValue(n)", f"--{name}"
            )
            for name in ("ink", "muted", "page", "card", "soft", "good", "good-soft", "bad",
                         "bad-soft")
        }  # fmt: skip
        page.close()
        pairs = [(a, b) for a in ("ink", "muted") for b in ("page", "card", "soft")]
        for ink, paper in [*pairs, ("good", "good-soft"), ("bad", "bad-soft")]:
            assert contrast(colors[ink], colors[paper]) >= 4.5, (scheme, ink, paper)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    text = color.strip().lstrip("#")
    parts = [int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
