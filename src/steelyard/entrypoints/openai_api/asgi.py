"""The few words of ASGI that we speak (https://asgi.readthedocs.io, HTTP 2.3)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from steelyard.entrypoints.openai_api.error_answer import BodyTooLarge, RequestTimeout
from steelyard.entrypoints.openai_api.error_shape import ErrorShape
from steelyard.entrypoints.openai_api.surfaces import OPENAI
from steelyard.errors import Failure
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.relay import ClientLeft, UpstreamRefused

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

SEND_TIMEOUT_S = 60.0
FILE_PIECE_BYTES = 64 * 1024
JSON_TYPE = {"content-type": "application/json"}


@dataclass(slots=True)
class AsgiClient:
    """The client at the other end of one request; implements AnsweringClient."""

    receive: Receive
    send_message: Send
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    errors: ErrorShape = OPENAI
    has_started: bool = False

    async def read_body(self, *, bytes_max: int, timeout_s: float) -> bytes:
        """The whole body; raises BodyTooLarge before it is taken in, RequestTimeout, and
        InvalidRequest."""
        announced = self.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > bytes_max:
            raise _too_large(bytes_max)
        # One buffer: a body may come byte by byte.
        body = bytearray()
        try:
            with anyio.fail_after(timeout_s):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise InvalidRequest("the client left before the request was whole")
                    piece: bytes = message.get("body", b"")
                    if len(body) + len(piece) > bytes_max:
                        raise _too_large(bytes_max)
                    if not body and not message.get("more_body", False):
                        return piece
                    body += piece
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise RequestTimeout(f"the body took longer than {timeout_s:g} s") from error

    async def pieces(self, *, bytes_max: int, timeout_s: float) -> AsyncIterator[bytes]:
        """The body as it comes; raises BodyTooLarge before it is taken in, RequestTimeout, and
        InvalidRequest."""
        announced = self.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > bytes_max:
            raise _too_large(bytes_max)
        size, gives_up_at = 0, anyio.current_time() + timeout_s
        has_more = True
        while has_more:
            try:
                with anyio.fail_after(gives_up_at - anyio.current_time()):
                    message = await self.receive()
            except TimeoutError as error:
                raise RequestTimeout(f"the body took longer than {timeout_s:g} s") from error
            if message["type"] == "http.disconnect":
                raise InvalidRequest("the client left before the request was whole")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > bytes_max:
                raise _too_large(bytes_max)
            has_more = message.get("more_body", False)
            yield piece

    async def send_file(self, path: Path, headers: Mapping[str, str]) -> None:
        """A file of lines, a piece at a time."""
        async with await anyio.open_file(path, "rb") as file:
            kind = (b"content-type", b"application/jsonl; charset=utf-8")
            await self._start(200, [kind, *_encode(headers)])
            while piece := await file.read(FILE_PIECE_BYTES):
                await self.send(piece)
        await self.finish()

    async def left(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def start_stream(self, headers: dict[str, str]) -> None:
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        await self._start(200, [kind, (b"cache-control", b"no-cache"), *_encode(headers)])

    async def send(self, event: bytes) -> None:
        try:
            with anyio.fail_after(SEND_TIMEOUT_S):
                await self.send_message(
                    {"type": "http.response.body", "body": event, "more_body": True}
                )
        except (TimeoutError, OSError) as error:
            raise ClientLeft from error

    async def finish(self) -> None:
        await self.send_message({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, body: bytes, headers: Mapping[str, str], *, status: int = 200) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [length, *_encode({**JSON_TYPE, **headers})])
        await self.send_message({"type": "http.response.body", "body": body, "more_body": False})

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        retry_after = refused.answer.retry_after
        if retry_after:
            headers = {**headers, "retry-after": retry_after}
        status = refused.answer.status
        body = self.errors.refusal(refused.answer.body, status=status)
        await self.answer(body, headers, status=status)

    async def fail_stream(self, failure: Failure) -> None:
        if not self.has_started:
            raise failure
        await self.send(self.errors.event(failure))

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_started = True
        await self.send_message(
            {"type": "http.response.start", "status": status, "headers": headers}
        )


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {bytes_max} bytes")
