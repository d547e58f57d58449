"""Upstreams that remember: one notes what another answers, one plays what was noted."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from steelyard.gateway.upstreams.base import (
    ListedModel,
    LoggedAttempts,
    Upstream,
    UpstreamAnswer,
    UpstreamStream,
)
from steelyard.gateway.upstreams.habits import Habits
from steelyard.metering.usage_event import CountSource


@dataclass(slots=True)
class NotedStream:
    """Implements UpstreamStream on another one, and notes its events."""

    stream: UpstreamStream
    noted: list[bytes]

    @property
    def status(self) -> int:
        return self.stream.status

    async def refusal(self) -> UpstreamAnswer:
        return await self.stream.refusal()

    async def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        async for payloads in self.stream.payloads():
            self.noted.extend(payloads)
            yield payloads


class NotingUpstream:
    """Implements Upstream on another one; `noted` is the whole answer, or the events of a stream."""

    def __init__(self, upstream: Upstream) -> None:
        self.name = upstream.name
        self.habits: Habits = upstream.habits
        self.count_source: CountSource = upstream.count_source
        self.noted: list[bytes] = []
        self._upstream = upstream

    async def models(self) -> list[ListedModel]:
        return await self._upstream.models()

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        return await self._upstream.count_prompt_tokens(path, body)

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        return await self._upstream.logged_attempts(request_ids)

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        came = await self._upstream.answer(
            path, body, request_id=request_id, tenant=tenant, content_type=content_type
        )
        self.noted.append(came.body)
        return came

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AsyncGenerator[UpstreamStream]:
        async with self._upstream.stream(
            path, body, request_id=request_id, tenant=tenant, content_type=content_type
        ) as stream:
            yield NotedStream(stream, self.noted)


@dataclass(frozen=True, slots=True)
class KeptStream:
    """Implements UpstreamStream: events that were noted."""

    kept: Sequence[bytes]
    status: int = 200

    async def refusal(self) -> UpstreamAnswer:
        raise AssertionError("what was kept was answered")

    async def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        if self.kept:
            yield self.kept


class KeptUpstream(NotingUpstream):
    """Answers with what was noted of another upstream, which is asked for nothing."""

    def __init__(self, upstream: Upstream, kept: Sequence[bytes]) -> None:
        super().__init__(upstream)
        self._kept = kept

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        del path, body, request_id, tenant, content_type
        return UpstreamAnswer(200, self._kept[0])

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AsyncGenerator[UpstreamStream]:
        del path, body, request_id, tenant, content_type
        yield KeptStream(self._kept)
