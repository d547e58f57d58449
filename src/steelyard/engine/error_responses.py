"""How refusals and failures look on the wire: the OpenAI error shape, in one place."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from steelyard.engine.refusals import HTTP_STATUS, RETRY_AFTER_S, EngineRefusal
from steelyard.errors import SteelyardError


def error_body(error: SteelyardError) -> dict[str, Any]:
    """The OpenAI shape of an error, with the numbers a refusal carries."""
    if isinstance(error, EngineRefusal):
        shape = _shape(str(error), error.code, kind=error.error_type, param=error.param)
        shape["error"] |= error.numbers
        return shape
    return _shape(str(error), error.code, kind="server_error")


def error_response(error: SteelyardError, *, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer to a refusal or a failure."""
    headers = dict(headers or {})
    if (retry_after_s := RETRY_AFTER_S.get(type(error))) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return json_response(error_body(error), status=HTTP_STATUS[type(error)], headers=headers)


def json_response(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON in UTF-8."""
    encoded = msgspec.json.encode(content)
    return Response(encoded, status, headers, media_type="application/json")


async def http_exception_response(request: Request, error: Exception) -> Response:
    """Starlette's own errors, such as an unknown path, in the same shape."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{error.detail}: {request.method} {request.url.path}"
    content = _shape(message, code, kind="invalid_request_error")
    return json_response(content, status=error.status_code, headers=error.headers)


async def bug_response(_request: Request, _error: Exception) -> Response:
    """The answer when our own code is wrong; the traceback goes to the log, not to the client."""
    content = _shape(
        "the engine has a bug; its log says more", "internal_error", kind="server_error"
    )
    return json_response(content, status=500)


def _shape(message: str, code: str, *, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
