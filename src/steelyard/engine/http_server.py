"""The HTTP edge: routes, bodies and request ids. It imports torch only through a loaded engine."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from steelyard.clock import unix_seconds
from steelyard.engine.encoder_routes import EncoderRoutes
from steelyard.engine.error_responses import (
    bug_response,
    error_response,
    http_exception_response,
    json_response,
)
from steelyard.engine.media.routes import MediaRoom, draw, speak, transcribe
from steelyard.engine.metrics import CONTENT_TYPE, EngineMetrics
from steelyard.engine.refusals import (
    BodyTooLarge,
    EngineLoading,
    EngineStopped,
    RequestLogOff,
    RequestUnknown,
)
from steelyard.engine.wire import (
    ChatBody,
    CompletionBody,
    RequestsBody,
    TokenizeBody,
    check_generation,
    decode_body,
)
from steelyard.errors import SteelyardError
from steelyard.ids import new_id

if TYPE_CHECKING:
    from steelyard.engine.encoder import Encoder
    from steelyard.engine.engine import Engine
    from steelyard.engine.image_classifier import ImageClassifier
    from steelyard.engine.model_shelf import ModelShelf
    from steelyard.engine.request_log import RequestLog

# What a proxy or a log may safely carry.
_OPAQUE: Final = re.compile(r"[!-~]{1,200}")
WRITER_PATHS: Final = ("/v1/chat/completions", "/v1/completions")
_TOKENIZER_THREADS: Final = 2
_LOADING_WAITERS: Final = 64
Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


@dataclass(slots=True)
class Serving:
    """What the edge knows of the engine: nothing while the model loads, then the engine."""

    body_bytes_max: int
    upload_bytes_max: int = 32 * 1024 * 1024
    shelf: ModelShelf | None = None
    request_log: RequestLog | None = None
    media: MediaRoom = field(default_factory=MediaRoom)
    encoders: dict[str, Encoder] = field(default_factory=dict[str, "Encoder"])
    image_classifiers: dict[str, ImageClassifier] = field(
        default_factory=dict[str, "ImageClassifier"]
    )
    metrics: EngineMetrics = field(init=False)
    created: int = field(default_factory=unix_seconds)

    def __post_init__(self) -> None:
        self.metrics = EngineMetrics(lambda: [] if self.shelf is None else self.shelf.engines)

    def ready_shelf(self) -> ModelShelf:
        """The models, once they can answer."""
        if self.shelf is None:
            raise EngineLoading
        if not all(engine.is_alive for engine in self.shelf.engines):
            raise EngineStopped
        return self.shelf


def build_app(serving: Serving) -> Starlette:
    """The engine's HTTP application."""
    edge = _Edge(serving)
    routes = [
        Route("/health", edge.health),
        Route("/stats", _guard(edge.stats)),
        Route("/metrics", edge.metrics),
        Route("/requests", _guard(edge.find_requests), methods=["POST"]),
        Route("/requests/{request_id:path}", _guard(edge.find_request)),
        Route("/v1/models", _guard(edge.models)),
        Route("/tokenize", _guard(edge.tokenize), methods=["POST"]),
        Route("/v1/chat/completions", _guard(edge.chat), methods=["POST"]),
        Route("/v1/completions", _guard(edge.completions), methods=["POST"]),
        Route("/v1/audio/transcriptions", _guard(edge.transcriptions), methods=["POST"]),
        Route("/v1/images/generations", _guard(edge.images), methods=["POST"]),
        Route("/v1/audio/speech", _guard(edge.speech), methods=["POST"]),
    ]
    encoders = edge.encoder_routes
    for path, answer in (
        ("/v1/classifications", encoders.classify),
        ("/v1/moderations", encoders.moderate),
        ("/v1/embeddings", encoders.embed),
        ("/v1/rerank", encoders.rerank),
    ):
        routes.append(Route(path, _guard(edge.answers_by(answer)), methods=["POST"]))
    handlers = {HTTPException: http_exception_response, Exception: bug_response}
    return Starlette(routes=routes, exception_handlers=handlers)


