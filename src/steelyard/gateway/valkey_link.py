"""A line to Valkey (or Redis) that carries script calls in order, as many as have gathered at once.

Nothing is ever sent twice: a call whose answer did not come has failed, whatever became of it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from steelyard.errors import Failure

BATCH_MAX: Final = 256


class ValkeyUnavailable(Failure):
    """Valkey does not answer."""

    code = "valkey_unavailable"


def check_url(url: str) -> None:
    """Raises ValueError for what is no address of Valkey."""
    parse_url(url)


@dataclass(frozen=True, slots=True)
class Call:
    """One script, its keys and arguments, and who waits for its answer."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[str | int]
    answer: "asyncio.Future[list[int] | int]"


@dataclass(slots=True)
class ValkeyLink:
    """One connection; calls are answered in the order in which they were made."""

    url: str
    timeout_s: float
    _calls: deque[Call] = field(default_factory=deque[Call])
    _has_calls: asyncio.Event = field(default_factory=asyncio.Event)
    _client: Any = None
    _digests: dict[str, str] = field(default_factory=dict[str, str])

    def call(
        self, script: str, keys: Sequence[str], *arguments: str | int
    ) -> "asyncio.Future[list[int] | int]":
        """Put a call in line; its answer fails with ValkeyUnavailable if the line breaks."""
        answer: asyncio.Future[list[int] | int] = asyncio.get_running_loop().create_future()
        # Nobody waits for some of the answers.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._calls.append(Call(script, keys, arguments, answer))
        self._has_calls.set()
        return answer

    async def open(self, scripts: Sequence[str]) -> None:
        """Connect anew and load the scripts; raises ValkeyUnavailable."""
        await self.close()
        try:
            async with asyncio.timeout(self.timeout_s):
                self._client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
                    self.url,
                    retry=Retry(NoBackoff(), 0),
                    socket_connect_timeout=self.timeout_s,
                )
                await self._client.ping()
                for script in scripts:
                    self._digests[script] = str(await self._client.script_load(script))
        except (RedisError, OSError, TimeoutError) as error:
            raise ValkeyUnavailable(f"Valkey does not answer: {error or 'no word'}") from error

    async def carry(self) -> None:
        """Carry calls for ever; raises ValkeyUnavailable, and every call in line with it."""
        while True:
            await self._has_calls.wait()
            batch = [self._calls.popleft() for _ in range(min(BATCH_MAX, len(self._calls)))]
            if not self._calls:
                self._has_calls.clear()
            try:
                await self._carry(batch)
            except BaseException as error:
                self._fail(batch, str(error))
                raise

    def drop(self, reason: str) -> None:
        """Fail whatever is in line."""
        self._fail([], reason)

    async def close(self) -> None:
        """Fail whatever is in line, and hang up."""
        self.drop("the line was closed")
        if self._client is not None:
            client, self._client = self._client, None
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.aclose()
            except (RedisError, OSError, TimeoutError):
                return

    async def _carry(self, batch: Sequence[Call]) -> None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for call in batch:
                digest = self._digests[call.script]
                pipeline.evalsha(digest, len(call.keys), *call.keys, *call.arguments)
            async with asyncio.timeout(self.timeout_s):
                answers = await pipeline.execute(raise_on_error=True)
        except (RedisError, OSError, TimeoutError) as error:
            raise ValkeyUnavailable(f"Valkey does not answer: {error or 'no word'}") from error
        for call, answer in zip(batch, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)

    def _fail(self, batch: Sequence[Call], reason: str) -> None:
        for call in (*batch, *self._calls):
            if not call.answer.done():
                call.answer.set_exception(ValkeyUnavailable(reason))
        self._calls.clear()
        self._has_calls.clear()
