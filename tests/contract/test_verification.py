"""Verification finds whatever was tampered with."""

import pytest

from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money
from tests.world import USD, World

# Tampering needs the owner's rights: the triggers must go first.
TAMPERINGS = {
    "I1": "UPDATE ledger_postings SET picos = picos + 1 WHERE account_id LIKE 'revenue%'",
    "I2": "UPDATE ledger_accounts SET balance = balance + 1 WHERE kind = 'prepaid'",
    "I3": "UPDATE open_holds SET amount = amount + 1",
    "I5": "UPDATE usage_events SET amount = amount - 1",
    "I5 lines": "UPDATE usage_events SET charges = REPLACE(charges, '10000000', '9000000')",
    "I4 draws": "UPDATE usage_events SET draws = ''",
    "I7 hash": "UPDATE usage_events SET id = 'x' || id",
    "I10": "UPDATE usage_hours SET picos = picos - 1",
    "I10 requests": "DELETE FROM request_hours",
    "I10 funding": "UPDATE funding_hours SET grant_id = 'another'",
    "I7 sequence": "UPDATE usage_events SET sequence = sequence + 5 WHERE sequence = 2",
    "I6 prices": "UPDATE price_versions SET canonical = REPLACE(canonical, '10', '11')",
}


def test_untouched_books_are_right(world: World) -> None:
    _use(world)

    assert world.differences() == []
    assert all(check.compared for check in world.verify())


@pytest.mark.parametrize("statement", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampering_is_found(statement: str, world: World) -> None:
    _use(world)
    _remove_triggers(world)

    with world.stores.database.write() as connection:
        changed = connection.exec_driver_sql(
            statement.replace("%", "%%") if _is_postgres(world) else statement
        )
        assert changed.rowcount > 0

    assert world.differences() != []


def test_a_deleted_event_is_found(world: World) -> None:
    _use(world)
    _remove_triggers(world)

    with world.stores.database.write() as connection:
        middle = world.events()[1].id
        connection.exec_driver_sql(f"DELETE FROM usage_events WHERE id = '{middle}'")

    assert any("expected 2" in difference for difference in world.differences())
    assert any("its events say" in difference for difference in world.differences())


def _use(world: World) -> None:
    world.organisation(dollars="1")
    for stream in (False, True, False):
        world.chat(stream=stream)
    world.settle()
    organisation = world.tenants["acme"]
    amount = Money(1_000, USD)
    hold = Hold(new_id(), organisation.id, amount, "still open", world.clock.now(), "{}")
    scope = HoldScope(organisation.id, "a department", None, "a key", tokens_max=1)
    world.hold_desk.place(hold, scope).result(timeout=30)


def _is_postgres(world: World) -> bool:
    return not world.stores.database.is_sqlite


def _remove_triggers(world: World) -> None:
    with world.stores.database.write() as connection:
        if _is_postgres(world):
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            tables = ("ledger_postings", "usage_events", "event_segments", "price_versions")
            for table in tables:
                connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            return
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in names.fetchall():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
