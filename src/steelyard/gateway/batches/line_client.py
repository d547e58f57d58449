"""The client of a batch line: it waits for the answer for ever, and keeps it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import anyio

from steelyard.errors import Failure
from steelyard.gateway.relay import UpstreamRefused
from steelyard.gateway.upstreams.base import UpstreamAnswer
from steelyard.gateway.workloads.answer import Answer, PricedUsage
from steelyard.metering.answer_meter import AnswerMeter


@dataclass(slots=True)
class LineClient:
    """Implements AnsweringClient for answers that come whole."""

    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    refused: UpstreamAnswer | None = None

    async def left(self) -> None:
        await anyio.sleep_forever()

    async def start_stream(self, headers: dict[str, str]) -> NoReturn:
        raise NotImplementedError("a line of a batch is not streamed")

    async def send(self, event: bytes) -> NoReturn:
        raise NotImplementedError("a line of a batch is not streamed")

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.body, self.headers = body, headers

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        self.refused, self.headers = refused.answer, headers

    async def fail_stream(self, failure: Failure) -> None:
        raise failure


@dataclass(slots=True)
class NotedAnswer:
    """Implements Answer around another one: what came whole is noted before it is charged."""

    answer: Answer
    note: Callable[[bytes], None]

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        handed = self.answer.read_whole(body, meter)
        self.note(body)
        return handed

    def write_whole(self, priced: PricedUsage) -> bytes:
        return self.answer.write_whole(priced)

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        return self.answer.read_event(payload, meter)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        self.answer.end_of_stream(meter)

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        return self.answer.write_end(priced, wants_usage=wants_usage)
