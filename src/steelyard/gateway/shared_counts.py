"""Counting against limits that several gateways share: in Valkey, exactly.

While Valkey is away each gateway allows its share, and for a minute after that both count: so no
60 seconds ever have more than twice the limit, however often Valkey comes and goes, and none more
than the limit that has no such moment in it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
import structlog

from steelyard.access.limits import CountedPlace
from steelyard.access.rate_limit import (
    AT_ONCE_RETRY_S,
    TICKS_PER_S,
    WINDOW_TICKS,
    Allowances,
    Kind,
    LocalCounted,
    LocalCounts,
    check_tokens,
    rate_limited,
    tighter,
)
from steelyard.gateway.counting_script import COUNT, END, JOIN, LIVE
from steelyard.gateway.valkey_link import ValkeyLink, ValkeyUnavailable
from steelyard.ids import new_id

log = structlog.get_logger()

PREFIX: Final = "steelyard:limits:"
GATEWAYS: Final = f"{PREFIX}gateways"
LIVE_EVERY_S: Final = 2.0
# For so long a gateway is believed to live that says nothing any more.
LIVES_TICKS: Final = 10 * TICKS_PER_S
RETRY_S: Final = 1.0
MINUTE_S: Final = WINDOW_TICKS / TICKS_PER_S
_KINDS: Final[dict[int, Kind]] = {1: "requests", 2: "tokens", 3: "at_once"}


@dataclass(slots=True)
class SharedCounted:
    """Implements Counted."""

    allowances: Allowances
    local: LocalCounted
    _counts: "SharedCounts"
    _places: Sequence[CountedPlace]
    # When it was counted, in Valkey's ticks; nothing where this gateway alone has counted it.
    _ticks: Sequence[int] = ()
    _has_ended: bool = False

    def end(self, *, tokens: int | None) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self.local.end(tokens=tokens)
        too_many = 0 if tokens is None else self.local.tokens - tokens
        self._counts.end(self._places, self._ticks, too_many)


@dataclass(slots=True)
class SharedCounts:
    """Implements RequestCounts in Valkey; `keep` has to run beside it.

    `local` counts everything that this gateway admits, so that it knows its share at any moment.
    """

    link: ValkeyLink
    local: LocalCounts
    name: str
    # Set as soon as it is known whether Valkey is there.
    tried: anyio.Event = field(default_factory=anyio.Event)
    _gateway: str = ""
    _is_away: bool = True
    _was_away: bool = False
    _both_until: float = 0.0

    async def count(self, places: Sequence[CountedPlace], *, tokens: int) -> SharedCounted:
        if self._is_away:
            return self._count_alone(places, tokens)
        check_tokens(places, tokens)
        both = self.local.monotonic() < self._both_until
        local = self.local.count_now(places, tokens=tokens, is_decided=not both)
        try:
            answer = await self._ask(places, tokens)
        except ValkeyUnavailable:
            local.withdraw()
            return self._count_alone(places, tokens)
        except BaseException:
            local.withdraw()
            raise
        if answer[0] == 0:
            local.withdraw()
            raise self._refusal(places, tokens, answer)
        return SharedCounted(_allowances(places, answer), local, self, places, answer[1::3])

    def end(self, places: Sequence[CountedPlace], ticks: Sequence[int], too_many: int) -> None:
        """Tell Valkey that a request runs no more; while it is away, joining it tells all."""
        if not self._is_away:
            keys = [key for place in places for key in (_key(place, "w"), _key(place, "n"))]
            self.link.call(END, keys, self._gateway, too_many, *(ticks or [0] * len(places)))

    async def keep(self) -> None:
        """Stay joined for ever."""
        try:
            while True:
                try:
                    await self._stay_joined()
                except* ValkeyUnavailable as failures:
                    self._lose(str(failures.exceptions[0]))
                await anyio.sleep(RETRY_S)
        finally:
            with anyio.CancelScope(shield=True):
                await self.link.close()

    async def _stay_joined(self) -> None:
        """Raises ValkeyUnavailable, alone or in a group."""
        await self.link.open((COUNT, END, JOIN, LIVE))
        async with anyio.create_task_group() as tasks:
            self._join()
            tasks.start_soon(self.link.carry)
            await self._live()

    def _join(self) -> None:
        """Tell Valkey, before anything else, what runs; nothing may be awaited in here."""
        before, self._gateway = self._gateway, f"{self.name}:{new_id()}"
        running = self.local.at_once()
        keys = [GATEWAYS, *(f"{PREFIX}{scope}:{id_}:n" for scope, id_ in running)]
        self.link.call(JOIN, keys, self._gateway, before, LIVES_TICKS, *running.values())
        self._is_away = False
        self.tried.set()
        if self._was_away:
            self._both_until = self.local.monotonic() + MINUTE_S
            log.info("limits.shared_again", gateway=self._gateway)

    def _lose(self, reason: str) -> None:
        if not self._was_away or not self._is_away:
            log.warning("limits.not_shared", reason=reason, share_of=self.local.share_of)
        self._is_away = self._was_away = True
        self.link.drop(reason)
        self.tried.set()

    async def _live(self) -> None:
        while True:
            await anyio.sleep(LIVE_EVERY_S)
            if await self.link.call(LIVE, [GATEWAYS], self._gateway, LIVES_TICKS) == 0:
                raise ValkeyUnavailable("Valkey does not know this gateway any more")

    async def _ask(self, places: Sequence[CountedPlace], tokens: int) -> list[int]:
        keys = [GATEWAYS, *(_key(place, part) for place in places for part in "wkn")]
        limits = [
            -1 if limit is None else limit
            for place in places
            for limit in (
                place.limits.requests_per_minute,
                place.limits.tokens_per_minute,
                place.limits.requests_at_once,
            )
        ]
        gateway = self._gateway
        asked = self.link.call(COUNT, keys, gateway, WINDOW_TICKS, tokens, *limits)
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # It may be counted all the same: then it is over at once.
            asked.add_done_callback(lambda done: self._abandon(done, gateway, places, tokens))
            raise
        assert isinstance(answer, list), f"a count is answered by a list, not {answer!r}"
        if answer[0] == -1:
            self._is_away = True
            raise ValkeyUnavailable("Valkey does not know this gateway any more")
        return answer

    def _abandon(
        self,
        done: "asyncio.Future[list[int] | int]",
        gateway: str,
        places: Sequence[CountedPlace],
        tokens: int,
    ) -> None:
        if done.cancelled() or done.exception() is not None or gateway != self._gateway:
            return
        answer = done.result()
        if isinstance(answer, list) and answer[0] == 1:
            self.end(places, answer[1::3], tokens)

    def _count_alone(self, places: Sequence[CountedPlace], tokens: int) -> SharedCounted:
        local = self.local.count_now(places, tokens=tokens)
        return SharedCounted(local.allowances, local, self, places)

    def _refusal(self, places: Sequence[CountedPlace], tokens: int, answer: list[int]) -> Exception:
        _, number, kind, wait, requests, used, reset = answer
        place = places[number - 1]
        reset_s = reset / TICKS_PER_S
        return rate_limited(
            place,
            _KINDS[kind],
            tokens=tokens,
            retry_after_s=wait / TICKS_PER_S if kind != 3 else AT_ONCE_RETRY_S,
            allowances=Allowances(
                tighter(None, place.limits.requests_per_minute, requests, reset_s),
                tighter(None, place.limits.tokens_per_minute, used, reset_s),
            ),
        )


def _key(place: CountedPlace, part: str) -> str:
    return f"{PREFIX}{place.scope}:{place.id}:{part}"


def _allowances(places: Sequence[CountedPlace], answer: list[int]) -> Allowances:
    requests = tokens = None
    for place, counted, used in zip(places, answer[2::3], answer[3::3], strict=True):
        requests = tighter(requests, place.limits.requests_per_minute, counted, MINUTE_S)
        tokens = tighter(tokens, place.limits.tokens_per_minute, used, MINUTE_S)
    return Allowances(requests, tokens)
