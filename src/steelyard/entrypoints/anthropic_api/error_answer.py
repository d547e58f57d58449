"""Refusals and failures as Anthropic's clients read them (https://docs.claude.com/en/api/errors)."""

from datetime import datetime
from typing import Any, Final

import msgspec

from steelyard.access.rate_limit import RateLimited
from steelyard.entrypoints.openai_api.error_answer import error_headers, status_of
from steelyard.errors import SteelyardError
from steelyard.gateway.event_stream import write_named_event
from steelyard.gateway.limit_headers import anthropic_limit_headers

_TYPES: Final[dict[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
}


class _Said(msgspec.Struct):
    message: str | None = None


class _Refusal(msgspec.Struct):
    """An upstream's error, in either shape."""

    type: str | None = None
    error: _Said | str | None = None
    message: str | None = None


_refusal_decoder = msgspec.json.Decoder(_Refusal)


class AnthropicErrors:
    """Implements ErrorShape."""

    def body(self, error: SteelyardError) -> bytes:
        return msgspec.json.encode(_document(status_of(error), str(error)) | {"code": error.code})

    def headers(self, error: SteelyardError, *, at: datetime) -> dict[str, str]:
        headers = error_headers(error)
        if isinstance(error, RateLimited):
            headers |= anthropic_limit_headers(error.allowances, at=at)
        return headers

    def event(self, error: SteelyardError) -> bytes:
        return write_named_event("error", self.body(error))

    def refusal(self, body: bytes, *, status: int) -> bytes:
        try:
            said = _refusal_decoder.decode(body)
        except msgspec.DecodeError:
            return msgspec.json.encode(_document(status, body[:500].decode(errors="replace")))
        if said.type == "error":
            return body
        message = said.error.message if isinstance(said.error, _Said) else said.error
        message = message or said.message or f"the model's server answered with {status}"
        return msgspec.json.encode(_document(status, message))


def _document(status: int, message: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
