"""Whatever is changed about an invoice, verification makes the invoice again and names it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Connection

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import read_month
from steelyard.billing.commands import new_command
from steelyard.billing.credit_note import issue_credit_note
from steelyard.billing.invoice import invoice_id
from steelyard.billing.period_closing import close_period
from steelyard.billing.refund import refund_event
from steelyard.billing.top_up import GrantTerms, grant_credit
from steelyard.billing.verification import verify_books
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.transaction import Command
from steelyard.money import Money
from steelyard.storage.audit import SqlAuditSnapshot
from tests.world import NOW, USD, World

MONTHS = "2026-11", "2026-12"


def test_invoices_come_out_of_the_log_again_whatever_came_later(world: World) -> None:
    acme = _closed_twice(world)

    world.stores.access.update_organisation(
        replace(acme, tax_ppm=70_000, time_zone="Asia/Shanghai")
    )
    world.top_up(world.department(acme, "newer"), "1")
    for event in world.events():
        refund_event(world.stores.books, event.id, picos=1_000, command=_command(world))
    world.chat()
    world.settle()

    assert world.differences() == []
    [check] = [c for c in world.verify() if c.claim.startswith("every invoice comes out")]
    assert check.compared > 2 * len(MONTHS)


def _change_document(
    old: str, new: str, *, number: str = "acme-0001"
) -> Callable[[Connection], None]:
    def change(connection: Connection) -> None:
        """The document of this number, with the id that its new bytes have."""
        read = f"SELECT canonical FROM invoices WHERE number = '{number}'"
        before: str = connection.exec_driver_sql(read).scalar_one()
        after = before.replace(old, new)
        assert after != before
        text = after.replace("'", "''")
        _run(
            connection,
            f"UPDATE invoices SET canonical = '{text}', id = '{invoice_id(after)}'"
            f" WHERE number = '{number}'",
        )

    return change


def _statement(statement: str) -> Callable[[Connection], None]:
    return lambda connection: _run(connection, statement)


def _run(connection: Connection, statement: str) -> None:
    assert connection.exec_driver_sql(statement).rowcount > 0, statement


_TAX = "SELECT id FROM ledger_transactions WHERE reference = 'acme-0001'"

TAMPERINGS = {
    "a count": (_change_document('"count":"7', '"count":"8'), "invoice acme-0001 states lines"),
    "the requests": (_change_document('"requests":', '"requests":1'), "states requests"),
    "the tax rate": (_change_document('percent":"19"', 'percent":"7"'), "acme-0001 posted"),
    "what is to pay": (_change_document('"to_pay":"', '"to_pay":"1'), "invoice acme-0001 states"),
    "the layout": (_change_document('":"', '": "'), "acme-0001 is not written in canonical form"),
    "no document": (_change_document('"schema"', '"scheme"'), "acme-0001 cannot be made again"),
    "the period": (
        _statement(
            "UPDATE invoices SET period_start = '2026-11-24T12:00:00.000001Z'"
            " WHERE number = 'acme-0001'"
        ),
        "invoice acme-0001 states",
    ),
    "the moment": (
        _statement("UPDATE invoices SET issued_at = period_end WHERE number = 'acme-0001'"),
        "invoice acme-0001 states issued_at",
    ),
    "the command": (
        _statement("UPDATE invoices SET command_id = 'x' WHERE number = 'acme-0001'"),
        "invoice acme-0001 was not issued with",
    ),
    "the newest is gone": (
        _statement("DELETE FROM invoices WHERE number = 'acme-0002'"),
        "tax and rounding of invoice acme-0002, which is not there",
    ),
    "the oldest is gone": (
        _statement("DELETE FROM invoices WHERE number = 'acme-0001'"),
        "invoice acme-0002 ",
    ),
    "a posting of tax": (
        _statement(
            "UPDATE ledger_postings SET picos = picos + 1"
            f" WHERE account_id = 'tax:USD' AND transaction_id IN ({_TAX})"
        ),
        "invoice acme-0001 posted",
    ),
    "a transaction": (
        _statement(f"DELETE FROM ledger_postings WHERE transaction_id IN ({_TAX})"),
        "invoice acme-0001 posted 0 picos to tax:USD",
    ),
}


_NOTE = "WHERE number = 'acme-C0001'"
_OF_NOTE = "SELECT id FROM ledger_transactions WHERE reference = 'acme-C0001'"

NOTE_TAMPERINGS = {
    "the net": (
        _change_document('"net":"', '"net":"1', number="acme-C0001"),
        "credit note acme-C0001 states net",
    ),
    "the layout": (
        _change_document('":"', '": "', number="acme-C0001"),
        "acme-C0001 is not written in canonical form",
    ),
    "no document": (
        _change_document('"schema"', '"scheme"', number="acme-C0001"),
        "acme-C0001 cannot be made again",
    ),
    "the invoice": (
        _statement(
            "UPDATE invoices SET corrects ="
            f" (SELECT id FROM invoices WHERE number = 'acme-0002') {_NOTE}"
        ),
        "credit note acme-C0001 states",
    ),
    "the moment": (
        _statement(f"UPDATE invoices SET issued_at = period_end {_NOTE}"),
        "credit note acme-C0001 states issued_at",
    ),
    "the command": (
        _statement(f"UPDATE invoices SET command_id = 'x' {_NOTE}"),
        "credit note acme-C0001 was issued with x",
    ),
    "it is gone": (
        _statement(f"DELETE FROM invoices {_NOTE}"),
        "postings of credit note acme-C0001, which is not there",
    ),
    "a posting of tax": (
        _statement(
            "UPDATE ledger_postings SET picos = picos + 1"
            f" WHERE account_id = 'tax:USD' AND transaction_id IN ({_OF_NOTE})"
        ),
        "credit note acme-C0001 took",
    ),
    "what it went to": (
        _statement(
            "UPDATE ledger_postings SET picos = picos + 1"
            f" WHERE account_id NOT IN ('tax:USD', 'revenue:USD') AND transaction_id IN ({_OF_NOTE})"
        ),
        "credit note acme-C0001 cannot be made again",
    ),
}


@pytest.mark.parametrize("tampering", NOTE_TAMPERINGS)
def test_a_changed_credit_note_is_named(tampering: str, world: World) -> None:
    acme = _closed_twice(world)
    with world.stores.invoices.snapshot() as snapshot:
        invoice = snapshot.invoices(organisation_id=acme.id)[0]
    issue_credit_note(
        world.stores.books, invoice, payer=None, picos=10**10, command=_command(world)
    )
    assert world.differences() == []

    _assert_named(world, *NOTE_TAMPERINGS[tampering])


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_changed_invoice_is_named(tampering: str, world: World) -> None:
    _closed_twice(world)

    _assert_named(world, *TAMPERINGS[tampering])


def _assert_named(world: World, change: Callable[[Connection], None], name: str) -> None:
    """Verification of the books with this change names what was changed."""
    database = world.stores.database
    with database.engine.connect() as connection:
        _lift_protection(connection, is_sqlite=database.is_sqlite)
        change(connection)
        checks = verify_books(SqlAuditSnapshot(connection))
        connection.rollback()

    found = [difference for check in checks for difference in check.differences]
    assert any(name in difference for difference in found), found


def _closed_twice(world: World) -> Organisation:
    """Two months with tax: promotional credit, a balance of its own, a refund, late usage."""
    acme = replace(world.organisation(dollars="9"), tax_ppm=190_000)
    world.stores.access.update_organisation(acme)
    world.top_up(world.department(acme, "lab"), "5")
    grant_credit(
        world.stores.books,
        acme,
        amount=Money(20_000_000, USD),
        command=_command(world),
        terms=GrantTerms(NOW + timedelta(days=300)),
    )
    world.upstream.context_tokens_max = 10**6
    for month in MONTHS:
        world.upstream.script = Script(words=("w",) * 1_000, prompt_tokens=7)
        for key in ("acme", "lab"):
            world.chat(key, max_tokens=1_000)
        world.settle()
        refund_event(
            world.stores.books, world.events()[-1].id, picos=1_000_000, command=_command(world)
        )
        world.chat("lab", max_tokens=1_000)
        period = read_month(month, time_zone="UTC")
        world.clock.moment = period.end + timedelta(minutes=1)
        close_period(world.stores.books, acme, period=period, command=_command(world))
        world.settle()
    return acme


def _command(world: World) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because")


def _lift_protection(connection: Connection, *, is_sqlite: bool) -> None:
    """Tampering takes the owner's rights; all of it is rolled back."""
    if not is_sqlite:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        return
    connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    for (name,) in names.fetchall():
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
