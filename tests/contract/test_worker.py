"""The worker among outboxes that are not what they should be."""

from dataclasses import replace
from datetime import timedelta

from steelyard.billing.commands import new_command
from steelyard.billing.top_up import GrantTerms, grant_credit
from steelyard.entrypoints.worker_process import Sweep
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money
from tests.world import USD, World


def test_an_outbox_that_is_still_being_made_stops_nobody(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    half_made = sqlite_world.settings.outbox_dir / "another.outbox"
    half_made.mkdir()

    sqlite_world.chat()
    sqlite_world.settle()

    assert len(sqlite_world.events()) == 1
    assert sqlite_world.balance().held.picos == 0


def test_the_sweep_lets_grants_expire_and_forgotten_holds_come_to_light(world: World) -> None:
    organisation = world.organisation(dollars="1")
    tomorrow = world.clock.now() + timedelta(days=1)
    grant_credit(
        world.stores.books,
        organisation,
        amount=Money(10**12, USD),
        command=new_command(clock=world.clock, actor="test", reason="test"),
        terms=GrantTerms(expires_at=tomorrow),
    )
    hold = Hold(new_id(), organisation.id, Money(5, USD), "gone", world.clock.now(), "{}")
    scope = HoldScope(organisation.id, "a department", None, "a key", tokens_max=1)
    world.hold_desk.place(hold, scope).result(timeout=30)
    sweep = Sweep(replace(world.stores, clock=world.clock), every_s=60, hold_ttl_s=3600)

    sweep.run_if_due()
    before = world.balance().available.picos
    world.clock.advance(seconds=90_000)
    sweep.run_if_due()

    assert before == 2 * 10**12 - 5
    assert world.balance().available.picos == 10**12
    with world.stores.books.write() as unit:
        assert [held.id for held in unit.list_holds(only_unresolved=True, limit=9)] == [hold.id]
