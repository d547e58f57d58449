"""Refusals and failures as OpenAI-shaped errors: one table of statuses, in one place."""

import math
from typing import Any, Final

import msgspec

from steelyard.access.limits import AddressNotAllowed, ModelNotAllowed
from steelyard.access.rate_limit import RateLimited, TokensOverLimit
from steelyard.access.virtual_key import KeyExpired, KeyMissing, KeyRevoked, KeyUnknown
from steelyard.errors import Failure, Refusal, SteelyardError
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.gateway.batches.records import BatchNotFound, BatchOver, FileInUse, FileNotFound
from steelyard.gateway.documents.reading import DocumentTooLarge
from steelyard.gateway.documents.store import DocumentOver, DocumentsUnavailable
from steelyard.gateway.editor_sessions import RequestSuperseded
from steelyard.gateway.idempotency import IdempotencyConflict, IdempotencyKeyReused
from steelyard.gateway.kept_answers import AnswersUnavailable
from steelyard.gateway.limit_headers import limit_headers
from steelyard.gateway.pipelines.pipeline import PipelineCyclic, PipelineMalformed
from steelyard.gateway.pipelines.pipeline_runner import PipelineNotFound, RunOver, StageFailed
from steelyard.gateway.pipelines.run_store import RunNotFound
from steelyard.gateway.refusals import (
    AnswerTooLong,
    AudioTooLong,
    ImageTooLarge,
    InvalidRequest,
    ModelNotFound,
    NotEnoughMoney,
    OverBudget,
    PromptTooLong,
    SurfaceNotServed,
    UnsupportedMediaType,
)
from steelyard.gateway.upstreams.base import (
    CircuitOpen,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamTimedOut,
    UpstreamUnavailable,
)
from steelyard.metering.audio_length import AudioTruncated, AudioUnsupported
from steelyard.metering.picture_size import PictureUnsupported
from steelyard.metering.upstream_usage import UpstreamUsageMalformed
from steelyard.pricing.price_book import PriceNotFound


class InternalError(Failure):
    """Something is wrong with the gateway itself. Nothing was charged; the log has the reason."""

    code = "internal_error"


class BodyTooLarge(Refusal):
    """The body of the request is larger than is allowed."""

    code = "request_too_large"


class HeadersTooLarge(Refusal):
    """The headers of the request are larger than is allowed."""

    code = "headers_too_large"


class HttpMalformed(Refusal):
    """This is not HTTP/1.1."""

    code = "http_malformed"


class RequestTimeout(Refusal):
    """The request took too long to come."""

    code = "request_timeout"


class EndpointNotFound(Refusal):
    """There is no such address here."""

    code = "endpoint_not_found"


class EventNotFound(Refusal):
    """There is no such usage event of your organisation's. One that another gateway made a moment
    ago appears once it is settled."""

    code = "event_not_found"


class DocumentNotFound(Refusal):
    """There is no such document of this key's."""

    code = "document_not_found"


class MethodNotAllowed(Refusal):
    """This address takes another method."""

    code = "method_not_allowed"


HTTP_STATUS: Final[dict[type[SteelyardError], int]] = {
    InvalidRequest: 400,
    AnswerTooLong: 400,
    AudioTruncated: 400,
    HttpMalformed: 400,
    KeyMissing: 401,
    KeyUnknown: 401,
    KeyRevoked: 401,
    KeyExpired: 401,
    NotEnoughMoney: 402,
    OverBudget: 402,
    AddressNotAllowed: 403,
    ModelNotAllowed: 403,
    ModelNotFound: 404,
    SurfaceNotServed: 404,
    EndpointNotFound: 404,
    EventNotFound: 404,
    FileNotFound: 404,
    BatchNotFound: 404,
    PipelineNotFound: 404,
    RunNotFound: 404,
    PipelineMalformed: 400,
    PipelineCyclic: 400,
    StageFailed: 502,
    RunOver: 409,
    BatchOver: 409,
    FileInUse: 409,
    DocumentNotFound: 404,
    DocumentOver: 409,
    DocumentTooLarge: 413,
    DocumentsUnavailable: 503,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    IdempotencyConflict: 409,
    RequestSuperseded: 409,
    IdempotencyKeyReused: 422,
    BodyTooLarge: 413,
    PromptTooLong: 413,
    AudioTooLong: 413,
    ImageTooLarge: 413,
    UnsupportedMediaType: 415,
    AudioUnsupported: 415,
    PictureUnsupported: 415,
    TokensOverLimit: 413,
    RateLimited: 429,
    HeadersTooLarge: 431,
    PriceNotFound: 503,
    UpstreamFailed: 502,
    UpstreamKeyRefused: 502,
    UpstreamTimedOut: 504,
    UpstreamUsageMalformed: 502,
    UpstreamUnavailable: 503,
    CircuitOpen: 503,
    EventLogUnavailable: 503,
    AnswersUnavailable: 503,
    InternalError: 500,
    Failure: 503,
}
RETRY_AFTER_S: Final = 2

_TYPES: Final[dict[int, str]] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "upstream_error",
}


def status_of(error: SteelyardError) -> int:
    """The status of the nearest class in the table."""
    for kind in type(error).__mro__:
        if kind in HTTP_STATUS:
            return HTTP_STATUS[kind]
    return 400 if isinstance(error, Refusal) else 503


def error_body(error: SteelyardError) -> bytes:
    """An error as OpenAI's clients read it."""
    status = status_of(error)
    shape: dict[str, Any] = {
        "message": str(error),
        "type": _TYPES.get(status, "invalid_request_error"),
        "param": error.parameter if isinstance(error, InvalidRequest) else None,
        "code": error.code,
    }
    return msgspec.json.encode({"error": shape})


def error_headers(error: SteelyardError) -> dict[str, str]:
    """When to come back, where coming back helps."""
    if isinstance(error, RateLimited | CircuitOpen):
        retry_after = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
        is_limit = isinstance(error, RateLimited)
        return retry_after | (limit_headers(error.allowances) if is_limit else {})
    return {"retry-after": str(RETRY_AFTER_S)} if status_of(error) == 503 else {}
