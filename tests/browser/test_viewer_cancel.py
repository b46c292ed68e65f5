"""Cancel, on the service's page in a real browser: whenever it comes, no job is left."""

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.browser.viewer import Page, playwright
from tests.serve.images import large_t1w, t1w
from tests.serve.running import RunningService

pytestmark = pytest.mark.slow  # starts the service itself


class LateProxy(ThreadingHTTPServer):
    """A proxy before a service that keeps the answer to the first upload.

    Attributes
    ----------
    kept : set when the service has given that answer, its job's place in `location`
    let_go : to be set by the test: the answer goes on to the browser
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.service_port = port
        self.kept, self.let_go = threading.Event(), threading.Event()
        self.location = ""
        self.first = threading.Lock()


class _Forward(BaseHTTPRequestHandler):
    """Hands on a whole request, and a whole answer."""

    server: LateProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        there = http.client.HTTPConnection("127.0.0.1", self.server.service_port, timeout=60)
        there.request(self.command, self.path, body or None, dict(self.headers))
        answer = there.getresponse()
        content = answer.read()
        there.close()
        if self.command == "POST" and self.server.first.acquire(blocking=False):
            self.server.location = answer.getheader("Location", "")
            self.server.kept.set()
            self.server.let_go.wait(60)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _forward

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def late(service: RunningService) -> Iterator[LateProxy]:
    with LateProxy(service.port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.let_go.set()
        proxy.shutdown()


def test_an_image_that_is_cancelled_before_the_answer_leaves_no_job(
    browser: "playwright.Browser", service: RunningService, late: LateProxy
) -> None:
    opened = Page(browser, late.server_port, 1100)
    page = opened.page
    opened.upload(t1w(7))
    opened.until(late.kept.is_set)
    page.click("#cancel")

    # It is said at once, and the page is free for another image: the answer is still to come.
    page.wait_for_selector("#work", state="hidden")
    assert page.locator("[role=status]").inner_text() == "Cancelled."
    assert page.get_attribute("#drop", "inert") is None
    assert service.ask("GET", late.location).status == 200
    opened.upload(t1w(8))
    page.wait_for_selector("#save-sidecar[href]")
    assert not page.is_visible("#cancelled")

    with page.expect_request(lambda request: request.method == "DELETE") as deleted:
        late.let_go.set()
    assert deleted.value.url.endswith(late.location)
    assert deleted.value.response().status == 204
    assert service.ask("GET", late.location).status == 404
    assert page.is_visible("#controls")  # of the other image
    page.click("#delete")
    page.wait_for_selector("#drop:not([hidden])")
    assert not service.files()
    assert not opened.complaints
    opened.context.close()


def test_a_job_that_cannot_be_deleted_after_a_cancel_is_told_of(
    browser: "playwright.Browser", late: LateProxy
) -> None:
    opened = Page(browser, late.server_port, 1100)
    page = opened.page
    page.route("**/v1/jobs/*", lambda route: route.fulfill(status=503, body="{}"))
    opened.upload(t1w(7))
    opened.until(late.kept.is_set)
    page.click("#cancel")
    page.wait_for_selector("#cancelled:not([hidden])")
    late.let_go.set()
    page.wait_for_selector("#problem:not([hidden])")
    assert "503" in opened.text("#problem")
    opened.context.close()


def test_an_image_at_work_can_be_cancelled_and_another_is_not_lost_in_silence(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    page.route("**/events", lambda route: None)  # no answer, as of a job that takes long
    opened.upload(large_t1w(48))
    page.wait_for_selector("#work:not([hidden])")
    opened.until(lambda: any(url.endswith("/events") for url in opened.requests))
    assert page.get_attribute("#drop", "inert") is not None
    opened.upload(large_t1w(48))
    assert "One image at a time" in opened.text("#problem")
    with page.expect_request(lambda request: request.method == "DELETE") as deleted:
        page.click("#cancel")
    page.wait_for_selector("#work", state="hidden")
    assert deleted.value.response().status == 204
    assert page.is_hidden("#problem")
    assert page.get_attribute("#drop", "inert") is None

    page.unroute("**/events")
    opened.upload(large_t1w(48))
    page.wait_for_selector("#controls:not([hidden])")
    assert not opened.complaints


def test_an_image_that_is_cancelled_before_it_is_sent_is_not_sent(
    browser: "playwright.Browser", service: RunningService
) -> None:
    opened = Page(browser, service.port, 1100)
    page = opened.page
    page.evaluate(
        """() => {
            const read = Blob.prototype.arrayBuffer;
            Blob.prototype.arrayBuffer = async function () {
                await new Promise((done) => { window.readOn = done; });
                return read.call(this);
            };
        }"""
    )
    opened.upload(t1w(7))
    page.click("#cancel")
    page.evaluate("window.readOn()")
    page.wait_for_selector("#work", state="hidden")
    page.wait_for_selector("#intro:not([hidden])")
    page.wait_for_timeout(500)
    assert not [url for url in opened.requests if "/v1/jobs" in url]
    assert page.is_hidden("#problem")
    opened.context.close()
