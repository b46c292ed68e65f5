"""Around every request: headers that protect the browser, counts, and an end that arrives.

A server that answers before it has read the body (429, 413) and then closes makes the client's
kernel throw the answer away. So the rest of a refused body is read, for a while, and dropped.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ganbert.serve.measures import Measures
from ganbert.serve.problems import GONE

_UPLOAD = ("POST", "/v1/jobs")
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64 << 20
# No script, style, picture or connection that is not the service's own. NiiVue decodes images in
# workers that it makes of blobs.
_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self' data: blob:",
    "worker-src 'self' blob:", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Wire:
    """Wraps the application.

    Parameters
    ----------
    app : what answers
    measures : is told of each request
    """

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The pages may be kept, if the service is asked whether they are still right; data never.
        is_data = scope["path"].startswith("/v1/")
        headers = _HEADERS | {"Cache-Control": "no-store" if is_data else "no-cache"}

        def began_answer(code: int) -> None:
            is_upload = (scope["method"], getattr(scope.get("route"), "path", None)) == _UPLOAD
            if is_upload and code >= 400 and code != GONE:
                self.measures.failed("internal" if code == 500 else "refused")

        request = _Request(receive, send, headers, began_answer, has_body=_has_body(scope))
        began = time.monotonic()
        try:
            await self.app(scope, request.receive, request.send)
        finally:
            # Path and method are the client's words; only those that we know become labels.
            route = getattr(scope.get("route"), "path", None)
            method = scope["method"] if route else "other"
            seconds = time.monotonic() - began
            self.measures.answered(method, route or "other", request.code, seconds)
            self.measures.moved(request.received, request.sent)


def _has_body(scope: Scope) -> bool:
    names = dict(scope["headers"])
    return names.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in names


class _Request:
    """The two ends of one request, counted."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        headers: dict[str, str],
        began_answer: Callable[[int], None],
        *,
        has_body: bool,
    ) -> None:
        self._receive, self._send, self._headers = receive, send, headers
        self._began_answer = began_answer
        self.received, self.sent, self.code = 0, 0, GONE
        self._is_read = not has_body

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            self._began_answer(self.code)
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            if not self._is_read:
                headers["Connection"] = "close"
        if message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            is_last = not message.get("more_body", False)
            if is_last and not self._is_read and self.code >= 400:
                await self._send({**message, "more_body": True})
                await self._drop_rest()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drop_rest(self) -> None:
        limit = self.received + _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._is_read and self.received < limit:
                    await self.receive()
