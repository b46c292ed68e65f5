"""Whatever is refused is refused in one form: `{"detail": "expected ..., found ...; ..."}`."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ganbert.strict import nearest_remedy

# The client went before there was an answer: a code of the counts alone, which nobody reads.
GONE = 499
_LONGEST_QUOTE = 40
_NO_PATH = "expected a path of this service, found another; /openapi.json lists them"
# What the framework would say with a regular expression, for one.
_KINDS = {
    "int_parsing": "a whole number",
    "string_pattern_mismatch": "1 to 40 letters, digits, + or -",
}
_BUG = "the service failed on this request; its operator finds the cause in its log"


def add_handlers(app: FastAPI) -> None:
    """Give every refusal of an application that form, those of the framework too."""
    app.exception_handler(RequestValidationError)(_refuse_parameter)
    app.exception_handler(HTTPException)(_refuse)
    app.exception_handler(ClientDisconnect)(_let_go)
    app.exception_handler(Exception)(_own_up)


def check_query(request: Request) -> None:
    """Refuse a parameter of the query that the route does not know, or that stands there twice.

    Raises
    ------
    HTTPException
        422, and names it.
    """
    route = request.scope.get("route")
    known = []
    if isinstance(route, APIRoute):
        known = [parameter.alias for parameter in route.dependant.query_params]
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            expected = f"only {' and '.join(known)}" if known else "none"
            remedy = nearest_remedy(name, known) if known else "leave it out"
            found = f"found {_quote(name)}; {remedy}"
            raise HTTPException(422, f"query parameters: expected {expected}, {found}")
        if names.count(name) > 1:
            text = f"query parameters: expected {name} once, found it {names.count(name)} times"
            raise HTTPException(422, f"{text}; keep one")


async def _refuse_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"][1:])
    expected = _KINDS.get(problem["type"]) or problem["msg"].removeprefix("Input should be ")
    text = f"{name}: expected {expected}, found {_quote(problem['input'])}; mend the parameter"
    return JSONResponse({"detail": text}, 422)


async def _refuse(request: Request, error: HTTPException) -> JSONResponse:
    text = error.detail
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        text = f"expected {allowed}, found {_quote(request.method)}; see /openapi.json"
    elif error.status_code == 404 and text == "Not Found":
        text = _NO_PATH
    return JSONResponse({"detail": text}, error.status_code, error.headers)


async def _let_go(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the client has gone"}, GONE)


async def _own_up(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": _BUG}, 500)


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}...")