class _Edge:
    """One method for each route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._limiter = CapacityLimiter(_TOKENIZER_THREADS)
        self.encoder_routes = EncoderRoutes(serving.encoders, serving.image_classifiers)
        # Whoever waits for a model must not keep others from tokenizing.
        self._loading = CapacityLimiter(_LOADING_WAITERS)

    async def health(self, _request: Request) -> Response:
        shelf = self._serving.shelf
        if shelf is None:
            return json_response({"status": "loading"}, status=503, headers={"Retry-After": "5"})
        if not all(engine.is_alive for engine in shelf.engines):
            return json_response({"status": "dead"}, status=503)
        return json_response({"status": "ready"})

    async def stats(self, _request: Request) -> Response:
        return json_response(asdict(self._serving.ready_shelf().stats()))

    async def metrics(self, _request: Request) -> Response:
        return Response(self._serving.metrics.expose(), media_type=CONTENT_TYPE)

    async def find_request(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        log = self._serving.request_log
        if log is None:
            raise RequestLogOff
        found = await anyio.to_thread.run_sync(log.find, request_id)
        if found is None:
            raise RequestUnknown
        return json_response(found)

    async def find_requests(self, request: Request) -> Response:
        body = await self._read(request, RequestsBody)
        log = self._serving.request_log
        if log is None:
            raise RequestLogOff
        found = await anyio.to_thread.run_sync(log.find_all, body.request_ids)
        return json_response({"requests": found})

    async def models(self, _request: Request) -> Response:
        entries = [
            {
                "id": card.name,
                "object": "model",
                "created": self._serving.created,
                "owned_by": "steelyard",
                "max_model_len": card.max_model_len,
                "steelyard": card.facts | {"loaded": is_loaded, "paths": WRITER_PATHS},
            }
            for card, is_loaded in self._serving.ready_shelf().cards
        ]
        entries += [
            {
                "id": model.name,
                "object": "model",
                "created": self._serving.created,
                "owned_by": "steelyard",
                "max_model_len": model.max_model_len,
                "steelyard": model.facts | {"loaded": True},
            }
            for model in (
                *self._serving.media.models,
                *self._serving.encoders.values(),
                *self._serving.image_classifiers.values(),
            )
        ]
        return json_response({"object": "list", "data": entries})

    async def transcriptions(self, request: Request) -> Response:
        self._serving.ready_shelf()
        body = await _read_body(request, self._serving.upload_bytes_max)
        request_id = _opaque_header(request, "x-request-id") or new_id()
        return await transcribe(self._serving.media, body, request, request_id)

    def answers_by(self, answer: Callable[[bytes], Awaitable[dict[str, Any]]]) -> Endpoint:
        """An endpoint for models that read and do not write."""

        async def answered(request: Request) -> Response:
            self._serving.ready_shelf()
            body = await _read_body(request, self._serving.body_bytes_max)
            return json_response(await answer(body))

        return answered

    async def images(self, request: Request) -> Response:
        self._serving.ready_shelf()
        body = await _read_body(request, self._serving.body_bytes_max)
        request_id = _opaque_header(request, "x-request-id") or new_id()
        return draw(self._serving.media, body, request_id)

    async def speech(self, request: Request) -> Response:
        self._serving.ready_shelf()
        body = await _read_body(request, self._serving.body_bytes_max)
        return await speak(self._serving.media, body)

    async def tokenize(self, request: Request) -> Response:
        from steelyard.engine.generation import tokenize_body

        shelf = self._serving.ready_shelf()
        raw = await _read_body(request, self._serving.body_bytes_max)
        counted = await self.encoder_routes.tokenize(raw) if self._serving.encoders else None
        if counted is not None:
            return json_response(counted)
        body = decode_body(raw, TokenizeBody)
        async with self._in_use(shelf, shelf.check(body.model)) as engine:
            token_ids = await tokenize_body(body, engine.model, limiter=self._limiter)
        return json_response(
            {"count": len(token_ids), "max_model_len": engine.max_model_len, "tokens": token_ids}
        )

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, ChatBody)

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, CompletionBody)

    async def _generate(
        self, request: Request, kind: type[ChatBody] | type[CompletionBody]
    ) -> Response:
        shelf = self._serving.ready_shelf()
        body = await self._read(request, kind)
        name = shelf.check(body.model)
        check_generation(body)
        async with self._in_use(shelf, name) as engine:
            # It submits at once, and an engine with an open sequence is in use by itself.
            return await self._answer(request, body, engine)

    async def _answer(
        self, request: Request, body: ChatBody | CompletionBody, engine: Engine
    ) -> Response:
        from steelyard.engine.answer_responses import StreamedAnswer, WholeAnswer
        from steelyard.engine.generation import (
            make_answer_shape,
            make_sequence_requests,
            tokenize_body,
        )

        # Grammars are made off the event loop; a large schema takes a while.
        make = partial(
            make_sequence_requests,
            body,
            engine.model,
            prompt_token_ids=await tokenize_body(body, engine.model, limiter=self._limiter),
            request_id=_opaque_header(request, "x-request-id") or new_id(),
            max_model_len=engine.max_model_len,
            fairness_key=_opaque_header(request, "x-fairness-key"),
        )
        if body.response_format is None:
            requests = make()
        else:
            requests = await anyio.to_thread.run_sync(make, limiter=self._limiter)
        shape = make_answer_shape(
            body,
            requests[0],
            model=engine.model,
            created=unix_seconds(),
            device_kind=engine.device_kind,
        )
        answer = StreamedAnswer if body.stream else WholeAnswer
        return answer(engine, requests, shape=shape)

    @asynccontextmanager
    async def _in_use(self, shelf: ModelShelf, name: str) -> AsyncGenerator[Engine]:
        shelf.hold(name)
        try:
            engine = shelf.loaded(name)
            if engine is None:
                engine = await anyio.to_thread.run_sync(shelf.load, name, limiter=self._loading)
            yield engine
        finally:
            shelf.let_go(name)

    async def _read(self, request: Request, kind: type[T]) -> T:
        return decode_body(await _read_body(request, self._serving.body_bytes_max), kind)


async def _read_body(request: Request, bytes_max: int) -> bytes:
    refusal = BodyTooLarge(f"the body may have at most {bytes_max} bytes", body_bytes_max=bytes_max)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise refusal
    return bytes(body)


def _opaque_header(request: Request, name: str) -> str:
    given = request.headers.get(name, "")
    return given if _OPAQUE.fullmatch(given) else ""


def _guard(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except SteelyardError as error:
            return error_response(error)
        except ClientDisconnect:
            # Nobody reads this: 499 is only what proxies log for a client that hung up.
            return Response(status_code=499)

    return guarded
