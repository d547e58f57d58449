"""Editor sessions: who types asks again before the last answer has come, and wants only the newest.

A request with `X-Steelyard-Session` takes the place of an older one of the same key and session, as
if the editor had hung up on that one: what was delivered of it is charged by the disconnect policy.
"""

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from steelyard.errors import Failure, Refusal
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.relay import ClientLeft, UpstreamRefused
from steelyard.gateway.serve import AnsweringClient

HEADER: Final = "x-steelyard-session"
NAME_CHARACTERS_MAX: Final = 128


class RequestSuperseded(Refusal):
    """A newer request of the same session took the place of this one."""

    code = "request_superseded"


@dataclass(slots=True, eq=False)
class Turn:
    """One request of a session; implements AnsweringClient on its client."""

    client: AnsweringClient
    _over: anyio.Event = field(default_factory=anyio.Event)
    _tell: Callable[[], None] | None = None

    @property
    def is_superseded(self) -> bool:
        return self._over.is_set()

    def supersede(self) -> None:
        self._over.set()
        if self._tell is not None:
            asyncio.get_running_loop().call_soon(self._tell)

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """Have it told that the client has gone, or that a newer request has come."""
        self._tell = tell
        self.client.when_left(tell)
        if tell is not None and self.is_superseded:
            asyncio.get_running_loop().call_soon(tell)

    async def left(self) -> None:
        """Return when the client has gone, or a newer request has come."""
        async with anyio.create_task_group() as tasks:

            async def wait_for_newer() -> None:
                await self._over.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait_for_newer)
            await self.client.left()
            tasks.cancel_scope.cancel()

    async def start_stream(self, headers: dict[str, str]) -> None:
        if self.is_superseded:
            raise ClientLeft
        await self.client.start_stream(headers)

    async def send(self, event: bytes) -> None:
        if self.is_superseded:
            raise ClientLeft
        await self.client.send(event)

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        await self.client.answer(body, headers)

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        await self.client.answer_from_upstream(refused, headers)

    async def fail_stream(self, failure: Failure) -> None:
        await self.client.fail_stream(failure)


@dataclass(slots=True)
class EditorSessions:
    """The newest request of each session that has one."""

    _newest: dict[tuple[str, str], Turn] = field(default_factory=dict[tuple[str, str], Turn])

    @contextmanager
    def turn(self, key_id: str, session: str, client: AnsweringClient) -> Generator[Turn]:
        """Take the place of the request before; `is_superseded` says whether another took it."""
        place, turn = (key_id, session), Turn(client)
        before = self._newest.get(place)
        if before is not None:
            before.supersede()
        self._newest[place] = turn
        try:
            yield turn
        finally:
            if self._newest.get(place) is turn:
                del self._newest[place]


def read_session(headers: Mapping[str, str]) -> str | None:
    """The session of a request; raises InvalidRequest where it cannot be one."""
    given = headers.get(HEADER)
    if given is None:
        return None
    if not 0 < len(given) <= NAME_CHARACTERS_MAX or not (given.isascii() and given.isprintable()):
        raise InvalidRequest(
            f"X-Steelyard-Session has 1 to {NAME_CHARACTERS_MAX} printable ASCII characters"
        )
    return given
