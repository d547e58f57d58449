"""What the books promise, on every database."""

import threading

import msgspec
import pytest
from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from steelyard.billing.books import PositionMoved
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.hold_desk import HoldDesk
from steelyard.eventlog.log import LogRecord
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.money import Money, read_decimal
from steelyard.storage import schema
from tests.deliveries import deliver, records_of, settle_records, stands_on, with_changes
from tests.world import INPUT_PRICE, OUTPUT_PRICE, USD, World


def test_the_balance_goes_down_by_exactly_the_charge(world: World) -> None:
    world.organisation(dollars="1")
    world.upstream.script = Script(words=("a",) * 11, prompt_tokens=13)

    answered = world.chat()
    world.settle()

    spent = Money(10**12, USD) - world.balance().total
    assert spent.picos == 13 * INPUT_PRICE + 11 * OUTPUT_PRICE
    assert read_decimal(answered.client.usage()["cost"]) == spent.picos


def test_events_that_are_delivered_again_change_nothing(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    world.settle()
    before = world.balance()

    counts = deliver(world, records_of(world), log_id="another-log")

    assert counts["repeated"] == 1
    assert world.balance() == before
    assert world.differences() == []


def test_an_event_with_the_same_id_and_other_content_is_quarantined(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    world.settle()
    before = world.balance()
    event = decode_event(records_of(world)[0].body)
    forged = encode_event(with_changes(event, amount="0"))

    counts = deliver(world, [LogRecord(1, forged)], log_id="another-log")

    assert counts["quarantined"] == 1
    assert world.balance() == before
    assert any("quarantine" in difference for difference in world.differences())


def test_what_is_no_event_is_quarantined_and_stops_nobody(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    good = records_of(world)[0]

    counts = deliver(
        world, [LogRecord(1, b"garbage"), LogRecord(2, good.body)], log_id="another-log"
    )

    assert (counts["quarantined"], counts["settled"]) == (1, 1)


def test_an_amount_that_the_worker_does_not_agree_with_waits_in_suspense(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    event = decode_event(records_of(world)[0].body)
    held = read_decimal(event.data.held)
    wrong = encode_event(with_changes(event, amount="0.5"))

    counts = deliver(world, [LogRecord(1, wrong)], log_id="another-log")

    assert counts["suspended"] == 1
    assert world.balance().total == Money(10**12 - held, USD)
    assert stands_on(world, "suspense:USD") == held
    assert stands_on(world, "revenue:USD") == 0


def test_a_worker_that_was_overtaken_cannot_post(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    records = records_of(world)
    deliver(world, records, log_id="shared-log")
    before = world.balance()

    with pytest.raises(PositionMoved):
        deliver(world, records, log_id="shared-log")

    assert world.balance() == before
    assert world.differences() == []


def test_a_crash_inside_a_batch_leaves_nothing_of_it(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    before = world.balance()

    with pytest.raises(KeyboardInterrupt), world.stores.books.write() as unit:
        settle_records(world, records_of(world), unit, log_id="another-log")
        raise KeyboardInterrupt

    assert world.balance() == before
    assert world.events() == []
    world.settle()
    assert len(world.events()) == 1


def test_concurrent_holds_never_exceed_the_balance(world: World) -> None:
    organisation = world.organisation(dollars="0.000001")
    desks = [HoldDesk(world.stores.books) for _ in range(3)]
    price = Money(30_000, USD)
    scope = HoldScope(organisation.id, "a department", None, "a key", tokens_max=10)
    granted: list[str] = []

    def ask(desk: HoldDesk) -> None:
        for _ in range(20):
            hold = Hold(new_id(), organisation.id, price, "test", world.clock.now(), "{}")
            try:
                desk.place(hold, scope).result(timeout=30)
            except HoldDeclined:
                continue
            granted.append(hold.id)

    threads = [threading.Thread(target=ask, args=(desk,)) for desk in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for desk in desks:
        desk.close()

    assert len(granted) == 1_000_000 // 30_000
    assert world.balance().available.picos == 1_000_000 % 30_000
    assert world.balance().held.picos == len(granted) * price.picos


@pytest.mark.parametrize("table", [table.name for table in schema.APPEND_ONLY])
def test_what_was_written_once_cannot_be_changed(table: str, world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    world.settle()
    deliver(world, [LogRecord(1, b"garbage")], log_id="another-log")
    _fill(world, schema.metadata.tables[table])
    column = schema.metadata.tables[table].primary_key.columns.values()[0].name

    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with (
            pytest.raises(DBAPIError, match="append-only"),
            world.stores.database.write() as connection,
        ):
            connection.exec_driver_sql(statement)


def test_the_database_itself_refuses_a_negative_balance(world: World) -> None:
    world.organisation(dollars="1")

    with (
        pytest.raises(DBAPIError, match="floor"),
        world.stores.database.write() as connection,
    ):
        connection.exec_driver_sql("UPDATE ledger_accounts SET balance = -1 WHERE kind = 'prepaid'")

    assert world.balance().available.picos == 10**12


def _fill(world: World, table: Table) -> None:
    """Put a row of nothing into a table that has none: on SQLite only rows are protected."""
    if not world.stores.database.is_sqlite:
        return
    row = {column.name: b"" if column.name == "body" else "0" for column in table.columns}
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    with world.stores.database.engine.connect() as connection:
        for pragma in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute(f"PRAGMA {pragma}")
        if connection.exec_driver_sql(f"SELECT 1 FROM {table.name}").fetchone() is None:
            connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({values})", row)
        connection.commit()


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": "1e3"},
        {"amount": "-1"},
        {"held": "much"},
        {"meters": {"input.text": "1.5"}},
        {"meters": {"input.text": "-1"}},
        {"meters": {"input.smell": "1"}},
        {"ended_at": "yesterday"},
        {"currency": "dollars"},
    ],
    ids=str,
)
def test_an_event_with_a_field_that_cannot_be_is_quarantined(
    changes: dict[str, object], world: World
) -> None:
    world.organisation(dollars="1")
    world.chat()
    event = decode_event(records_of(world)[0].body)

    counts = deliver(
        world, [LogRecord(1, encode_event(with_changes(event, **changes)))], log_id="other"
    )

    assert counts["quarantined"] == 1
    assert world.events() == []


def test_two_events_in_one_place_of_a_source_are_not_both_booked(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    world.chat()
    first, second = (record.body for record in records_of(world))
    usurper = msgspec.structs.replace(decode_event(second), sequence="1")

    counts = deliver(
        world, [LogRecord(1, first), LogRecord(2, encode_event(usurper))], log_id="other"
    )

    assert (counts["settled"], counts["quarantined"]) == (1, 1)


def test_a_meter_without_its_own_price_costs_what_its_parent_costs(world: World) -> None:
    world.organisation(dollars="1")
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    world.upstream.script = Script(usage=usage)

    world.chat()
    world.settle()

    meters = world.events()[0].data.meters
    assert (meters["input.text.cache_read"], meters["output.text.reasoning"]) == ("4", "2")
    assert world.balance().total.picos == 10**12 - 10 * INPUT_PRICE - 5 * OUTPUT_PRICE
    assert world.differences() == []
