"""Whatever is refused is refused in one form: `{"detail": "expected ..., found ...; ..."}`."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ganbert.strict import nearest_remedy

_LONGEST_QUOTE = 40
_NO_PATH = "expected a path of this service, found another; /openapi.json lists them"
_BUG = "the service failed on this request; its operator finds the cause in its log"


def add_handlers(app: FastAPI) -> None:
    """Give every refusal of an application that form, those of the framework too."""
    app.exception_handler(RequestValidationError)(_refuse_parameter)
    app.exception_handler(HTTPException)(_refuse)
    app.exception_handler(Exception)(_own_up)


def check_query(request: Request) -> None:
    """Refuse a parameter of the query that the route does not know.

    Raises
    ------
    HTTPException
        422, and names it.
    """
    route = request.scope.get("route")
    known = []
    if isinstance(route, APIRoute):
        known = [parameter.alias for parameter in route.dependant.query_params]
    for name in request.query_params:
        if name not in known:
            expected = f"only {' and '.join(known)}" if known else "none"
            remedy = nearest_remedy(name, known) if known else "leave it out"
            found = f"found {_quote(name)}; {remedy}"
            raise HTTPException(422, f"query parameters: expected {expected}, {found}")


async def _refuse_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"][1:])
    expected = "a whole number"
    if problem["type"] != "int_parsing":
        expected = problem["msg"].removeprefix("Input should be ")
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


async def _own_up(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": _BUG}, 500)


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}...")
