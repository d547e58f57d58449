"""Counting requests and tokens against limits: exact sliding windows of 60 seconds, in memory.

Time is counted in ticks, so that a window stays small however much is asked. A request counts for
60 seconds and at most a tick more, never for less.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import msgspec

from steelyard.access.limits import CountedPlace, LimitSet
from steelyard.errors import Refusal

TICKS_PER_S: Final = 10
# A tick more than a minute: the last tick of it may have begun just before.
WINDOW_TICKS: Final = 60 * TICKS_PER_S + 1
# How long somebody waits who is refused because too much runs already: nobody knows.
AT_ONCE_RETRY_S: Final = 1.0
_SWEEP_EVERY: Final = 4096

Kind = Literal["requests", "tokens", "at_once"]


class Allowance(msgspec.Struct, frozen=True):
    """What is left of a limit per minute, and when all of it will be free again."""

    limit: int
    remaining: int
    reset_s: float


class Allowances(msgspec.Struct, frozen=True):
    """The tightest limits over a request, where there are any."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


class RateLimited(Refusal):
    """The requests or tokens of this minute are used up."""

    code = "rate_limited"

    def __init__(
        self, message: str, *, retry_after_s: float, allowances: Allowances | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.allowances = allowances or Allowances()


class TooManyAtOnce(RateLimited):
    """As many requests run as may run at once."""

    code = "too_many_at_once"


class TokensOverLimit(Refusal):
    """The request may use more tokens than a whole minute allows."""

    code = "tokens_over_limit"


class Counted(Protocol):
    """A request that was counted, and runs."""

    @property
    def allowances(self) -> Allowances: ...

    def end(self, *, tokens: int | None) -> None:
        """It runs no more: from now on it counts with the tokens that it used. None: nobody knows
        how many, so it keeps those that it reserved. Ending twice changes nothing."""
        ...


class RequestCounts(Protocol):
    """Counts requests against the limits of places."""

    async def count(self, places: Sequence[CountedPlace], *, tokens: int) -> Counted:
        """Count a request in all the places, or in none; raises RateLimited, TooManyAtOnce or
        TokensOverLimit."""
        ...


@dataclass(slots=True)
class _Tick:
    number: int
    requests: int = 0
    tokens: int = 0
    is_over: bool = False


@dataclass(slots=True)
class _Window:
    """What was asked of one place in the last minute, and what runs."""

    ticks: deque[_Tick] = field(default_factory=deque[_Tick])
    requests: int = 0
    tokens: int = 0
    at_once: int = 0
    # What this process allows of which limits, where it has a share of them.
    share: tuple[LimitSet, LimitSet] | None = None

    def advance(self, now: int) -> None:
        """Forget what is older than a minute."""
        ticks = self.ticks
        while ticks and ticks[0].number <= now - WINDOW_TICKS:
            tick = ticks.popleft()
            self.requests -= tick.requests
            self.tokens -= tick.tokens
            tick.is_over = True

    def add(self, now: int, tokens: int) -> _Tick:
        if not self.ticks or self.ticks[-1].number < now:
            self.ticks.append(_Tick(now))
        tick = self.ticks[-1]
        tick.requests += 1
        tick.tokens += tokens
        self.requests += 1
        self.tokens += tokens
        self.at_once += 1
        return tick

    def end(self, tick: _Tick, too_many_tokens: int, *, too_many: int = 0) -> None:
        self.at_once -= 1
        if not tick.is_over:
            tick.tokens -= too_many_tokens
            self.tokens -= too_many_tokens
            tick.requests -= too_many
            self.requests -= too_many

    def wait_s(self, kind: Literal["requests", "tokens"], excess: int, *, now: int) -> float:
        """How long until so much of what is counted is older than a minute."""
        for tick in self.ticks:
            excess -= tick.requests if kind == "requests" else tick.tokens
            if excess <= 0:
                return (tick.number + WINDOW_TICKS - now) / TICKS_PER_S
        # A limit of nothing at all: there is no right moment to come back.
        return WINDOW_TICKS / TICKS_PER_S

    @property
    def is_idle(self) -> bool:
        return not self.ticks and not self.at_once


@dataclass(slots=True)
class LocalCounted:
    """Implements Counted."""

    allowances: Allowances
    tokens: int
    _entries: Sequence[tuple[_Window, _Tick]]

    def end(self, *, tokens: int | None) -> None:
        too_many = 0 if tokens is None else self.tokens - tokens
        for window, tick in self._entries:
            window.end(tick, too_many)
        self._entries = ()

    def withdraw(self) -> None:
        """It was refused elsewhere: it has never been counted."""
        for window, tick in self._entries:
            window.end(tick, self.tokens, too_many=1)
        self._entries = ()


@dataclass(slots=True)
class LocalCounts:
    """Implements RequestCounts in memory, exactly, for one process.

    Where several processes share limits and cannot agree, each allows its share: the limit divided
    by `share_of`, and at least one request.
    """

    monotonic: Callable[[], float]
    share_of: int = 1
    _windows: dict[tuple[str, str], _Window] = field(default_factory=dict[tuple[str, str], _Window])
    _until_sweep: int = _SWEEP_EVERY

    async def count(self, places: Sequence[CountedPlace], *, tokens: int) -> LocalCounted:
        return self.count_now(places, tokens=tokens)

    def count_now(
        self, places: Sequence[CountedPlace], *, tokens: int, is_decided: bool = False
    ) -> LocalCounted:
        """As `count`; if it `is_decided` by somebody else, count without refusing."""
        now = int(self.monotonic() * TICKS_PER_S)
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep(now)
        if not is_decided:
            check_tokens(places, tokens)
        windows: list[_Window] = []
        for place in places:
            name = place.scope, place.id
            window = self._windows.get(name)
            if window is None:
                window = self._windows[name] = _Window()
            windows.append(window)
            window.advance(now)
            if not is_decided:
                self._refuse(place, window, tokens, now)
        entries = [(window, window.add(now, tokens)) for window in windows]
        return LocalCounted(self._allowances(places, windows, now), tokens, entries)

    def allowances(self, places: Sequence[CountedPlace]) -> Allowances:
        """Where the tightest limits stand now."""
        now = int(self.monotonic() * TICKS_PER_S)
        windows = [self._windows.get((p.scope, p.id), _Window()) for p in places]
        for window in windows:
            window.advance(now)
        return self._allowances(places, windows, now)

    def at_once(self) -> dict[tuple[str, str], int]:
        """How many requests run, by place."""
        return {place: window.at_once for place, window in self._windows.items() if window.at_once}

    def _refuse(self, place: CountedPlace, window: _Window, tokens: int, now: int) -> None:
        limits = self._allowed(place, window)
        most = limits.requests_per_minute
        if most is not None and window.requests + 1 > most:
            wait_s = window.wait_s("requests", window.requests + 1 - most, now=now)
            raise self._limited(place, "requests", tokens, wait_s)
        most = limits.tokens_per_minute
        if most is not None and window.tokens + tokens > most:
            wait_s = window.wait_s("tokens", window.tokens + tokens - most, now=now)
            raise self._limited(place, "tokens", tokens, wait_s)
        most = limits.requests_at_once
        if most is not None and window.at_once + 1 > most:
            raise self._limited(place, "at_once", tokens, AT_ONCE_RETRY_S)

    def _limited(
        self, place: CountedPlace, kind: Kind, tokens: int, retry_after_s: float
    ) -> RateLimited:
        return rate_limited(
            place,
            kind,
            tokens=tokens,
            retry_after_s=retry_after_s,
            allowances=self.allowances([place]),
            share_of=self.share_of,
        )

    def _allowed(self, place: CountedPlace, window: _Window) -> LimitSet:
        """The limits of a place, or this process's share of them, which is found once."""
        if self.share_of == 1:
            return place.limits
        share = window.share
        if share is None or share[0] is not place.limits:
            share = window.share = place.limits, _divided(place.limits, self.share_of)
        return share[1]

    def _allowances(
        self, places: Sequence[CountedPlace], windows: Sequence[_Window], now: int
    ) -> Allowances:
        requests = tokens = None
        for place, window in zip(places, windows, strict=True):
            limits = self._allowed(place, window)
            if limits.requests_per_minute is None and limits.tokens_per_minute is None:
                continue
            # What was counted last leaves last.
            newest = window.ticks[-1].number + WINDOW_TICKS if window.ticks else now
            reset_s = (newest - now) / TICKS_PER_S
            requests = tighter(requests, limits.requests_per_minute, window.requests, reset_s)
            tokens = tighter(tokens, limits.tokens_per_minute, window.tokens, reset_s)
        return Allowances(requests, tokens)

    def _sweep(self, now: int) -> None:
        """Forget, now and then, the places that nobody asks anything any more."""
        self._until_sweep = _SWEEP_EVERY
        for window in self._windows.values():
            window.advance(now)
        for place in [place for place, window in self._windows.items() if window.is_idle]:
            del self._windows[place]


def _divided(limits: LimitSet, count: int) -> LimitSet:
    """What one of so many allows."""

    def share(limit: int | None) -> int | None:
        return None if limit is None else max(limit // count, min(limit, 1))

    return replace(
        limits,
        requests_per_minute=share(limits.requests_per_minute),
        tokens_per_minute=share(limits.tokens_per_minute),
        requests_at_once=share(limits.requests_at_once),
    )


def tighter(
    known: Allowance | None, limit: int | None, used: int, reset_s: float
) -> Allowance | None:
    """The one of two allowances of which less is left."""
    if limit is None:
        return known
    remaining = max(0, limit - used)
    if known is not None and known.remaining <= remaining:
        return known
    return Allowance(limit, remaining, reset_s)


def check_tokens(places: Sequence[CountedPlace], tokens: int) -> None:
    """Raises TokensOverLimit where no minute has room for so many."""
    for place in places:
        most = place.limits.tokens_per_minute
        if most is not None and tokens > most:
            raise TokensOverLimit(
                f"the request may use {tokens} tokens, and {place.name} may use "
                f"{most} a minute; ask for fewer (max_tokens)"
            )


def rate_limited(
    place: CountedPlace,
    kind: Kind,
    *,
    tokens: int,
    retry_after_s: float,
    allowances: Allowances,
    share_of: int = 1,
) -> RateLimited:
    """The refusal, in words for whoever asked too much."""
    limits = place.limits
    share = f", and this gateway a share of one in {share_of} of it" if share_of > 1 else ""
    if kind == "at_once":
        return TooManyAtOnce(
            f"{place.name} may have {limits.requests_at_once} requests run at once{share}; "
            "try again when one has ended",
            retry_after_s=retry_after_s,
            allowances=allowances,
        )
    what = (
        f"make {limits.requests_per_minute} requests a minute"
        if kind == "requests"
        else f"use {limits.tokens_per_minute} tokens a minute{share}, and this request may use "
        f"{tokens}"
    )
    share = share if kind == "requests" else ""
    return RateLimited(
        f"{place.name} may {what}{share}; try again in {retry_after_s:.0f} s",
        retry_after_s=retry_after_s,
        allowances=allowances,
    )
