"""The gateway's HTTP application: finds the handler, reads the body, turns errors into answers."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

import anyio.to_thread
import msgspec
import structlog
from msgspec.structs import replace

from steelyard.access.limits import IpRange
from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.clock import unix_seconds
from steelyard.entrypoints.gateway_metrics import GatewayMetrics
from steelyard.entrypoints.openai_api.batch_answers import BatchDoor
from steelyard.entrypoints.openai_api.client_address import client_address
from steelyard.entrypoints.openai_api.document_routes import (
    PATH as DOCUMENTS,
)
from steelyard.entrypoints.openai_api.document_routes import (
    RETRY,
    document_answer,
    serve_document,
    serve_document_again,
)
from steelyard.entrypoints.openai_api.error_answer import (
    EndpointNotFound,
    InternalError,
    MethodNotAllowed,
    status_of,
)
from steelyard.entrypoints.openai_api.feedback_answers import EVENTS_PATH, feedback_answer
from steelyard.entrypoints.openai_api.health_answer import health_document
from steelyard.entrypoints.openai_api.http_client import HttpClient
from steelyard.entrypoints.openai_api.key_answers import (
    balance_document,
    models_document,
    quote_document,
    usage_document,
)
from steelyard.entrypoints.openai_api.openapi import OPENAPI_PATH, openapi_document
from steelyard.entrypoints.openai_api.pipeline_answers import PipelineDoor
from steelyard.entrypoints.openai_api.surfaces import (
    COUNTED,
    SERVED,
    FormSurface,
    Surface,
    path_and_model,
)
from steelyard.errors import SteelyardError
from steelyard.gateway.editor_sessions import RequestSuperseded, read_session
from steelyard.gateway.idempotency import read_key
from steelyard.gateway.kept_answers import Place
from steelyard.gateway.relay import ClientLeft
from steelyard.gateway.serve import serve
from steelyard.gateway.workloads.asked import Asked, digest_request
from steelyard.ids import new_id

log = structlog.get_logger()

REQUEST_ID_CHARACTERS_MAX: Final = 128
# What is parsed in a millisecond is not worth a thread.
PARSED_HERE_BYTES_MAX: Final = 64 * 1024
LIVE: Final = "/health/live"
HEALTH: Final = frozenset({"/health", "/health/ready", LIVE})


class GatewayApplication:
    """Answers requests; its parts are built by `running`, around the server."""

    def __init__(
        self,
        parts: Callable[[], AbstractAsyncContextManager[GatewayParts]],
        *,
        body_bytes_max: int,
        form_bytes_max: int,
        body_timeout_s: float,
        file_bytes_max: int,
        trusted_proxies: Sequence[IpRange] = (),
    ) -> None:
        self._open_parts = parts
        self._body_bytes_max = body_bytes_max
        self._form_bytes_max = form_bytes_max
        self._body_timeout_s = body_timeout_s
        self._file_bytes_max = file_bytes_max
        self._trusted_proxies = trusted_proxies
        self._parts: GatewayParts | None = None
        self._metrics: GatewayMetrics | None = None
        self._created = unix_seconds()
        self._is_draining = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold the parts open around the server."""
        async with self._open_parts() as parts:
            self._parts, self._metrics = parts, GatewayMetrics(parts.gateway)
            yield

    async def expose_metrics(self) -> bytes:
        """What Prometheus may read; nothing before the gateway runs."""
        return self._metrics.expose() if self._metrics else b""

    def drain(self) -> None:
        """Say from now on that no new request should come here."""
        self._is_draining = True

    def look_at_configuration(self) -> None:
        """Follow the configuration file at once."""
        self._running_parts().routing.look_now()

    async def answer(self, client: HttpClient) -> None:
        """Answer one request, whatever it is."""
        request_id = _request_id(client.headers)
        try:
            await self._route(client, request_id)
        except SteelyardError as error:
            await self._answer_error(client, error, request_id)
        except Exception:
            log.exception("request.broke", request_id=request_id)
            if client.has_started:
                raise
            await self._answer_error(client, InternalError(), request_id)

    async def _route(self, client: HttpClient, request_id: str) -> None:
        method = client.method
        path, model = path_and_model(client.path)
        surface = SERVED.get(path)
        if surface is not None:
            client.errors = surface.errors
            _expect(method, "POST")
            await self._serve(surface, client, request_id, model=model)
        elif path in COUNTED:
            client.errors = COUNTED[path].errors
            _expect(method, "POST")
            await self._count(client, request_id)
        elif path == EVENTS_PATH or path.startswith("/v1/completions/"):
            _expect(method, "POST")
            await self._take_feedback(client, request_id)
        elif path.startswith(("/v1/files", "/v1/batches")):
            await self._keep(client, request_id)
        elif path.startswith("/v1/pipelines"):
            await self._pipe(client, request_id)
        elif path == DOCUMENTS:
            _expect(method, "POST")
            await self._run_document(client, request_id)
        elif path.startswith(f"{DOCUMENTS}/") and path.endswith(RETRY):
            _expect(method, "POST")
            await self._run_document_again(client, request_id)
        elif path in HEALTH:
            _expect(method, "GET")
            await self._tell_health(path, client)
        elif path == OPENAPI_PATH:
            _expect(method, "GET")
            await client.answer(openapi_document(), {})
        else:
            await self._tell(client, request_id)

    async def _find_key(self, client: HttpClient) -> VirtualKey:
        """The key of a request, if it may come from where it comes from."""
        parts = self._running_parts()
        key = await parts.keys.find(authorization_of(client.headers), before=client.given_before)
        parts.limits.check_address(
            key, lambda: client_address(_peer_and_headers(client), trusted=self._trusted_proxies)
        )
        return key

    async def _serve(
        self,
        surface: Surface | FormSurface,
        client: HttpClient,
        request_id: str,
        *,
        model: str | None,
    ) -> None:
        parts = self._running_parts()
        key = await self._find_key(client)
        asked, body = await self._read(surface, client)
        if "cache-control" in client.headers:
            asked = replace(asked, cache_control=client.headers["cache-control"])
        if model is not None and asked.model is None:
            asked = replace(asked, model=model)
        if (name := read_key(client.headers)) is not None:
            path, _ = path_and_model(client.path)
            digest = digest_request(path.encode() + b"\n" + body)
            await self._serve_once(asked, key, client, request_id, name=name, digest=digest)
        elif (session := read_session(client.headers)) is not None:
            await self._serve_in_turn(asked, key, client, request_id, session=session)
        else:
            await serve(parts.gateway, asked, key, client, request_id=request_id)
        if asked.is_streamed and client.has_started:
            await client.finish()

    async def _serve_once(
        self,
        asked: Asked,
        key: VirtualKey,
        client: HttpClient,
        request_id: str,
        *,
        name: str,
        digest: str,
    ) -> None:
        """Serve a request that may come again under the same name; it is answered as before then."""
        parts, kept = self._running_parts(), replace(asked, is_repeatable=True)
        await parts.idempotency.serve_once(
            Place(key.id, name),
            client,
            lambda remembering: serve(parts.gateway, kept, key, remembering, request_id=request_id),
            digest=digest,
        )

    async def _serve_in_turn(
        self, asked: Asked, key: VirtualKey, client: HttpClient, request_id: str, *, session: str
    ) -> None:
        """Serve a request of an editor session, which ends when a newer one of it comes."""
        parts = self._running_parts()
        with parts.sessions.turn(key.id, session, client) as turn:
            is_answered = await serve(parts.gateway, asked, key, turn, request_id=request_id)
        if turn.is_superseded and not is_answered:
            with suppress(ClientLeft):
                await client.fail_stream(RequestSuperseded())

    async def _keep(self, client: HttpClient, request_id: str) -> None:
        """Files, and batches of requests out of them."""
        key = await self._find_key(client)
        door = BatchDoor(self._running_parts(), key, client, request_id, self._body_timeout_s)
        query = client.query.decode("latin-1")
        await door.answer(client.method, client.path, query, bytes_max=self._file_bytes_max)

    async def _pipe(self, client: HttpClient, request_id: str) -> None:
        """Pipelines, and runs of them."""
        key = await self._find_key(client)
        door = PipelineDoor(self._running_parts(), key, client, request_id, self._body_timeout_s)
        await door.answer(
            client.method,
            client.path,
            bytes_max=self._body_bytes_max,
            form_bytes_max=self._form_bytes_max,
        )

    async def _read(
        self, surface: Surface | FormSurface, client: HttpClient
    ) -> tuple[Asked, bytes]:
        if isinstance(surface, Surface):
            return await self._read_json(surface, client)
        body = await client.read_body(
            bytes_max=self._form_bytes_max, timeout_s=self._body_timeout_s
        )
        kind = client.headers.get("content-type")
        # A file takes a while to look at; others must not wait for it.
        return await anyio.to_thread.run_sync(surface.parse, body, kind), body

    async def _read_json(self, surface: Surface, client: HttpClient) -> tuple[Asked, bytes]:
        body = await client.read_body(
            bytes_max=self._body_bytes_max, timeout_s=self._body_timeout_s
        )
        if len(body) <= PARSED_HERE_BYTES_MAX:
            return surface.parse(body), body
        # A large body takes a while to look at; others must not wait for it.
        return await anyio.to_thread.run_sync(surface.parse, body), body

    async def _run_document(self, client: HttpClient, request_id: str) -> None:
        key = await self._find_key(client)
        body = await client.read_body(
            bytes_max=self._form_bytes_max, timeout_s=self._body_timeout_s
        )
        await serve_document(self._running_parts(), key, body, client, request_id)

    async def _run_document_again(self, client: HttpClient, request_id: str) -> None:
        key = await self._find_key(client)
        body = await client.read_body(
            bytes_max=self._body_bytes_max, timeout_s=self._body_timeout_s
        )
        await serve_document_again(self._running_parts(), key, body, client, request_id)

    async def _take_feedback(self, client: HttpClient, request_id: str) -> None:
        """What became of a suggestion."""
        key = await self._find_key(client)
        body = await client.read_body(
            bytes_max=self._body_bytes_max, timeout_s=self._body_timeout_s
        )
        document = await feedback_answer(self._running_parts(), key, client.path, body)
        await client.answer(msgspec.json.encode(document), {"x-request-id": request_id})

    async def _count(self, client: HttpClient, request_id: str) -> None:
        """Count a prompt and answer nothing else."""
        parts, path = self._running_parts(), client.path
        key = await self._find_key(client)
        asked, _ = await self._read_json(COUNTED[path], client)
        quote = await parts.gateway.admission.quote(asked, key)
        document = quote_document(quote)
        await client.answer(msgspec.json.encode(document), {"x-request-id": request_id})

    async def _tell(self, client: HttpClient, request_id: str) -> None:
        """What a key may ask about itself."""
        tell = self._find_answer(client.path)
        _expect(client.method, "GET")
        key = await self._find_key(client)
        document = await tell(self._running_parts(), key)
        await client.answer(msgspec.json.encode(document), {"x-request-id": request_id})

    def _find_answer(self, path: str) -> Callable[[GatewayParts, VirtualKey], Awaitable[Any]]:
        if path == "/v1/balance":
            return balance_document
        if path.startswith(f"{DOCUMENTS}/"):
            document_id = path.removeprefix(f"{DOCUMENTS}/")
            return lambda parts, key: document_answer(parts, key, document_id)
        if path.startswith("/v1/usage/"):
            return lambda parts, key: usage_document(parts, key, path)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return lambda parts, key: models_document(parts, key, path, created=self._created)
        raise EndpointNotFound(f"there is nothing at {path}")

    async def _tell_health(self, path: str, client: HttpClient) -> None:
        if path == LIVE:
            await client.answer(msgspec.json.encode({"status": "live"}), {})
            return
        document = health_document(self._running_parts(), is_draining=self._is_draining)
        status = 200 if document["status"] == "ready" else 503
        await client.answer(msgspec.json.encode(document), {}, status=status)

    async def _answer_error(
        self, client: HttpClient, error: SteelyardError, request_id: str
    ) -> None:
        status = status_of(error)
        log.info("request.refused", request_id=request_id, status=status, code=error.code)
        self._running_parts().gateway.requests.refuse(error.code)
        if not client.has_started:
            at = self._running_parts().gateway.clock.now()
            headers = {"x-request-id": request_id, **client.errors.headers(error, at=at)}
            await client.answer(client.errors.body(error), headers, status=status)

    def _running_parts(self) -> GatewayParts:
        assert self._parts is not None, "a request came before the gateway was running"
        return self._parts


def authorization_of(headers: Mapping[str, str]) -> str | None:
    """The key as OpenAI's clients send it, or as Anthropic's do."""
    given = headers.get("authorization")
    if given is None and "x-api-key" in headers:
        return f"Bearer {headers['x-api-key']}"
    return given


def _peer_and_headers(client: HttpClient) -> dict[str, Any]:
    headers = [(name.lower(), value) for name, value in client.raw_headers]
    return {"client": client.peer, "headers": headers}


def _request_id(headers: Mapping[str, str]) -> str:
    """The client's own id where it is printable and short, else a new one."""
    given = headers.get("x-request-id", "")
    if given.isascii() and given.isprintable() and 0 < len(given) <= REQUEST_ID_CHARACTERS_MAX:
        return given
    return new_id()


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise MethodNotAllowed(f"use {wanted} here, not {method}")
