"""Clients: they ask, wait or leave, and remember what they were told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from steelyard.access.virtual_key import VirtualKey
from steelyard.gateway.relay import ClientLeft
from tests.sim.life import LIFE, Crashed
from tests.sim.universe import Universe
from tests.world import RecordingClient

SOCKET_S = 0.004
ANSWER_TOKENS_MAX = 12


@dataclass(slots=True)
class Told:
    """What a client knows of an answer that it has whole."""

    event_id: str
    cost: str


class Caller(RecordingClient):
    """The client's side of one request; nothing comes out of a gateway that is dead."""

    def __init__(self, universe: Universe, leaves_after: int | None) -> None:
        super().__init__(leaves_after=leaves_after)
        self.universe = universe

    async def start_stream(self, headers: dict[str, str]) -> None:
        await self._travel()
        self.universe.seen.add(headers["x-steelyard-event-id"])
        await super().start_stream(headers)

    async def send(self, event: bytes) -> None:
        await self._travel()
        await super().send(event)

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        await self._travel()
        self.universe.seen.add(headers["x-steelyard-event-id"])
        await super().answer(body, headers)

    def told(self) -> Told | None:
        """The end of the answer, if it came."""
        if self.document:
            usage = self.document["usage"]
        elif "[DONE]" in self.events:
            usage = self.usage()
        else:
            return None
        return Told(usage["event_id"], usage["cost"])

    async def _travel(self) -> None:
        await anyio.sleep(self.universe.chance.uniform(0, SOCKET_S))
        if LIFE.get().is_dead:
            raise Crashed
        if self._gone.is_set():
            raise ClientLeft


@dataclass(slots=True)
class Question:
    """One request, before it is asked."""

    key: VirtualKey
    body: bytes
    leaves_after: int | None
    answers: list[Told] = field(default_factory=list[Told])


def draw_question(universe: Universe) -> Question:
    chance, faults = universe.chance, universe.plan.faults
    is_streamed = chance.random() < 0.6
    body: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "what do I owe?"}],
        "stream": is_streamed,
    }
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
    if chance.random() < 0.8:
        body["max_tokens"] = chance.randint(1, ANSWER_TOKENS_MAX)
    leaves = universe.strikes(faults.client_leaves)
    return Question(
        key=chance.choice(universe.keys),
        body=json.dumps(body).encode(),
        leaves_after=chance.randint(0, ANSWER_TOKENS_MAX) if leaves else None,
    )
