"""The pages for people: the viewer, and the OpenAPI page. Nothing in them comes from elsewhere.

Their scripts are NiiVue and Swagger UI, from npm. They are bundled by `make viewer`, into
`static/`, and are not in the repository.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
NOT_BUILT = (
    "The page is not built: run `make viewer` in the source folder (it needs npm). "
    "The service works without it; see /openapi.json."
)


def is_built() -> bool:
    """Whether `make viewer` has been run."""
    return (STATIC / "index.html").is_file()


def add_pages(app: FastAPI) -> None:
    """Add `/` (the viewer), `/docs` (the OpenAPI page) and what the two load from `/static`."""

    async def page(request: Request) -> Response:
        name = "docs.html" if request.url.path == "/docs" else "index.html"
        if not is_built():
            return PlainTextResponse(NOT_BUILT + "\n", status_code=404)
        return FileResponse(STATIC / name)

    app.add_route("/", page, include_in_schema=False)
    app.add_route("/docs", page, include_in_schema=False)
    if is_built():  # else it would answer 500
        app.mount("/static", StaticFiles(directory=STATIC), name="static")
