"""ASGI responses that follow a piece of work, and stop it when the client goes away."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steelyard.engine.error_responses import error_body, error_response, json_response
from steelyard.engine.media.stepping import Work, Workshop
from steelyard.engine.sending import (
    DONE,
    STREAM_HEADERS,
    cancel_on_disconnect,
    event_bytes,
    send_part,
)
from steelyard.errors import SteelyardError

T = TypeVar("T")
StepT_contra = TypeVar("StepT_contra", contravariant=True)


class Telling(Protocol[StepT_contra]):
    """How work is told: an event for a step, and what is said at its end."""

    def event(self, step: StepT_contra) -> dict[str, Any]: ...

    def last_events(self) -> list[dict[str, Any]]: ...

    def document(self) -> dict[str, Any]: ...


class WorkResponse(Response, Generic[T]):
    """Works when the server sends it, and no longer than somebody waits."""

    def __init__(
        self,
        workshop: Workshop,
        work: Work[T],
        telling: Telling[T],
        *,
        is_streamed: bool,
        request_id: str,
    ) -> None:
        super().__init__()
        workshop.check_room()
        self._workshop = workshop
        self._work = work
        self._telling = telling
        self._is_streamed = is_streamed
        self._extra_headers = {"X-Request-Id": request_id}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            answer = self._stream if self._is_streamed else self._answer
            await answer(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._workshop.at_work(self._work) as steps:
                async for step in steps:
                    self._telling.event(step)
            response = json_response(self._telling.document(), headers=self._extra_headers)
        except SteelyardError as error:
            response = error_response(error, headers=self._extra_headers)
        await response(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events()) as events:
            try:
                first = await anext(events)
            except SteelyardError as error:
                # Until the first event a failure still gets its own status.
                await error_response(error, headers=self._extra_headers)(scope, receive, send)
                return
            await self._send_all(first, events, send)

    async def _send_all(
        self, first: dict[str, Any], events: AsyncIterator[dict[str, Any]], send: Send
    ) -> None:
        start = Response(headers=STREAM_HEADERS | self._extra_headers)
        del start.headers["content-length"]
        start.headers["content-type"] = "text/event-stream; charset=utf-8"
        await send({"type": "http.response.start", "status": 200, "headers": start.raw_headers})
        await send_part(send, event_bytes(first))
        try:
            async for event in events:
                await send_part(send, event_bytes(event))
            await send_part(send, DONE)
        except SteelyardError as error:
            # Without [DONE], so that nobody takes half of it for the whole.
            await send_part(send, event_bytes(error_body(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[dict[str, Any]]:
        async with self._workshop.at_work(self._work) as steps:
            async for step in steps:
                yield self._telling.event(step)
        for event in self._telling.last_events():
            yield event
