"""The service's page in a real browser: upload, overlay drawn, values that follow the frame."""

import pytest

from ganbert.serve.pages import STATIC
from tests.browser.test_report_browser import OUTSIDE, contrast
from tests.browser.viewer import Page, playwright
from tests.serve.images import cut_t1w, large_t1w, noisy_t1w, t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself


def test_upload_overlay_and_controls(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    assert "Synthetic image, research use only" in opened.text("#notice")
    opened.upload(large_t1w(48))
    page.wait_for_selector("#controls:not([hidden])")
    opened.until(lambda: any(letter.isdigit() for letter in opened.text("#pet-value")))
    opened.until(lambda: page.get_attribute("#save-sidecar", "href") is not None)
    opened.until(lambda: opened.colours() > 2000)
    drawn = opened.colours()
    assert "SUVR" in opened.text("#values")

    first = opened.text("#pet-value")
    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    opened.until(lambda: opened.text("#pet-value") != first)
    assert "2 of 2" in opened.text("#frame-name")

    # The keyboard alone moves the crosshair and goes back to the first frame.
    page.focus("#view")
    before = opened.text("#position")
    page.keyboard.press("ArrowRight")
    opened.until(lambda: opened.text("#position") != before)
    page.keyboard.press("[")
    assert "1 of 2" in opened.text("#frame-name")

    # The pointer tells its own values.
    page.select_option("#layout", "Axial")
    page.mouse.move(*middle(page, 0.45, 0.55))
    opened.until(lambda: opened.text("#where").startswith("Cursor"))

    # No opacity, no overlay; another layout still draws it.
    page.fill("#opacity", "0")
    opened.until(lambda: opened.colours() < 0.1 * drawn)
    page.fill("#opacity", "1")
    page.select_option("#layout", "Planes, 3D")
    opened.until(lambda: opened.colours() > 2000)

    with page.expect_download() as download:
        page.click("#save-pet")
    told = service.ask("GET", "/v1/model").json["tracer_label"]
    assert download.value.suggested_filename == f"trc-{told}_space-T1w_desc-synth_pet.nii.gz"
    page.click("#delete")
    page.wait_for_selector("#drop:not([hidden])")
    assert not service.files()
    assert not opened.complaints
    origins = {url for url in opened.requests if not url.startswith(("data:", "blob:"))}
    assert all(url.startswith(opened.address) for url in origins)
    opened.context.close()


def middle(page: "playwright.Page", x: float, y: float) -> tuple[float, float]:
    """Return the place at these shares of the images' width and height."""
    box = page.locator("#canvas").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_what_stands_out_is_said_in_words(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    assert not page.is_visible("#quality")
    for content, flags in ((cut_t1w(), ["A part of the head is missing"]),
                           (noisy_t1w(), ["Brightness unlike the training images"]),
                           (t1w(7), [])):  # fmt: skip
        opened.upload(content)
        page.wait_for_selector("#controls:not([hidden])")
        # Where a screen reader announces it, and above the controls.
        said = page.locator("[role=status]").inner_text()
        for flag in flags:
            assert f"Warning: {flag}" in said
        assert bool(page.locator("#flags li").count()) == bool(flags)
        assert ("Look before you use" in said) == bool(flags)
        assert ("No flags" in said and "no promise" in said) == (not flags)
        page.click("#again")
        assert not page.is_visible("#quality")
    assert not opened.complaints
    opened.context.close()


def test_what_the_address_wants_is_asked_for(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    for tracer, is_another in (("AV45", False), ("FDG", True)):
        opened.page.goto(f"{opened.address}?tracer={tracer}")
        opened.upload(t1w(7))
        opened.page.wait_for_selector("#controls:not([hidden])")
        said = opened.text("#quality")
        assert ("Warning: Another tracer than asked for" in said) == is_another
    opened.context.close()


def test_the_images_are_one_stop_of_the_keyboard(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    opened.upload(t1w(7))
    opened.page.wait_for_selector("#controls:not([hidden])")
    focused = "document.activeElement.id"
    assert opened.page.evaluate(focused) == "view"
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate(focused) == "frame"
    opened.context.close()


def test_a_connection_that_breaks_for_a_moment_costs_nothing(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    broken: list[str] = []

    def answer(route: "playwright.Route") -> None:
        if len(broken) < 3:
            broken.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    for path in ("**/v1/jobs/*", "**/v1/jobs/*/events"):
        opened.page.route(path, answer)
    opened.upload(t1w(7))
    opened.page.wait_for_selector("#controls:not([hidden])")
    assert len(broken) == 3
    assert not opened.page.is_visible("#problem")
    opened.context.close()


def test_a_drop_while_the_result_is_fetched_leaves_the_view(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    held: list[playwright.Route] = []
    page.route("**/pet.json", lambda route: held.append(route))
    opened.upload(t1w(7))
    opened.until(lambda: bool(held))
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["x"], "T1w.nii"));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer }));
        }"""
    )
    assert "One image at a time" in opened.text("#problem")
    assert page.is_visible("#view")
    assert page.is_visible("#controls")
    held[0].continue_()
    page.wait_for_selector("#save-sidecar[href]")
    assert page.is_visible("#view")
    assert not opened.complaints
    opened.context.close()


def test_two_images_before_the_model_is_known_are_one_at_a_time(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    held: list[playwright.Route] = []
    page.route("**/v1/model", lambda route: held.append(route))
    page.reload()
    for seed in (7, 8):
        opened.upload(t1w(seed))
    opened.until(lambda: len(held) >= 2)  # the page's own, and that of the first image
    assert "One image at a time" in opened.text("#problem")
    for route in held:
        route.continue_()
    page.wait_for_selector("#save-sidecar[href]")
    assert len([url for url in opened.requests if "/v1/jobs?" in url]) == 1
    opened.context.close()


def test_what_comes_to_nothing_has_no_sign(browser: "playwright.Browser") -> None:
    source = (STATIC.parent / "viewer" / "src" / "numbers.js").read_text().replace("export ", "")
    page = browser.new_page()
    values = "[-0.04, 0, 0.04, -0.06, -12.34, 100]"
    shown = page.evaluate(f"() => {{ {source}; return {values}.map(millimetres); }}")
    assert shown == ["0.0", "0.0", "0.0", "\N{MINUS SIGN}0.1", "\N{MINUS SIGN}12.3", "100.0"]
    page.close()


def test_a_map_of_uncertainty_can_be_had(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    assert not page.is_checked("#with-map")
    page.focus("#with-map")
    page.keyboard.press("Space")
    opened.upload(t1w(2))
    page.wait_for_selector("#save-map[href]:not([hidden])")
    with page.expect_download() as download:
        page.click("#save-map")
    assert download.value.suggested_filename.endswith("desc-synthstd_pet.nii.gz")
    assert download.value.path().stat().st_size > 0
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(
    browser: "playwright.Browser", service: RunningService, scheme: str
) -> None:
    """WCAG AA, 4.5:1, for every ink on every paper that it stands on."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(f"http://127.0.0.1:{service.port}/")

    def colour(name: str) -> str:
        script = "n => getComputedStyle(document.documentElement).getPropertyValue(n)"
        return page.evaluate(script, f"--{name}")

    for ink, paper in (("ink", "page"), ("ink", "card"), ("muted", "page"), ("muted", "card"),
                       ("warn", "warn-soft"), ("ink", "warn-soft"),
                       ("on-accent", "accent")):  # fmt: skip
        assert contrast(colour(ink), colour(paper)) >= 4.5, (ink, paper)
    page.close()


def test_a_refusal_is_shown_and_nothing_is_lost(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    opened.upload(b"no image at all" * 100, "t1w.nii")
    opened.page.wait_for_selector("#problem:not([hidden])")
    assert "NIfTI" in opened.text("#problem")
    assert opened.page.is_visible("#drop")
    # A browser tells of no change where the same file is chosen again.
    assert opened.page.input_value("#file") == ""
    opened.context.close()


@pytest.mark.parametrize("width", [1100, 380])
def test_nothing_sticks_out(
    browser: "playwright.Browser", service: RunningService, width: int
) -> None:
    opened = Page(browser, service.port, width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not opened.page.evaluate(OUTSIDE)
    opened.upload(large_t1w(32))
    opened.page.wait_for_selector("#controls:not([hidden])")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not opened.page.evaluate(OUTSIDE)
    assert opened.page.is_visible("#notice")
    assert not opened.complaints
    opened.context.close()


def test_the_openapi_page_needs_no_network(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    opened.page.goto(opened.address + "docs")
    opened.until(lambda: "/events" in opened.text("body"))
    assert not opened.complaints
    assert all(url.startswith((opened.address, "data:")) for url in opened.requests)
    opened.context.close()
