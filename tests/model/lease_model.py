"""Leases and holds as a model, small enough to try everything: what ADR 0022 says, and no more.

Money is whole units, a hold is one unit, an attempt uses it or does not. One payer, some gateways,
one worker. Each step is one that the product makes in one go: a unit of work of the books, a record
in an outbox, a change in a gateway's memory, or a crash of a gateway between any two of these.

`LeaseDesk` makes the steps take, give back and end; `LeaseSettlement` makes settle; the recovery of
a gateway makes recover. A fault changes one rule, so that it can be shown that its loss is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Fault = Literal[
    "none",
    "ended under an open hold",
    "returned what is in use",
    "recovered leases before attempts",
    "granted more than leased",
    "settled without a position",
    "forgot its leases",
]


@dataclass(frozen=True, slots=True)
class Lease:
    """A row of the books; `last` is the event that it goes with, 0 where none is named yet."""

    id: int
    gateway: int
    left: int
    last: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A closed attempt in an outbox."""

    id: int
    lease: int
    used: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """`free` and `is_up` are memory and go with a crash; attempts and events are on the disk."""

    is_up: bool = True
    # Units that may be granted, by lease.
    free: tuple[tuple[int, int], ...] = ()
    # The attempts that are open in the outbox: their number, and the lease of their hold.
    open: tuple[tuple[int, int], ...] = ()
    # Those that the worker has not settled yet; the one before them only where a fault needs it.
    events: tuple[Event, ...] = ()
    settled: Event | None = None


@dataclass(frozen=True, slots=True)
class Books:
    """The whole world in one state. `earned` is what was settled, `used` what the upstream did."""

    available: int
    gateways: tuple[Gateway, ...]
    leases: tuple[Lease, ...] = ()
    earned: int = 0
    used: int = 0
    attempts: int = 0
    leased: int = 0
    uncovered: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """The size of the model, and the rule that is broken."""

    money: int = 3
    gateways: int = 2
    lease_size: int = 2
    leases_max: int = 2
    attempts_max: int = 2
    fault: Fault = "none"

    def start(self) -> Books:
        return Books(self.money, (Gateway(),) * self.gateways)

    def steps(self, books: Books) -> Iterator[tuple[str, Books]]:
        """Everything that can happen next, with a name for it."""
        for number, gateway in enumerate(books.gateways):
            if gateway.is_up:
                yield from self._take(books, number)
                for lease_id, free in gateway.free:
                    yield from self._hold(books, number, lease_id, free)
                    yield from self._give_back(books, number, lease_id, free)
                    yield from self._end(books, number, lease_id)
                for attempt in gateway.open:
                    yield from self._close(books, number, attempt)
                yield f"gateway {number} dies", _put(books, number, is_up=False, free=())
            else:
                yield from self._recover(books, number)
            yield from self._settle(books, number)

    def problem(self, books: Books) -> str | None:
        """What is wrong with a state."""
        leased = sum(lease.left for lease in books.leases)
        waiting = sum(event.used for gateway in books.gateways for event in gateway.events)
        if books.uncovered:
            return "an event names a lease that is gone"
        if books.available + leased + books.earned != self.money:
            return "money came or went"
        if books.available < 0 or any(lease.left < 0 for lease in books.leases):
            return "an account is below nothing"
        if books.earned + waiting != books.used:
            return "what was used is not what is billed"
        if books.used > self.money:
            return "more was used than was paid for"
        return None

    def is_quiet(self, books: Books) -> bool:
        """Nothing is open, and all money is earned or available."""
        return not books.leases and all(
            not gateway.open and not gateway.events for gateway in books.gateways
        )

    def _take(self, books: Books, number: int) -> Iterator[tuple[str, Books]]:
        size = min(self.lease_size, books.available)
        if not size or books.leased == self.leases_max:
            return
        lease = Lease(books.leased + 1, number, size)
        free = size + (self.fault == "granted more than leased")
        taken = replace(
            books,
            available=books.available - size,
            leases=(*books.leases, lease),
            leased=lease.id,
        )
        gateway = books.gateways[number]
        yield (
            f"gateway {number} takes lease {lease.id}",
            _put(taken, number, free=(*gateway.free, (lease.id, free))),
        )

    def _hold(
        self, books: Books, number: int, lease_id: int, free: int
    ) -> Iterator[tuple[str, Books]]:
        """The attempt's record is durable before its upstream does anything."""
        if not free or books.attempts == self.attempts_max:
            return
        gateway, attempt = books.gateways[number], books.attempts + 1
        yield (
            f"gateway {number} holds for attempt {attempt}",
            _put(
                replace(books, attempts=attempt),
                number,
                free=_with(gateway.free, lease_id, free - 1),
                open=(*gateway.open, (attempt, lease_id)),
            ),
        )

    def _close(
        self, books: Books, number: int, attempt: tuple[int, int]
    ) -> Iterator[tuple[str, Books]]:
        """The event is in the outbox; what was not used can be granted again."""
        for used in (0, 1):
            closed = _write_event(books, number, attempt, used)
            gateway = closed.gateways[number]
            given = dict(gateway.free)
            if attempt[1] in given:
                free = _with(gateway.free, attempt[1], given[attempt[1]] + 1 - used)
                closed = _put(closed, number, free=free)
            yield f"attempt {attempt[0]} ends with {used} used", closed

    def _give_back(
        self, books: Books, number: int, lease_id: int, free: int
    ) -> Iterator[tuple[str, Books]]:
        """What is free returns; a lease in the hand of its gateway is never at its end."""
        lease = _lease(books, lease_id)
        back = lease.left if self.fault == "returned what is in use" else free
        if not back:
            return
        gateway = books.gateways[number]
        kept = _keep(books, replace(lease, left=lease.left - back))
        returned = replace(kept, available=books.available + back)
        yield (
            f"gateway {number} gives {back} of lease {lease_id} back",
            _put(returned, number, free=_with(gateway.free, lease_id, 0)),
        )

    def _end(self, books: Books, number: int, lease_id: int) -> Iterator[tuple[str, Books]]:
        """No hold is open: the last event that names the lease is known."""
        gateway = books.gateways[number]
        in_use = any(of == lease_id for _, of in gateway.open)
        if in_use and self.fault != "ended under an open hold":
            return
        free = tuple(pair for pair in gateway.free if pair[0] != lease_id)
        yield (
            f"gateway {number} ends lease {lease_id}",
            _put(_end_lease(books, lease_id), number, free=free),
        )

    def _recover(self, books: Books, number: int) -> Iterator[tuple[str, Books]]:
        """Each open attempt gets its event, with what the upstream says, then each lease its end."""
        left = [lease.id for lease in books.leases if lease.gateway == number and not lease.last]
        if self.fault == "recovered leases before attempts":
            for lease_id in left:
                books = _end_lease(books, lease_id)
        open_attempts = books.gateways[number].open
        for uses in range(2 ** len(open_attempts)):
            recovered = books
            for place, attempt in enumerate(open_attempts):
                recovered = _write_event(recovered, number, attempt, (uses >> place) & 1)
            if self.fault not in {"forgot its leases", "recovered leases before attempts"}:
                for lease_id in left:
                    recovered = _end_lease(recovered, lease_id)
            yield f"gateway {number} recovers, {uses:b} used", _put(recovered, number, is_up=True)
            # It may die again between two of these events, and begins once more.
            if open_attempts:
                first = _write_event(books, number, open_attempts[0], uses & 1)
                yield f"gateway {number} dies while it recovers, {uses & 1} used", first

    def _settle(self, books: Books, number: int) -> Iterator[tuple[str, Books]]:
        gateway = books.gateways[number]
        if gateway.events:
            event, *rest = gateway.events
            done = event if self.fault == "settled without a position" else None
            settled = _put(books, number, events=tuple(rest), settled=done)
            yield f"event {event.id} is settled", _book(settled, event)
        if gateway.settled:
            # A worker that was paused, and believes itself alone.
            again = _put(books, number, settled=None)
            yield f"event {gateway.settled.id} is settled again", _book(again, gateway.settled)


