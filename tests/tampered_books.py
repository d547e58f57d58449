"""Books with a row of everything, and hands that reach into them past every guard."""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Connection

from steelyard.access.budget import set_budget
from steelyard.access.tenant import Organisation
from steelyard.billing.commands import new_command
from steelyard.billing.correction import correct_balance
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.lease_desk import LeaseWanted
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.billing.quarantine import dismiss_record
from steelyard.billing.re_rating import ReRatingScope, approve_re_rating, propose_re_rating
from steelyard.billing.refund import refund_event
from steelyard.billing.suspense import decide_event
from steelyard.billing.top_up import GrantTerms, add_credit, grant_credit
from steelyard.eventlog.log import LogRecord
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.ledger.transaction import Command
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.money import Money
from steelyard.settings import read_settings
from tests.deliveries import deliver, records_of, with_changes
from tests.postgres_server import create_database
from tests.world import NOW, PRICE_BOOK, USD, World

_numbers = count(1)


def busy_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[World]:
    """Books with a row of everything, whose triggers are gone: tampering takes the owner's rights."""
    folder: Path = tmp_path_factory.mktemp("tampering")
    database_url: str | None = None
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_url")
        database_url = create_database(
            server, f"tampering_{next(_numbers)}", template="steelyard_template"
        )
    settings = read_settings(data_dir=folder, database_url=database_url)
    with World(settings) as world:
        _do_business(world)
        _remove_triggers(world)
        yield world


@contextmanager
def tampered(world: World, statement: str) -> Generator[Connection]:
    """The books after a statement, on one connection; afterwards they are as they were."""
    database = world.stores.database
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        _run(connection, statement)
        yield connection
        connection.rollback()


def one_row(world: World, table: str, condition: str) -> tuple[str, str]:
    """What names one row of a table that meets a condition: a column, and a query for it."""
    key = _key_of(world, table) if world.stores.database.is_sqlite else "ctid"
    return key, f"SELECT {key} FROM {table} WHERE {condition or '1 = 1'} ORDER BY {key} LIMIT 1"


def _run(connection: Connection, statement: str) -> None:
    is_postgres = connection.dialect.name == "postgresql"
    changed = connection.exec_driver_sql(statement.replace("%", "%%") if is_postgres else statement)
    assert changed.rowcount > 0, statement


def _key_of(world: World, table: str) -> str:
    """Something that names one row: SQLite's own, where the table has it."""
    has_own = table in {
        "usage_events",
        "open_holds",
        "leases",
        "event_shares",
        "usage_hours",
        "request_hours",
        "funding_hours",
    }
    names = {"usage_events": "id", "open_holds": "id", "leases": "id", "event_shares": "event_id"}
    del world
    return names.get(table, "billed_hour") if has_own else "rowid"


def _do_business(world: World) -> None:
    world.publish_prices(PRICE_BOOK.replace("name: world", "name: dearer").replace("2026", "2030"))
    acme = world.organisation(dollars="1")
    _set_budgets(world, acme)
    for stream in (False, True, False):
        world.chat(stream=stream)
    assert world.ask_split({"a department": 1}).status == 200
    world.settle()
    _suspend_and_quarantine(world)
    refund_event(world.stores.books, world.events()[0].id, picos=1_000_000, command=_command(world))
    correct_balance(world.stores.books, acme, amount=Money(10**9, USD), command=_command(world))
    _give_and_expire(world)
    _re_rate(world)
    amount = Money(1_000, USD)
    hold = Hold(new_id(), acme.id, amount, "still open", world.clock.now(), "{}")
    scope = HoldScope(acme.id, "a department", None, "a key", tokens_max=1)
    world.hold_desk.place(hold, scope).result(timeout=30)
    size = LeaseSize(10_000, 10)
    wanted = LeaseWanted(
        acme.id, USD, scope, "urn:lost:1", LeaseSize(1, 1), size, world.clock.now()
    )
    assert world.holding.lease_desk.take(wanted)


def _set_budgets(world: World, acme: Organisation) -> None:
    for unit in ("money", "tokens"):
        budget = set_budget(
            acme,
            scope="organisation",
            scope_id=acme.id,
            unit=unit,
            amount=10**13,
            period="month",
            is_hard=True,
            at=world.clock.now(),
        )
        world.stores.budgets.insert_budget(budget)


def _suspend_and_quarantine(world: World) -> None:
    """Two requests whose events arrive by another log than the outbox's."""
    world.chat()
    event = decode_event(records_of(world)[-1].body)
    records = [LogRecord(1, encode_event(with_changes(event, amount="0.5"))), LogRecord(2, b"x")]
    deliver(world, records, log_id="another-log")
    decide_event(world.stores.books, event.id, picos=1_000, command=_command(world))
    with world.stores.books.write() as unit:
        [record] = unit.list_quarantined(with_dismissed=False, limit=10)
    dismiss_record(
        world.stores.books, record.content_hash, should_release=False, command=_command(world)
    )


def _give_and_expire(world: World) -> None:
    acme, books = world.tenants["acme"], world.stores.books
    soon = GrantTerms(world.clock.now().replace(hour=13))
    later = GrantTerms(world.clock.now().replace(year=2027))
    add_credit(books, acme, amount=Money(50, USD), command=_command(world), terms=soon)
    grant_credit(books, acme, amount=Money(50, USD), command=_command(world), terms=later)
    expire_grants(books, at=NOW.replace(hour=14))


def _re_rate(world: World) -> None:
    world.publish_prices(
        PRICE_BOOK.replace("name: world", "name: cheaper")
        .replace("amount: 10", "amount: 5")
        .replace("2026", "2031")
    )
    scope = ReRatingScope(world.tenants["acme"].id, NOW.replace(day=1), NOW.replace(day=30))
    documents = world.stores.audit.price_documents()
    version = next(v for v in world.stores.prices.versions() if v.book.name == "cheaper")
    run, _ = propose_re_rating(
        world.stores.books,
        scope,
        new_version=version.sha256,
        documents=documents,
        command=_command(world),
    )
    approve_re_rating(world.stores.books, run.id, documents=documents, command=_command(world))


def _command(world: World) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because")


def _remove_triggers(world: World) -> None:
    if not world.stores.database.is_sqlite:
        # `session_replication_role` switches them off where it is set.
        return
    with world.stores.database.write() as connection:
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in names.fetchall():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
