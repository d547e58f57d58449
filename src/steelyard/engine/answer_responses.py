"""ASGI responses that follow the sequences of one request, and cancel them when the client goes away."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steelyard.engine.answers import AnswerShape, ChunkWriter, whole_answer
from steelyard.engine.error_responses import error_body, error_response, json_response
from steelyard.engine.sending import (
    DONE,
    STREAM_HEADERS,
    cancel_on_disconnect,
    event_bytes,
    send_part,
)

if TYPE_CHECKING:
    from steelyard.engine.engine import Engine
    from steelyard.engine.sequence import Delta, Sequence, SequenceRequest


class _AnswerResponse(Response):
    """Submits its sequences at once, so that a full engine can still refuse it properly."""

    def __init__(
        self, engine: Engine, requests: list[SequenceRequest], *, shape: AnswerShape
    ) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        # One delta a token is the most there can be, and a last one for a failure.
        deltas_max = sum(request.max_tokens + 1 for request in requests)
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue(deltas_max)

        def deliver(index: int, delta: Delta) -> None:
            loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        self._engine = engine
        self._sequences: list[Sequence] = engine.submit_all(requests, deliver=deliver)
        self._shape = shape
        self._extra_headers = {"X-Request-Id": shape.request_id}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
                await self._answer(scope, receive, send)
                tasks.cancel_scope.cancel()
        finally:
            for sequence in self._sequences:
                self._engine.cancel(sequence)

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole of the answer."""

    async def _each_delta(self) -> AsyncIterator[tuple[int, Delta]]:
        left = len(self._sequences)
        while left > 0:
            index, delta = await self._deltas.get()
            left -= delta.end is not None
            yield index, delta


class WholeAnswer(_AnswerResponse):
    """One JSON body when the sequence has ended."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        deltas: list[list[Delta]] = [[] for _ in self._sequences]
        async for index, delta in self._each_delta():
            deltas[index].append(delta)
        failure = next((found[-1].failure for found in deltas if found[-1].failure), None)
        if failure is not None:
            response = error_response(failure, headers=self._extra_headers)
        else:
            body = whole_answer(self._shape, deltas, sequences=self._sequences)
            response = json_response(body, headers=self._extra_headers)
        await response(scope, receive, send)


class StreamedAnswer(_AnswerResponse):
    """Server-sent events, one or more for each step of the sequence."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = ChunkWriter(self._shape, self._sequences)
        has_begun = False
        async for index, delta in self._each_delta():
            if not has_begun and delta.failure is not None:
                response = error_response(delta.failure, headers=self._extra_headers)
                await response(scope, receive, send)
                return
            if not has_begun:
                has_begun = True
                await self._begin(send)
            await send_part(send, self._write(writer, index, delta))
            if delta.failure is not None:
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        # Headers wait for the first delta: until then a failure still gets its own status.
        headers = STREAM_HEADERS | self._extra_headers
        start = Response(headers=headers, media_type="text/event-stream")
        del start.headers["content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": start.raw_headers})

    def _write(self, writer: ChunkWriter, index: int, delta: Delta) -> bytes:
        if delta.failure is not None:
            # Without [DONE], so that nobody takes half an answer for a whole one.
            return event_bytes(error_body(delta.failure))
        events = b"".join(event_bytes(chunk) for chunk in writer.chunks(index, delta))
        return events + DONE if writer.is_done else events