def _book(books: Books, event: Event) -> Books:
    """Earn what an event used out of its lease, which goes with its last one."""
    lease = next((one for one in books.leases if one.id == event.lease), None)
    booked = replace(books, earned=books.earned + event.used)
    if lease is None:
        # A lease that is gone covers nothing, and the charge comes out of nowhere.
        return replace(booked, uncovered=books.uncovered + 1)
    left = lease.left - event.used
    if lease.last == event.id:
        return replace(_remove(booked, lease.id), available=books.available + left)
    return _keep(booked, replace(lease, left=left))


def _write_event(books: Books, number: int, attempt: tuple[int, int], used: int) -> Books:
    gateway = books.gateways[number]
    return _put(
        replace(books, used=books.used + used),
        number,
        open=tuple(one for one in gateway.open if one != attempt),
        events=(*gateway.events, Event(attempt[0], attempt[1], used)),
    )


def _end_lease(books: Books, lease_id: int) -> Books:
    """Named its last event; gone at once where that is settled, or where there is none."""
    lease = _lease(books, lease_id)
    gateway = books.gateways[lease.gateway]
    waiting = [event.id for event in gateway.events if event.lease == lease_id]
    if not waiting:
        return replace(_remove(books, lease_id), available=books.available + lease.left)
    return _keep(books, replace(lease, last=waiting[-1]))


def _lease(books: Books, lease_id: int) -> Lease:
    return next(lease for lease in books.leases if lease.id == lease_id)


def _keep(books: Books, kept: Lease) -> Books:
    return replace(books, leases=tuple(kept if one.id == kept.id else one for one in books.leases))


def _remove(books: Books, lease_id: int) -> Books:
    return replace(books, leases=tuple(one for one in books.leases if one.id != lease_id))


def _put(books: Books, number: int, **changes: object) -> Books:
    gateways = list(books.gateways)
    gateways[number] = replace(gateways[number], **changes)  # type: ignore[arg-type]
    return replace(books, gateways=tuple(gateways))


def _with(
    free: tuple[tuple[int, int], ...], lease_id: int, units: int
) -> tuple[tuple[int, int], ...]:
    return tuple((one, units if one == lease_id else count) for one, count in free)
