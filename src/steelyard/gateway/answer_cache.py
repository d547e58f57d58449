"""The answer cache: the same request of one organisation is made once, and answered many times.

What is kept is what the upstream sent, so an answer from the cache is read, translated and told as
every other one is. It has an event and a price of its own (`cache.hit`), by default nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.access.virtual_key import VirtualKey
from steelyard.clock import Clock
from steelyard.gateway.kept_answers import (
    AnswerStore,
    AnswersUnavailable,
    KeptAnswer,
    Place,
    StillRunning,
)
from steelyard.gateway.upstreams.base import Upstream
from steelyard.gateway.upstreams.kept import KeptUpstream, NotingUpstream
from steelyard.gateway.workloads.asked import JSON_TYPE, Asked, Way
from steelyard.metering.usage_event import EndCause
from steelyard.timestamp import read_timestamp, write_timestamp

log = structlog.get_logger()

# What does not change an answer: who asks for it, and how it is told.
NOT_OF_THE_ANSWER: Final = frozenset(
    ("stream_options", "user", "metadata", "safety_identifier", "prompt_cache_key")
)
WHOLE: Final[frozenset[EndCause]] = frozenset(("completed", "stopped_by_limit"))
LOOK_AGAIN_S: Final = 0.02
_KEPT_AT: Final = "kept-at"


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What the key and the request say: how old an answer may be, if it may be one of the cache."""

    ttl_s: int
    may_read: bool = True


@dataclass(frozen=True, slots=True)
class _Making:
    """An answer that is being made, and noted for the next."""

    store: AnswerStore
    clock: Clock
    place: Place
    upstream: NotingUpstream

    async def end(self, *, is_whole: bool) -> None:
        headers = {_KEPT_AT: write_timestamp(self.clock.now())}
        noted = tuple(self.upstream.noted)
        answer = KeptAnswer(self.place.name, headers, noted)
        try:
            if is_whole and noted:
                await anyio.to_thread.run_sync(lambda: self.store.keep(self.place, answer))
            else:
                await anyio.to_thread.run_sync(lambda: self.store.give_up(self.place))
        except AnswersUnavailable as failure:
            log.warning("cache.not_kept", reason=str(failure))


@dataclass(slots=True)
class CacheUse:
    """What the cache is for one request; `upstream` is whom to ask.

    `is_chosen` says that the key uses the cache. `age_s` is how old the answer is that was found;
    None where it has to be made.
    """

    upstream: Upstream
    is_chosen: bool = False
    age_s: int | None = None
    # Only of an answer that is kept once it is made.
    making: "_Making | None" = None

    @property
    def is_hit(self) -> bool:
        return self.age_s is not None

    def headers(self) -> dict[str, str]:
        """What the client is told of it."""
        if not self.is_chosen:
            return {}
        if self.age_s is not None:
            return {"x-steelyard-cache": "hit", "age": str(self.age_s)}
        return {"x-steelyard-cache": "miss" if self.making else "bypass"}

    async def end(self, *, is_whole: bool) -> None:
        """Keep the answer that was made, if it is whole; another request may make it otherwise."""
        if self.making is not None:
            await self.making.end(is_whole=is_whole)


def read_policy(cache_control: str | None, *, ttl_s: int | None) -> CachePolicy | None:
    """The key's time to live, and what `Cache-Control` makes of it (RFC 9111, section 5.2.1).

    None where nothing is cached: the key has not chosen it, or the request says `no-store`.
    """
    if ttl_s is None:
        return None
    asked = {part.strip().lower() for part in (cache_control or "").split(",")}
    if "no-store" in asked:
        return None
    ages = [part.partition("=")[2] for part in asked if part.startswith("max-age=")]
    ages = [int(age) for age in ages if age.isdecimal()]
    return CachePolicy(min([ttl_s, *ages]), may_read="no-cache" not in asked)


def place_of(asked: Asked, way: Way, *, organisation_id: str, model_id: str) -> Place | None:
    """Where the answer to a request is kept; None for what is no JSON.

    Two requests are the same where they are for the same model in the same words: the order of
    fields, the spaces between them, and what does not change the answer do not count.
    """
    if way.content_type != JSON_TYPE:
        return None
    try:
        fields: Mapping[str, Any] = msgspec.json.decode(msgspec.json.encode(way.fields()))
    except msgspec.DecodeError:
        return None
    chosen = {name: value for name, value in fields.items() if name not in NOT_OF_THE_ANSWER}
    request = {**chosen, "model": model_id, "stream": asked.is_streamed}
    canonical = msgspec.json.encode([asked.endpoint, way.path, request], order="deterministic")
    return Place(organisation_id, hashlib.sha256(canonical).hexdigest())


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """Finds answers, and keeps those that were made; where the store fails, nothing is cached."""

    store: AnswerStore
    clock: Clock
    # How long a request waits for the same one that is being answered.
    wait_s: float

    async def find(
        self, upstream: Upstream, asked: Asked, way: Way, *, key: VirtualKey, model_id: str
    ) -> CacheUse:
        """An answer that is young enough, or the right to make one. The same request at the same
        time waits for the first."""
        policy = read_policy(asked.cache_control, ttl_s=key.cache_ttl_s)
        if policy is None:
            return CacheUse(upstream, is_chosen=key.cache_ttl_s is not None)
        organisation_id = key.department.organisation.id
        place = place_of(asked, way, organisation_id=organisation_id, model_id=model_id)
        return await self._find(upstream, place, policy) if place else CacheUse(upstream, True)

    async def _find(self, upstream: Upstream, place: Place, policy: CachePolicy) -> CacheUse:
        try:
            kept = await self._look(place, policy)
        except AnswersUnavailable as failure:
            log.warning("cache.unavailable", reason=str(failure))
            return CacheUse(upstream, is_chosen=True)
        if isinstance(kept, KeptAnswer):
            age = self.clock.now() - _kept_at(kept)
            return CacheUse(
                KeptUpstream(upstream, kept.events),
                is_chosen=True,
                # The clock of the gateway that made it may be ahead of ours.
                age_s=max(0, int(age.total_seconds())),
            )
        if kept is not None:
            return CacheUse(upstream, is_chosen=True)
        making = _Making(self.store, self.clock, place, NotingUpstream(upstream))
        return CacheUse(making.upstream, is_chosen=True, making=making)

    async def _look(self, place: Place, policy: CachePolicy) -> KeptAnswer | StillRunning | None:
        gives_up_at = anyio.current_time() + self.wait_s
        while True:
            found = await anyio.to_thread.run_sync(
                lambda: self.store.begin(place, digest=place.name)
            )
            if isinstance(found, KeptAnswer) and not self._is_fresh(found, policy):
                await anyio.to_thread.run_sync(lambda: self.store.forget(place))
                continue
            if not isinstance(found, StillRunning) or anyio.current_time() >= gives_up_at:
                return found
            await anyio.sleep(LOOK_AGAIN_S)

    def _is_fresh(self, kept: KeptAnswer, policy: CachePolicy) -> bool:
        age = self.clock.now() - _kept_at(kept)
        return policy.may_read and age.total_seconds() < policy.ttl_s


def _kept_at(kept: KeptAnswer) -> datetime:
    return read_timestamp(kept.headers[_KEPT_AT])
