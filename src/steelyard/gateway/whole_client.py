"""The client of work that is done here: it waits for a whole answer for ever, and has it then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import anyio

from steelyard.errors import Failure
from steelyard.gateway.relay import UpstreamRefused
from steelyard.gateway.upstreams.base import UpstreamAnswer


@dataclass(slots=True)
class WholeClient:
    """Implements AnsweringClient for answers that come whole."""

    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    refused: UpstreamAnswer | None = None

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """It never does."""

    async def left(self) -> None:
        await anyio.sleep_forever()

    async def start_stream(self, headers: dict[str, str]) -> NoReturn:
        raise NotImplementedError("only whole answers are taken")

    async def send(self, event: bytes) -> NoReturn:
        raise NotImplementedError("only whole answers are taken")

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.body, self.headers = body, headers

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        self.refused, self.headers = refused.answer, headers

    async def fail_stream(self, failure: Failure) -> None:
        raise failure
