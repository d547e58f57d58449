"""Idempotency-Key: the same request of the same virtual key is answered twice and charged once.

The first request runs to its end even if its client leaves, and its answer is kept for a while; the
same request again gets the kept answer. A failed answer is not kept: the key can be tried again.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.to_thread
import structlog

from steelyard.errors import Failure, Refusal
from steelyard.gateway.kept_answers import (
    AnswerStore,
    AnswersUnavailable,
    KeptAnswer,
    Place,
    StillRunning,
)
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.relay import ClientLeft, UpstreamRefused
from steelyard.gateway.serve import AnsweringClient

log = structlog.get_logger()

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"
KEY_CHARACTERS_MAX: Final = 255
LOOK_AGAIN_S: Final = 0.05


class IdempotencyKeyReused(Refusal):
    """This Idempotency-Key was used for another request. Take a new key for a new request."""

    code = "idempotency_key_reused"


class IdempotencyConflict(Refusal):
    """The first request with this Idempotency-Key is still being answered. Try again later."""

    code = "idempotency_conflict"


@dataclass(slots=True)
class RememberingClient:
    """Implements AnsweringClient on another one; it never leaves, and remembers what it got."""

    client: AnsweringClient
    headers: dict[str, str] = field(default_factory=dict[str, str])
    events: list[bytes] = field(default_factory=list[bytes])
    is_streamed: bool = False
    has_answer: bool = False
    has_failed: bool = False

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """It never does."""

    async def left(self) -> None:
        await anyio.sleep_forever()

    async def start_stream(self, headers: dict[str, str]) -> None:
        self.headers, self.is_streamed, self.has_answer = headers, True, True
        await self.client.start_stream(headers)

    async def send(self, event: bytes) -> None:
        self.events.append(event)
        # The answer is finished for the one who asks for it again.
        with suppress(ClientLeft):
            await self.client.send(event)

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.headers, self.has_answer = dict(headers), True
        self.events.append(body)
        await self.client.answer(body, headers)

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        self.has_failed = True
        await self.client.answer_from_upstream(refused, headers)

    async def fail_stream(self, failure: Failure) -> None:
        self.has_failed = True
        await self.client.fail_stream(failure)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Serves requests that name an Idempotency-Key."""

    store: AnswerStore
    # How long a duplicate waits for the first request to end.
    wait_s: float

    async def serve_once(
        self,
        place: Place,
        client: AnsweringClient,
        serve: Callable[[AnsweringClient], Awaitable[object]],
        *,
        digest: str,
    ) -> None:
        """Serve, or give the kept answer; raises IdempotencyKeyReused, IdempotencyConflict."""
        kept = await self._begin(place, digest)
        if kept is not None:
            await _replay(kept, client)
            return
        remembering = RememberingClient(client)
        is_over = False
        try:
            await serve(remembering)
            is_over = True
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(place, remembering, digest=digest, is_over=is_over)

    async def _begin(self, place: Place, digest: str) -> KeptAnswer | None:
        gives_up_at = anyio.current_time() + self.wait_s
        while True:
            found = await anyio.to_thread.run_sync(lambda: self.store.begin(place, digest=digest))
            if found is not None and found.digest != digest:
                raise IdempotencyKeyReused
            if not isinstance(found, StillRunning):
                return found
            if anyio.current_time() >= gives_up_at:
                raise IdempotencyConflict
            await anyio.sleep(LOOK_AGAIN_S)

    async def _end(
        self, place: Place, remembering: RememberingClient, *, digest: str, is_over: bool
    ) -> None:
        try:
            if is_over and remembering.has_answer and not remembering.has_failed:
                answer = KeptAnswer(
                    digest,
                    remembering.headers,
                    tuple(remembering.events),
                    is_streamed=remembering.is_streamed,
                )
                await anyio.to_thread.run_sync(lambda: self.store.keep(place, answer))
            else:
                await anyio.to_thread.run_sync(lambda: self.store.give_up(place))
        except AnswersUnavailable as failure:
            log.error("answer.not_kept", key_id=place.owner_id, reason=str(failure))


async def _replay(kept: KeptAnswer, client: AnsweringClient) -> None:
    headers = {**kept.headers, REPLAYED_HEADER: "true"}
    if not kept.is_streamed:
        await client.answer(kept.events[0], headers)
        return
    await client.start_stream(headers)
    for event in kept.events:
        await client.send(event)


def read_key(headers: Mapping[str, str]) -> str | None:
    """The Idempotency-Key of a request; raises InvalidRequest where it cannot be one."""
    given = headers.get(HEADER)
    if given is None:
        return None
    if not given or len(given) > KEY_CHARACTERS_MAX or not given.isascii():
        raise InvalidRequest(f"Idempotency-Key has 1 to {KEY_CHARACTERS_MAX} ASCII characters")
    return given
