"""The upstream of a history: it makes a random answer for each attempt, and remembers what it made."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from steelyard.gateway.upstreams.base import (
    ListedModel,
    LoggedAttempt,
    LoggedAttempts,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import ENGINE, Habits
from steelyard.gateway.upstreams.scripted import FACTS
from steelyard.metering.usage_event import CountSource
from tests.sim.life import LIFE, Crashed
from tests.sim.universe import Universe

PROMPT_TOKENS = 7
TOKEN_S = 0.05


@dataclass(slots=True)
class Made:
    """What the engine did for one attempt."""

    prompt_tokens: int = PROMPT_TOKENS
    completion_tokens: int = 0
    is_whole: bool = False
    # It broke off, or its answer got lost on the way.
    has_failed: bool = False

    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(slots=True)
class SimulatedEngine:
    """Implements Upstream."""

    universe: Universe
    name: str = "scripted"
    count_source: CountSource = "provider"
    habits: Habits = ENGINE
    made: dict[str, Made] = field(default_factory=dict[str, Made])
    is_away: bool = False

    async def models(self) -> list[ListedModel]:
        await self._travel()
        return [ListedModel("scripted", 8192, FACTS)]

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        del path, body
        await self._travel()
        return PROMPT_TOKENS

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        await self._travel()
        return LoggedAttempts(
            {
                request_id: LoggedAttempt(
                    msgspec.json.encode(self.made[request_id].usage()), "provider"
                )
                for request_id in request_ids
                if request_id in self.made
            }
        )

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        del path, tenant, content_type
        await self._travel()
        words = [word async for word in self._work(body, request_id)]
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document: dict[str, Any] = {"id": "simulated", "model": "scripted", "choices": [choice]}
        document["usage"] = self.made[request_id].usage()
        try:
            await self._travel()
        except UpstreamUnavailable:
            self.made[request_id].has_failed = True
            raise
        return UpstreamAnswer(200, msgspec.json.encode(document))

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AsyncGenerator["SimulatedStream"]:
        del path, tenant, content_type
        await self._travel()
        yield SimulatedStream(self, body, request_id)

    async def chunks(self, body: bytes, request_id: str) -> AsyncIterator[bytes]:
        async for word in self._work(body, request_id):
            yield self._chunk([{"index": 0, "delta": {"content": word}}], request_id)
        end: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield self._chunk([end], request_id)
        yield self._chunk([], request_id)
        yield b"[DONE]"

    async def _work(self, body: bytes, request_id: str) -> AsyncIterator[str]:
        """One word is one token; it is in the log before anybody hears of it."""
        chance = self.universe.chance
        asked = msgspec.json.decode(body)
        assert request_id not in self.made, f"{request_id} was asked twice"
        made = self.made[request_id] = Made()
        for _ in range(chance.randint(0, asked["max_tokens"])):
            await anyio.sleep(chance.uniform(0, TOKEN_S))
            if self.is_away or self.universe.strikes(self.universe.plan.faults.upstream_fails / 5):
                self.universe.note("upstream.broke_off", event_id=request_id)
                made.has_failed = True
                raise UpstreamFailed("the simulated upstream broke off")
            self._check_asker()
            made.completion_tokens += 1
            yield "word"
        made.is_whole = True

    async def _travel(self) -> None:
        await anyio.sleep(self.universe.chance.uniform(0, TOKEN_S))
        self._check_asker()
        if self.is_away or self.universe.strikes(self.universe.plan.faults.upstream_fails / 5):
            raise UpstreamUnavailable("the simulated upstream is away")

    def _check_asker(self) -> None:
        if LIFE.get().is_dead:
            raise Crashed

    def _chunk(self, choices: list[dict[str, Any]], request_id: str) -> bytes:
        usage = self.made[request_id].usage()
        return msgspec.json.encode(
            {"id": "simulated", "model": "scripted", "choices": choices, "usage": usage}
        )


@dataclass(slots=True)
class SimulatedStream:
    """Implements UpstreamStream."""

    engine: SimulatedEngine
    body: bytes
    request_id: str
    status: int = 200

    async def refusal(self) -> UpstreamAnswer:
        raise AssertionError("the simulated upstream never refuses")

    async def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        async for chunk in self.engine.chunks(self.body, self.request_id):
            yield [chunk]
