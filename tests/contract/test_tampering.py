"""Whatever row of the money tables is changed or taken away, verification finds it and names it."""

from collections.abc import Generator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Connection

from steelyard.access.budget import set_budget
from steelyard.access.tenant import Organisation
from steelyard.billing.commands import new_command
from steelyard.billing.correction import correct_balance
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.quarantine import dismiss_record
from steelyard.billing.re_rating import ReRatingScope, approve_re_rating, propose_re_rating
from steelyard.billing.refund import refund_event
from steelyard.billing.suspense import decide_event
from steelyard.billing.top_up import GrantTerms, add_credit, grant_credit
from steelyard.billing.verification import verify_books
from steelyard.eventlog.log import LogRecord
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.ledger.transaction import Command
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.money import Money
from steelyard.settings import read_settings
from steelyard.storage.audit import SqlAuditSnapshot
from tests.conftest import DATABASES
from tests.deliveries import deliver, records_of, with_changes
from tests.postgres_server import create_database
from tests.world import NOW, PRICE_BOOK, USD, World

_numbers = count(1)

# What is written into a column, and what the difference names; one row of the table is hit.
CHANGES = {
    "ledger_accounts.balance": ("balance = balance + 1 WHERE kind = 'prepaid'", "prepaid:"),
    "ledger_accounts.balance of ours": ("balance = balance - 1 WHERE kind = 'revenue'", "revenue:"),
    "ledger_accounts.kind": ("kind = 'revenue' WHERE kind = 'suspense'", "suspense:"),
    "ledger_accounts.floor": ("floor = NULL WHERE kind = 'prepaid'", "prepaid:"),
    "ledger_transactions.template": ("template = 'pay_out' WHERE template = 'top_up'", ""),
    "ledger_transactions.reference": ("reference = 'x' WHERE template = 'refund_usage'", ""),
    "ledger_transactions.booked_at": ("booked_at = '2026-01-01T00:00:00.000000Z'", ""),
    "ledger_transactions.actor": ("actor = 'nobody' WHERE template = 'top_up'", ""),
    "ledger_transactions.reason": ("reason = 'no' WHERE template = 'promotional_credit'", ""),
    "ledger_postings.picos": ("picos = picos + 1", ""),
    "ledger_postings.account_id": (
        "account_id = 'breakage:USD' WHERE account_id = 'clearing:USD'",
        "",
    ),
    "grants.payer_id": ("payer_id = 'x'", "grants "),
    "grants.kind": ("kind = 'paid' WHERE kind = 'promotional'", "grants "),
    "grants.priority": ("priority = 0", "grants "),
    "grants.granted_at": ("granted_at = '2026-01-01T00:00:00.000000Z'", "grants "),
    "grants.expires_at": ("expires_at = '2030-01-01T00:00:00.000000Z'", "grants "),
    "open_holds.amount": ("amount = amount + 1", "hold "),
    "open_holds.draws": ("draws = ''", "hold "),
    "open_holds.payer_id": ("payer_id = 'x'", "held:"),
    "open_holds.budget_draws": ("budget_draws = ''", "budget "),
    "budget_windows.reserved": ("reserved = reserved + 1", "budget "),
    "budget_windows.used": ("used = used - 1", "budget "),
    "event_segments.first_position": ("first_position = 7", "log "),
    "event_segments.event_count": ("event_count = event_count + 1", "segment "),
    "event_segments.log_id": ("log_id = 'another'", "log "),
    "event_segments.body": ("body = {damaged}", "segment "),
    "event_sources.source": ("source = 'another'", "source"),
    "usage_events.id": ("id = 'x'", "not in the books"),
    "usage_events.source_id": ("source_id = 99", "source"),
    "usage_events.sequence": ("sequence = sequence + 50", "sequence"),
    "usage_events.content_hash": ("content_hash = {damaged}", "content hash"),
    "usage_events.path_id": ("path_id = 99", "path"),
    "usage_events.segment_id": ("segment_id = 99", "in their logs"),
    "usage_events.place": ("place = 99", "in their logs"),
    "usage_events.ended_at": ("ended_at = '2026-11-24T12:00:59.000000Z'", "end is"),
    "usage_events.billed_at": ("billed_at = '2026-11-24T12:00:59.000000Z'", "billed at"),
    "usage_events.amount": ("amount = amount - 1 WHERE outcome = 'settled'", "event "),
    "usage_events.amount of none": ("amount = amount + 1 WHERE outcome = 'suspended'", "event "),
    "usage_events.charges": ("charges = '[]' WHERE outcome = 'settled'", "lines 0"),
    "usage_events.charges damaged": ("charges = 'x' WHERE outcome = 'settled'", "event "),
    "usage_events.draws": ("draws = '' WHERE outcome = 'settled'", "spent 0"),
    "usage_events.draws damaged": ("draws = 'x' WHERE outcome = 'settled'", "event "),
    "usage_events.budget_draws": ("budget_draws = '' WHERE outcome = 'settled'", "budget "),
    "usage_events.outcome": ("outcome = 'suspended' WHERE outcome = 'settled'", "event "),
    "usage_paths.organisation_id": ("organisation_id = 'x'", "path"),
    "usage_paths.department_id": ("department_id = 'x'", "path"),
    "usage_paths.project_id": ("project_id = 'x'", "path"),
    "usage_paths.key_id": ("key_id = 'x'", "path"),
    "usage_paths.payer_id": ("payer_id = 'x'", "path"),
    "usage_paths.model": ("model = 'x'", "path"),
    "usage_paths.upstream": ("upstream = 'x'", "path"),
    "usage_paths.currency": ("currency = 'EUR'", "path"),
    "usage_paths.price_version": ("price_version = 'x'", "path"),
    "usage_hours.picos": ("picos = picos - 1", "usage_hours "),
    "usage_hours.count": ("count = count + 1", "usage_hours "),
    "usage_hours.billed_hour": ("billed_hour = '2026-10-24T12'", "usage_hours "),
    "usage_hours.used_hour": ("used_hour = '2026-10-24T12'", "usage_hours "),
    "usage_hours.meter": ("meter = 'call'", "usage_hours "),
    "usage_hours.picos_per_unit": ("picos_per_unit = 1", "usage_hours "),
    "request_hours.request_count": ("request_count = request_count - 1", "request_hours "),
    "funding_hours.picos": ("picos = picos - 1", "funding_hours "),
    "funding_hours.grant_id": ("grant_id = 'x'", "funding_hours "),
    "funding_hours.payer_id": ("payer_id = 'x'", "funding_hours "),
    "adjustments.kind": ("kind = 'correction' WHERE kind = 'refund'", "adjustments "),
    "adjustments.organisation_id": ("organisation_id = 'x'", "adjustments "),
    "adjustments.department_id": ("department_id = 'x'", "adjustments "),
    "adjustments.payer_id": ("payer_id = 'x'", "adjustments "),
    "adjustments.amount": ("amount = amount + 1", "adjustments "),
    "adjustments.draws": ("draws = '' WHERE kind = 'refund'", "adjustments "),
    "adjustments.reference": ("reference = 'x'", "adjustments "),
    "adjustments.billed_at": ("billed_at = '2026-01-01T00:00:00.000000Z'", "adjustments "),
    "suspense_decisions.amount": ("amount = amount - 1", "suspense_decisions "),
    "suspense_decisions.actor": ("actor = 'nobody'", "suspense_decisions "),
    "suspense_decisions.decided_at": (
        "decided_at = '2026-01-01T00:00:00.000000Z'",
        "suspense_decisions ",
    ),
    "re_rating_runs.canonical": (
        "canonical = REPLACE(canonical, 'because', 'no')",
        "re_rating_runs ",
    ),
    "re_rated_events.amount_before": ("amount_before = amount_before + 1", "re-rating "),
    "re_rated_events.amount_after": ("amount_after = amount_after + 1", "re-rating "),
    "price_versions.canonical": ("canonical = REPLACE(canonical, '10', '11')", "price version "),
    "price_versions.sha256": ("sha256 = 'x'", "price version "),
    "price_versions.name": ("name = 'x'", "price book "),
    "price_versions.publication": ("publication = 9", "price book "),
    "quarantined_events.content_hash": ("content_hash = '{zeros}'", "quarantine"),
    "log_positions.position": ("position = position + 1", "log "),
}

