"""Requests whose holds were granted from a lease, from their events to a clean proof."""

import anyio
import pytest

from steelyard.access.budget import Budget
from steelyard.ids import new_id
from steelyard.metering.usage_event import UsageEvent
from steelyard.storage.database import BooksUnavailable
from tests.world import USD, World

TTL_S = 10


def _busy(world: World, *, chats: int = 2) -> None:
    """Ask so often that the keeper takes a lease."""
    for _ in range(chats):
        assert world.chat().status == 200
    world.keep_leases()
    assert world.holding.wallet.has_leases()


def _leased_events(world: World) -> list[str | None]:
    return [event.data.lease_id for event in world.events()]


def test_a_key_that_is_busy_is_served_from_a_lease(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    for _ in range(3):
        assert world.chat().status == 200

    world.settle()

    assert [lease is not None for lease in _leased_events(world)] == [False] * 2 + [True] * 3
    assert [check.compared for check in world.verify() if check.invariant == "I8"] != [0]
    assert world.differences() == []


def test_a_lease_that_expires_goes_back_with_its_last_event(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    assert world.chat().status == 200

    world.clock.advance(seconds=TTL_S + 1)
    world.keep_leases()
    assert not world.holding.wallet.has_leases()
    assert world.balance().held.picos > 0, "its last event is not in the books yet"
    world.settle()

    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_gateway_that_stops_returns_its_leases(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    assert world.chat().status == 200

    anyio.run(world.holding.keeper.close)
    world.settle()

    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_lease_of_a_dead_gateway_goes_back_after_recovery(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    assert world.chat().status == 200
    world.stop_gateway()

    world.start_gateway()
    world.recover()
    world.settle()

    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_lease_without_an_event_goes_back_at_once(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    world.stop_gateway()
    world.settle()

    world.start_gateway()
    world.recover()

    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_request_that_needs_what_is_leased_gets_it(world: World) -> None:
    # A lease has taken a sixteenth, so the rest does not cover one answer as long as all of it.
    world.organisation(dollars="0.05")
    _busy(world)
    world.settle()
    available = world.balance().available.picos
    tokens = available // 10_000_000 + 100
    assert world.balance().held.picos > 100 * 10_000_000

    answered = world.chat(max_tokens=tokens)

    assert answered.status == 200, answered.error
    assert not world.holding.wallet.has_leases()
    world.settle()
    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_recalled_key_rests_and_is_served_from_the_books(world: World) -> None:
    world.organisation(dollars="1")
    _busy(world)
    desk = world.holding.lease_desk
    desk.recall(world.tenants["acme"].id)

    world.keep_leases()
    for _ in range(4):
        assert world.chat().status == 200
        world.keep_leases()

    world.settle()
    assert _leased_events(world) == [None] * 6
    world.clock.advance(seconds=6)
    _busy(world)


def test_books_that_are_away_leave_no_stray_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.organisation(dollars="1")
    for _ in range(2):
        world.chat()
    desk = type(world.holding.lease_desk)
    take = desk.take

    def take_and_fail(*given: object) -> None:
        take(*given)  # pyright: ignore[reportArgumentType]
        raise BooksUnavailable("the answer was lost")

    with monkeypatch.context() as broken:
        broken.setattr(desk, "take", take_and_fail)
        with pytest.raises(BooksUnavailable):
            world.keep_leases()
    world.settle()
    assert world.balance().held.picos > 0

    world.clock.advance(seconds=TTL_S + 1)
    world.keep_leases()

    assert world.balance().held.picos == 0
    assert world.differences() == []


@pytest.mark.slow
def test_a_budget_of_tokens_bounds_what_is_granted_in_memory(world: World) -> None:
    organisation = world.organisation(dollars="100")
    budget = Budget(
        id=new_id(),
        organisation_id=organisation.id,
        scope="organisation",
        scope_id=organisation.id,
        unit="tokens",
        period="day",
        amount=4_000,
        is_hard=True,
        currency=USD,
        time_zone="UTC",
        created_at=world.clock.now(),
    )
    world.stores.budgets.insert_budget(budget)
    _busy(world)
    served = 0
    while world.chat().status == 200:
        served += 1
        world.clock.advance(seconds=1)
        world.keep_leases()
        world.settle()

    [standing] = world.stores.budgets.standings(at=world.clock.now())
    events = world.events()
    used = sum(sum(_tokens(event)) for event in events)
    assert standing.stands.used == used <= 4_000
    assert served > 20
    assert any(_leased_events(world))
    assert world.differences() == []


def _tokens(event: UsageEvent) -> list[int]:
    return [int(count) for count in event.data.meters.values()]
