"""A credit note gives back what an invoice billed, never more, and leaves the invoice as it is."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import read_month
from steelyard.billing.commands import AmountNotPositive, CommandIdTaken, new_command
from steelyard.billing.credit_line import set_credit_limit
from steelyard.billing.credit_note import (
    AmountNotPayable,
    Credited,
    CreditExceedsInvoice,
    InvoiceNotCreditable,
    PayerNotBilled,
    issue_credit_note,
    read_credit_note,
    tax_given_back,
)
from steelyard.billing.credit_note_page import make_credit_note_page
from steelyard.billing.invoice import InvoiceSection, invoice_id
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.invoice_csv import credit_note_rows
from steelyard.billing.invoice_html import write_invoice_html
from steelyard.billing.invoice_pdf import write_invoice_pdf
from steelyard.billing.period_closing import close_period
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.transaction import Command
from steelyard.money import Money, read_decimal, write_decimal
from tests.world import USD, World

CENT = 10**10
TAX_PPM = 190_000


def test_what_is_given_back_is_on_the_balance_and_off_revenue_and_tax(world: World) -> None:
    invoice = _billed(world)
    before = _ledger(world)

    credited = _credit(world, invoice, picos=119 * CENT // 7 // CENT * CENT)

    note, moved = credited.note, _moved(before, _ledger(world))
    assert (note.number, note.corrects.number, note.total) == ("acme-C0001", "acme-0001", "0.17")
    assert (note.to_balance, note.off_debts, note.left) == ("0.17", "0", "1.02")
    assert world.balance().total == Money((381 + 17) * CENT, USD)
    assert moved[LedgerAccount("revenue", None, USD).id] == -read_decimal(note.net)
    assert moved[LedgerAccount("tax", None, USD).id] == -read_decimal(note.tax)
    assert world.differences() == []


def test_an_invoice_that_is_given_back_whole_leaves_no_tax(world: World) -> None:
    invoice = _billed(world)

    parts = [_credit(world, invoice, picos=picos).note for picos in (CENT, 50 * CENT, None)]

    assert sum(read_decimal(note.total) for note in parts) == 119 * CENT
    assert [note.left for note in parts] == ["1.18", "0.68", "0"]
    assert _ledger(world)[LedgerAccount("tax", None, USD).id] == 0
    with pytest.raises(CreditExceedsInvoice):
        _credit(world, invoice, picos=None)


def test_what_is_owed_is_settled_first(world: World) -> None:
    acme = _taxed(world, dollars="0")
    set_credit_limit(
        world.stores.books, acme, limit=Money(2 * 10**12, USD), command=_command(world)
    )
    invoice = _billed_to(world, acme)
    owed = world.balance().owed

    credited = _credit(world, invoice, picos=19 * CENT)

    assert (credited.note.off_debts, credited.note.to_balance) == ("0.19", "0")
    assert world.balance().owed == Money(owed.picos - 19 * CENT, USD)
    assert world.differences() == []


def test_the_invoice_and_the_next_one_do_not_change(world: World) -> None:
    acme = _taxed(world, dollars="5")
    invoice = _billed_to(world, acme)

    _credit(world, invoice, picos=19 * CENT)
    world.clock.moment = read_month("2026-12", time_zone="UTC").end
    following = close_period(
        world.stores.books,
        acme,
        period=read_month("2026-12", time_zone="UTC"),
        command=_command(world),
    )

    assert world.stores.invoices.find("acme-0001") == invoice
    assert (following.invoice.number, following.invoice.total) == ("acme-0002", "0.00")
    assert world.stores.invoices.find("acme-C0001").corrects == invoice.id
    assert world.differences() == []


def test_the_same_command_issues_one_credit_note(world: World) -> None:
    invoice = _billed(world)

    first = _credit(world, invoice, picos=CENT, command_id="goodwill")
    again = _credit(world, invoice, picos=CENT, command_id="goodwill")
    with pytest.raises(CommandIdTaken):
        _credit(world, invoice, picos=2 * CENT, command_id="goodwill")

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.issued == first.issued
    assert _numbers(world) == ["acme-0001", "acme-C0001"]


@pytest.mark.parametrize(
    ("picos", "payer", "refused"),
    [
        (0, None, AmountNotPositive),
        (-CENT, None, AmountNotPositive),
        (CENT + 1, None, AmountNotPayable),
        (120 * CENT, None, CreditExceedsInvoice),
        (CENT, "acme/research", PayerNotBilled),
    ],
)
def test_what_cannot_be_given_back_changes_nothing(
    world: World, picos: int, payer: str | None, refused: type[SteelyardError]
) -> None:
    invoice = _billed(world)
    before = _ledger(world)

    with pytest.raises(refused):
        _credit(world, invoice, picos=picos, payer=payer)

    assert _ledger(world) == before
    assert _numbers(world) == ["acme-0001"]


def test_a_credit_note_is_not_corrected_by_another(world: World) -> None:
    note = _credit(world, _billed(world), picos=CENT).issued

    with pytest.raises(InvoiceNotCreditable):
        _credit(world, note, picos=CENT)

    assert _numbers(world) == ["acme-0001", "acme-C0001"]


def test_an_invoice_of_nothing_has_nothing_to_give_back(world: World) -> None:
    acme = _taxed(world, dollars="1")
    invoice = _close(world, acme)

    with pytest.raises(CreditExceedsInvoice):
        _credit(world, invoice, picos=None)

    assert _numbers(world) == ["acme-0001"]


def test_the_document_proves_itself_and_every_rendering_tells_it(world: World) -> None:
    issued = _credit(world, _billed(world), picos=19 * CENT).issued
    note = read_credit_note(issued.canonical)

    page = make_credit_note_page(note, language="zh")
    pdf = [
        write_invoice_pdf(page, canonical=issued.canonical, issued_at=issued.issued_at)
        for _ in range(2)
    ]

    assert issued.id == invoice_id(issued.canonical) == page.document_id
    assert sum(read_decimal(row["amount"]) for row in credit_note_rows(note)) == -19 * CENT
    assert "acme-C0001" in write_invoice_html(page)
    assert page.figures[0].value == "0.19 USD"
    assert pdf[0] == pdf[1]


def test_credit_notes_are_issued_listed_shown_and_exported_by_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _billed(world)
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(world.settings.data_dir))
    if world.settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", world.settings.database_url)

    told = _run("credit-note", "acme-0001", "--amount", "0.19", "--reason", "agreed", "--id", "a")
    again = _run("credit-note", "acme-0001", "--amount", "0.19", "--reason", "agreed", "--id", "a")
    listed = _run("list", "acme")
    shown = _run("show", "acme-C0001")
    exported = CliRunner().invoke(application, ["invoice", "export", "acme-C0001"])

    assert told == again == shown
    assert {(row["number"], row["kind"], row["total"]) for row in listed} == {
        ("acme-0001", "invoice", "1.19"),
        ("acme-C0001", "credit_note", "-0.19"),
    }
    assert invoice_id(exported.stdout) == told["id"]
    assert json.loads(exported.stdout)["reason"] == "agreed"
    for file_format, begins in (("csv", b"invoice,"), ("html", b"<!doctype"), ("pdf", b"%PDF")):
        words = ["invoice", "export", "acme-C0001", "--format", file_format, "--language", "zh"]
        assert CliRunner().invoke(application, words).stdout_bytes.startswith(begins)
    with pytest.raises(SteelyardError, match="amount"):
        _run("credit-note", "acme-0001", "--amount", "much", "--reason", "agreed")


@given(st.integers(0, 10**14), st.integers(0, 10**6), st.data())
def test_however_it_is_given_back_the_tax_is_that_of_the_invoice(
    net: int, tax_ppm: int, data: st.DataObject
) -> None:
    tax = net * tax_ppm // 10**6
    cents = -(-(net + tax) // CENT) or 1
    section = _section(tax=tax, total=cents * CENT)
    cuts = sorted(data.draw(st.lists(st.integers(0, cents), max_size=6)))

    given_back, before = [], 0
    for cut in [*cuts, cents]:
        total = cut * CENT - before
        given_back.append((total, tax_given_back(section, before=before, total=total)))
        before += total

    assert sum(part for _, part in given_back) == tax
    assert all(0 <= part <= total for total, part in given_back)


def _taxed(world: World, *, dollars: str) -> Organisation:
    made = replace(world.organisation(dollars=dollars), tax_ppm=TAX_PPM)
    world.stores.access.update_organisation(made)
    return made


def _billed(world: World) -> IssuedInvoice:
    """An invoice of 1.19 dollars, paid from a balance of five."""
    return _billed_to(world, _taxed(world, dollars="5"))


def _billed_to(world: World, acme: Organisation) -> IssuedInvoice:
    world.upstream.context_tokens_max = 10**6
    world.upstream.script = Script(words=("w",) * 100_000, prompt_tokens=7)
    answered = world.chat(max_tokens=100_000)
    assert answered.error is None, answered.error
    world.settle()
    return _close(world, acme)


def _close(world: World, acme: Organisation) -> IssuedInvoice:
    november = read_month("2026-11", time_zone="UTC")
    world.clock.moment = november.end + timedelta(minutes=1)
    return close_period(world.stores.books, acme, period=november, command=_command(world)).issued


def _run(*words: str) -> Any:
    """What a command prints as JSON; raises what it refuses with."""
    with capture_logs():
        result = CliRunner().invoke(application, ["invoice", *words, "--json"])
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _credit(
    world: World,
    invoice: IssuedInvoice,
    *,
    picos: int | None,
    payer: str | None = None,
    command_id: str | None = None,
) -> Credited:
    command = _command(world, command_id)
    return issue_credit_note(world.stores.books, invoice, payer=payer, picos=picos, command=command)


def _command(world: World, command_id: str | None = None) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because", command_id=command_id)


def _ledger(world: World) -> dict[str, int]:
    with world.stores.audit.snapshot() as snapshot:
        return dict(snapshot.balances())


def _moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {account: after[account] - before.get(account, 0) for account in after}


def _numbers(world: World) -> list[str]:
    with world.stores.invoices.snapshot() as snapshot:
        return [issued.number for issued in snapshot.invoices()]


def _section(*, tax: int, total: int) -> InvoiceSection:
    return InvoiceSection(
        payer="acme",
        lines=[],
        adjustments=[],
        usage="0",
        not_covered="0",
        promotional="0",
        adjusted="0",
        net="0",
        tax=write_decimal(tax),
        rounding_brought_forward="0",
        rounding="0",
        rounding_carried_forward="0",
        total=write_decimal(total),
        from_balance="0",
        to_pay="0",
    )