# Which row is taken away; the newest ones, which nothing follows, above all.
DELETIONS = {
    "ledger_accounts": ("kind = 'revenue'", "revenue:"),
    "ledger_transactions": ("template = 'top_up'", "no transaction"),
    "ledger_postings": ("account_id = 'clearing:USD'", "picos"),
    "newest ledger_transactions": (
        "id = (SELECT MAX(id) FROM ledger_transactions WHERE template = 'refund_usage')",
        "no transaction",
    ),
    "grants": ("kind = 'promotional'", "promotional_credit "),
    "open_holds": ("1 = 1", "held:"),
    "budget_windows": ("1 = 1", "budget "),
    "event_segments": ("id = (SELECT MAX(id) FROM event_segments)", "segments end"),
    "event_sources": ("1 = 1", "source"),
    "newest usage_events": ("id = (SELECT MAX(id) FROM usage_events)", "not in the books"),
    "oldest usage_events": ("id = (SELECT MIN(id) FROM usage_events)", "not in the books"),
    "usage_paths": ("id = (SELECT MAX(id) FROM usage_paths)", "path"),
    "usage_hours": ("meter = 'input.text'", "usage_hours "),
    "request_hours": ("1 = 1", "request_hours "),
    "funding_hours": ("1 = 1", "funding_hours "),
    "adjustments": ("kind = 'refund'", "refund_usage "),
    "suspense_decisions": ("1 = 1", "suspense:"),
    "re_rated_events": ("1 = 1", "re-rating "),
    "re_rating_runs": ("1 = 1", "re-rating "),
    "oldest price_versions": ("publication = 1", "price book "),
    "quarantined_events": ("1 = 1", "not in the books"),
    "log_positions": ("1 = 1", "log "),
}


