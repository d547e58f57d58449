"""The shape of errors, which each surface has of its own."""

from datetime import datetime
from typing import Protocol

import msgspec

from steelyard.entrypoints.openai_api.error_answer import error_body, error_headers
from steelyard.errors import SteelyardError
from steelyard.gateway.event_stream import write_event, write_named_event


class ErrorShape(Protocol):
    """How a surface tells its clients that something went wrong."""

    def body(self, error: SteelyardError) -> bytes: ...

    def headers(self, error: SteelyardError, *, at: datetime) -> dict[str, str]:
        """When to come back, and what is left of the limits."""
        ...

    def event(self, error: SteelyardError) -> bytes:
        """The last event of a stream that breaks off."""
        ...

    def refusal(self, body: bytes, *, status: int) -> bytes:
        """An upstream's own refusal, as this surface's clients read it."""
        ...


class OpenAIErrors:
    """Implements ErrorShape for chat, completions and embeddings."""

    def body(self, error: SteelyardError) -> bytes:
        return error_body(error)

    def headers(self, error: SteelyardError, *, at: datetime) -> dict[str, str]:
        del at
        return error_headers(error)

    def event(self, error: SteelyardError) -> bytes:
        return write_event(error_body(error))

    def refusal(self, body: bytes, *, status: int) -> bytes:
        return body


class ResponsesErrors(OpenAIErrors):
    """Implements ErrorShape for the Responses API, whose events have names."""

    def event(self, error: SteelyardError) -> bytes:
        event = {"type": "error", "code": error.code, "message": str(error), "param": None}
        return write_named_event("error", msgspec.json.encode(event))
