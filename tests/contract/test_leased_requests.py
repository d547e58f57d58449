"""Requests whose holds were granted from a lease, from their events to a clean proof."""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import timedelta

from steelyard.billing.lease_desk import LeaseDesk, LeaseWanted
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.ledger.lease import Lease
from tests.world import USD, World

DOLLAR = 10**12


@dataclass
class LeasingDesk:
    """Grants every hold from one lease, as a gateway that has one does."""

    desk: LeaseDesk
    source: str
    lease: Lease | None = None

    def place(self, hold: Hold, scope: HoldScope) -> "Future[Hold]":
        if self.lease is None:
            size = LeaseSize(DOLLAR // 100, 10_000)
            self.lease = self.desk.take(
                LeaseWanted(
                    payer_id=hold.payer_id,
                    currency=USD,
                    scope=scope,
                    source=self.source,
                    hold=LeaseSize(1, 1),
                    size=size,
                    at=hold.placed_at,
                )
            )
        assert self.lease is not None, "the funds are thin"
        granted: Future[Hold] = Future()
        granted.set_result(replace(hold, lease_id=self.lease.id))
        return granted


def _lease_holds(world: World) -> LeasingDesk:
    desk = LeasingDesk(
        LeaseDesk(world.stores.books, ttl=timedelta(seconds=10)), world.outbox.source
    )
    world.admission = replace(world.admission, hold_desk=desk)  # pyright: ignore[reportArgumentType]
    return desk


def test_leased_requests_are_charged_and_proved(world: World) -> None:
    world.organisation(dollars="1")
    desk = _lease_holds(world)
    for _ in range(3):
        assert world.chat().status == 200
    assert desk.lease is not None

    world.settle()

    events = world.events()
    assert {event.data.lease_id for event in events} == {desk.lease.id}
    assert [check.compared for check in world.verify() if check.invariant == "I8"] != [0]
    assert world.differences() == []

    desk.desk.end(desk.lease.id, last_event_id=events[-1].id, at=world.clock.now())
    assert world.balance().held.picos == 0
    assert world.differences() == []
