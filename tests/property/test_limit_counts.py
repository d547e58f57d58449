"""Counting against limits, beside a slow reference that remembers everything."""

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.access.limits import CountedPlace, LimitSet
from steelyard.access.rate_limit import (
    TICKS_PER_S,
    LocalCounted,
    LocalCounts,
    RateLimited,
    TokensOverLimit,
    TooManyAtOnce,
)
from tests.tape import Tape

KEY = CountedPlace("key", "k", LimitSet(requests_per_minute=3))


@dataclass
class Remembered:
    """One request, as the reference remembers it."""

    tick: int
    places: tuple[str, ...]
    tokens: int
    runs: bool = True


@dataclass
class Reference:
    """Remembers every request for ever, and adds up from the beginning each time."""

    requests: list[Remembered] = field(default_factory=list[Remembered])

    def allows(self, place: CountedPlace, tokens: int, *, tick: int) -> bool:
        limits = place.limits
        its = [request for request in self.requests if place.id in request.places]
        recent = [request for request in its if tick - request.tick <= 60 * TICKS_PER_S]
        wanted = (
            (limits.requests_per_minute, len(recent) + 1),
            (limits.tokens_per_minute, sum(r.tokens for r in recent) + tokens),
            (limits.requests_at_once, sum(r.runs for r in its) + 1),
        )
        return all(limit is None or number <= limit for limit, number in wanted)


small = st.none() | st.integers(0, 5)
limit_sets = st.builds(
    LimitSet,
    requests_per_minute=small,
    tokens_per_minute=st.none() | st.integers(0, 60),
    requests_at_once=small,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 7), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 20), st.none() | st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([1, 50, 299, 599, 600, 601]), st.none()),
    ),
    max_size=60,
)


@given(limits=st.lists(limit_sets, min_size=3, max_size=3), steps=steps)
def test_requests_are_admitted_exactly_as_one_who_remembers_everything_would(
    limits: list[LimitSet], steps: list[tuple[str, int, int | None]]
) -> None:
    places = [CountedPlace("key", name, each) for name, each in zip("abc", limits, strict=True)]
    tape, reference = Tape(), Reference()
    counts = LocalCounts(tape)
    running: list[tuple[LocalCounted, Remembered]] = []

    for verb, number, tokens in steps:
        if verb == "wait":
            tape.at += number / TICKS_PER_S
        elif verb == "ask":
            assert tokens is not None
            over = [place for i, place in enumerate(places) if number & 1 << i]
            tick = int(tape.at * TICKS_PER_S)
            allowed = all(reference.allows(place, tokens, tick=tick) for place in over)
            try:
                counted = counts.count_now(over, tokens=tokens)
            except (RateLimited, TokensOverLimit):
                assert not allowed
            else:
                assert allowed
                known = Remembered(tick, tuple(place.id for place in over), tokens)
                reference.requests.append(known)
                running.append((counted, known))
        elif running:
            counted, known = running.pop(number % len(running))
            counted.end(tokens=tokens)
            known.runs = False
            known.tokens = known.tokens if tokens is None else tokens


@given(
    gaps=st.lists(st.floats(0, 30), min_size=1, max_size=40),
    per_minute=st.integers(1, 5),
)
def test_no_minute_ever_has_more_requests_than_the_limit(
    gaps: list[float], per_minute: int
) -> None:
    tape = Tape()
    counts = LocalCounts(tape)
    place = CountedPlace("key", "k", LimitSet(requests_per_minute=per_minute))
    admitted: list[float] = []

    for gap in gaps:
        tape.at += gap
        with suppress(RateLimited):
            counts.count_now([place], tokens=0)
            admitted.append(tape.at)

    for first in admitted:
        assert sum(first <= moment < first + 60 for moment in admitted) <= per_minute


def test_who_waits_as_long_as_told_is_admitted_and_not_a_moment_sooner() -> None:
    tape = Tape(100.05)
    counts = LocalCounts(tape)
    for _ in range(3):
        counts.count_now([KEY], tokens=0)
    tape.at += 7
    with pytest.raises(RateLimited) as refused:
        counts.count_now([KEY], tokens=0)

    tape.at += refused.value.retry_after_s - 0.1
    with pytest.raises(RateLimited):
        counts.count_now([KEY], tokens=0)
    tape.at += 0.1
    counts.count_now([KEY], tokens=0)


def test_a_refused_request_counts_in_no_place() -> None:
    counts = LocalCounts(Tape())
    wide = CountedPlace("organisation", "o", LimitSet(requests_per_minute=5))
    for _ in range(3):
        counts.count_now([wide, KEY], tokens=0)

    for _ in range(4):
        with pytest.raises(RateLimited, match="this key may make 3 requests a minute"):
            counts.count_now([wide, KEY], tokens=0)

    allowances = counts.allowances([wide])
    assert allowances.requests is not None
    assert allowances.requests.remaining == 2


def test_tokens_that_were_reserved_and_not_used_are_free_again_at_the_end() -> None:
    counts = LocalCounts(Tape())
    place = CountedPlace("key", "k", LimitSet(tokens_per_minute=100))
    counted = counts.count_now([place], tokens=90)
    with pytest.raises(RateLimited, match="may use 11"):
        counts.count_now([place], tokens=11)

    counted.end(tokens=20)
    counted.end(tokens=0)

    assert counts.count_now([place], tokens=80).allowances.tokens is not None
    with pytest.raises(RateLimited):
        counts.count_now([place], tokens=1)


def test_a_request_that_no_minute_has_room_for_is_told_so() -> None:
    counts = LocalCounts(Tape())
    place = CountedPlace("department", "d", LimitSet(tokens_per_minute=100))

    with pytest.raises(TokensOverLimit, match="101 tokens, and this key's department may use 100"):
        counts.count_now([place], tokens=101)


def test_what_runs_at_once_is_limited_however_long_it_runs() -> None:
    tape = Tape()
    counts = LocalCounts(tape)
    place = CountedPlace("key", "k", LimitSet(requests_at_once=1))
    counted = counts.count_now([place], tokens=5)
    tape.at += 1000

    with pytest.raises(TooManyAtOnce):
        counts.count_now([place], tokens=5)
    counted.end(tokens=5)

    counts.count_now([place], tokens=5)


def test_places_that_nobody_asks_are_forgotten() -> None:
    tape = Tape()
    counts = LocalCounts(tape)

    for number in range(20_000):
        tape.at += 0.1
        place = CountedPlace("key", str(number), LimitSet(requests_per_minute=1))
        counts.count_now([place], tokens=0).end(tokens=0)

    assert len(counts._windows) < 6000
