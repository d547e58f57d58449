"""Runs whose requests are held for as a whole: what is set aside, who can have it, and what goes back."""

import anyio
import msgspec
import pytest

from steelyard.access.budget import Budget
from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.gateway.run_lease import RunLease
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money
from steelyard.storage.database import BooksUnavailable
from tests.world import NOW, USD, World

CENT = 10**10


def _scope(world: World, *, tokens: int = 10) -> HoldScope:
    key = world.keys["acme"]
    department = key.department
    return HoldScope(department.organisation.id, department.id, None, key.id, tokens)


def _hold(world: World, cents: int) -> Hold:
    payer_id = world.keys["acme"].department.payer_id
    source = world.outbox.source
    return Hold(new_id(), payer_id, Money(cents * CENT, USD), source, NOW, "{}")


async def _grant(world: World, run: RunLease, cents: int) -> Hold:
    return await world.holding.place(_hold(world, cents), _scope(world), run_lease=run)


def _held(world: World) -> int:
    return world.balance().held.picos // CENT


def test_a_run_grows_by_what_its_next_request_lacks(world: World) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")

    async def three() -> list[Hold]:
        return [await _grant(world, run, cents) for cents in (10, 20, 5)]

    holds = anyio.run(three)

    assert len({hold.lease_id for hold in holds}) == 1
    assert _held(world) == 35
    assert world.differences() == []


def test_a_run_takes_ahead_where_there_is_plenty(world: World) -> None:
    world.organisation(dollars="100")
    run = world.holding.lease_for("run_1")

    async def seventeen() -> None:
        for _ in range(17):
            await _grant(world, run, 10)
            assert _held(world) == 170

    anyio.run(seventeen)

    assert world.differences() == []


def test_what_a_run_has_set_aside_nobody_else_can_have(world: World) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")
    scope = _scope(world)

    async def others() -> None:
        await world.holding.set_aside(_hold(world, 70), scope, run_lease=run)
        with pytest.raises(HoldDeclined):
            await world.holding.place(_hold(world, 31), scope)
        await _grant(world, run, 70)

    anyio.run(others)

    assert _held(world) == 70


def test_a_request_of_a_run_that_is_declined_says_what_there_is_with_what_is_set_aside(
    world: World,
) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")

    async def too_much() -> None:
        await world.holding.set_aside(_hold(world, 60), _scope(world), run_lease=run)
        with pytest.raises(HoldDeclined) as declined:
            await _grant(world, run, 101)
        assert declined.value.available == Money(100 * CENT, USD)

    anyio.run(too_much)

    assert _held(world) == 60


def test_a_run_gets_what_lies_in_leases_of_its_payer(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(2):
        world.chat()
    world.keep_leases()
    assert world.holding.wallet.has_leases()
    world.settle()
    run = world.holding.lease_for("run_1")
    available = world.balance().available.picos

    async def nearly_all() -> Hold:
        hold = msgspec.structs.replace(_hold(world, 0), amount=Money(available + 1, USD))
        return await world.holding.place(hold, _scope(world), run_lease=run)

    hold = anyio.run(nearly_all)

    assert hold.amount.picos == available + 1


def test_a_run_that_ends_gives_back_what_it_did_not_use(world: World) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")
    asked = world.ask_parsed_in(run)
    assert asked.status == 200
    world.settle()
    assert world.balance().held.picos > 0

    run.end()
    world.keep_leases()

    assert world.balance().held.picos == 0
    assert [event.data.lease_id is None for event in world.events()] == [False]
    assert world.differences() == []


def test_a_run_of_a_gateway_that_dies_gives_back_what_it_did_not_use(world: World) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")
    assert world.ask_parsed_in(run).status == 200
    world.stop_gateway()

    world.start_gateway()
    world.recover()
    world.settle()

    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_budget_bounds_a_run_as_it_grows(world: World) -> None:
    organisation = world.organisation(dollars="1")
    budget = Budget(
        id=new_id(),
        organisation_id=organisation.id,
        scope="organisation",
        scope_id=organisation.id,
        unit="money",
        period="total",
        amount=50 * CENT,
        is_hard=True,
        currency=USD,
        time_zone=organisation.time_zone,
        created_at=world.clock.now(),
    )
    world.stores.budgets.insert_budget(budget)
    run = world.holding.lease_for("run_1")

    async def grow() -> None:
        await _grant(world, run, 30)
        with pytest.raises(BudgetExceeded):
            await _grant(world, run, 21)
        await _grant(world, run, 20)

    anyio.run(grow)

    assert world.differences() == []


def test_a_reservation_whose_answer_is_lost_goes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")
    desk = type(world.holding.lease_desk)
    reserve = desk.take_for_run

    def reserve_and_fail(*given: object, **named: object) -> None:
        reserve(*given, **named)  # pyright: ignore[reportArgumentType]
        raise BooksUnavailable("the answer was lost")

    with monkeypatch.context() as broken:
        broken.setattr(desk, "take_for_run", reserve_and_fail)
        with pytest.raises(BooksUnavailable):
            anyio.run(_grant, world, run, 10)
    assert _held(world) == 10

    world.keep_leases()

    assert _held(world) == 0
    assert world.differences() == []


def test_a_run_whose_lease_was_ended_by_hand_reserves_anew(world: World) -> None:
    world.organisation(dollars="1")
    run = world.holding.lease_for("run_1")

    async def twice() -> tuple[Hold, Hold]:
        first = await _grant(world, run, 10)
        assert first.lease_id is not None
        world.holding.lease_desk.end(first.lease_id, last_event_id=None, at=NOW)
        return first, await _grant(world, run, 10)

    first, second = anyio.run(twice)

    assert first.lease_id != second.lease_id
    assert _held(world) == 10