@pytest.fixture(scope="module", params=DATABASES)
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


def test_untouched_books_are_right(busy_world: World) -> None:
    checks = busy_world.verify()

    assert [difference for check in checks for difference in check.differences] == []
    assert all(check.compared for check in checks)


@pytest.mark.parametrize("place", CHANGES)
def test_a_changed_value_is_found_and_named(place: str, busy_world: World) -> None:
    table = place.partition(".")[0]
    change, name = CHANGES[place]
    values, _, condition = change.partition(" WHERE ")
    is_postgres = not busy_world.stores.database.is_sqlite
    damaged = "'\\x00'::bytea" if is_postgres else "x'00'"
    values = values.replace("{damaged}", damaged).replace("{zeros}", "0" * 64)
    key = "ctid" if is_postgres else _key_of(busy_world, table)
    one = f"SELECT {key} FROM {table} WHERE {condition or '1 = 1'} ORDER BY {key} LIMIT 1"

    found = _differences_after(busy_world, f"UPDATE {table} SET {values} WHERE {key} = ({one})")

    assert any(name in difference for difference in found), found


@pytest.mark.parametrize("what", DELETIONS)
def test_a_row_that_is_gone_is_found_and_named(what: str, busy_world: World) -> None:
    table = what.rpartition(" ")[2]
    condition, name = DELETIONS[what]

    found = _differences_after(busy_world, f"DELETE FROM {table} WHERE {condition}")

    assert any(name in difference for difference in found), found


def _differences_after(world: World, statement: str) -> list[str]:
    """What verification finds of the tampered books, which are then as they were."""
    database = world.stores.database
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        _run(connection, statement)
        checks = verify_books(SqlAuditSnapshot(connection))
        connection.rollback()
    return [difference for check in checks for difference in check.differences]


def _run(connection: Connection, statement: str) -> None:
    is_postgres = connection.dialect.name == "postgresql"
    changed = connection.exec_driver_sql(statement.replace("%", "%%") if is_postgres else statement)
    assert changed.rowcount > 0, statement


def _key_of(world: World, table: str) -> str:
    """Something that names one row: SQLite's own, where the table has it."""
    has_own = table in {
        "usage_events",
        "open_holds",
        "usage_hours",
        "request_hours",
        "funding_hours",
    }
    names = {"usage_events": "id", "open_holds": "id"}
    del world
    return names.get(table, "billed_hour") if has_own else "rowid"


def _do_business(world: World) -> None:
    world.publish_prices(PRICE_BOOK.replace("name: world", "name: dearer").replace("2026", "2030"))
    acme = world.organisation(dollars="1")
    _set_budgets(world, acme)
    for stream in (False, True, False):
        world.chat(stream=stream)
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
