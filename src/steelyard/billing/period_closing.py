"""Closing a period: its invoice is made, tax and rounding are booked, and nothing is billed in it
any more. Read `close_period` first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import month_of, name_month
from steelyard.billing.commands import CommandIdTaken
from steelyard.billing.credit_line import split_over_debts
from steelyard.billing.invoice import (
    Bill,
    Invoice,
    InvoiceFacts,
    bill_payers,
    canonical_invoice,
    invoice_id,
    make_invoice,
    read_invoice,
)
from steelyard.billing.invoice_books import (
    InvoiceBooks,
    InvoiceReports,
    InvoiceUnit,
    IssuedInvoice,
)
from steelyard.billing.statement import Period
from steelyard.billing.top_up import standing_grant, standing_grant_id
from steelyard.errors import Refusal
from steelyard.ledger.grant import GrantBalance, draw
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw
from steelyard.ledger.transaction import Command, Transaction, invoice_tax_and_rounding
from steelyard.money import Money, read_decimal
from steelyard.timestamp import write_timestamp


class PeriodOpen(Refusal):
    """The period is not over yet: it can be closed when it has ended."""

    code = "period_open"


class PeriodClosed(Refusal):
    """The period is closed already, or a part of it is. 'steelyard invoice list' shows which."""

    code = "period_closed"


class PeriodGap(Refusal):
    """Periods follow each other without a gap, from the one in which the organisation was made."""

    code = "period_gap"


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed period; `is_repeat` where it was closed before by the same command."""

    issued: IssuedInvoice
    invoice: Invoice
    is_repeat: bool


def close_period(
    books: InvoiceBooks, organisation: Organisation, *, period: Period, command: Command
) -> Closed:
    """Issue the invoice of a period, once.

    Raises PeriodOpen, PeriodClosed or PeriodGap, with nothing changed.
    """
    with books.write() as unit:
        unit.wait_turn(command.id)
        unit.lock_closing()
        earlier = unit.invoices(organisation_id=organisation.id)
        repeated = next((found for found in earlier if found.command_id == command.id), None)
        if repeated is not None:
            if repeated.period != period:
                raise CommandIdTaken(f"the id {command.id!r} closed another period already")
            return Closed(repeated, read_invoice(repeated.canonical), is_repeat=True)
        if unit.find_transaction(command.id) is not None:
            raise CommandIdTaken(f"the id {command.id!r} is that of another command")
        check_closable(organisation, period, earlier=earlier, at=command.at)
        facts = read_facts(unit, organisation, period=period, earlier=earlier, at=command.at)
        bills = bill_payers(facts)
        _make_standing_grants(unit, facts, bills, at=command.at)
        draws = _draws(unit, facts, bills, at=command.at)
        unit.post(_transactions(facts, bills, draws, command))
        issued, invoice = _issue(facts, bills, draws, command)
        unit.insert_invoice(issued)
    return Closed(issued, invoice, is_repeat=False)


def draft_invoice(
    books: InvoiceBooks, organisation: Organisation, *, period: Period, at: datetime
) -> Invoice:
    """The invoice as it would be now, also of a period that goes on; nothing is written.

    Raises PeriodClosed or PeriodGap.
    """
    with books.write() as unit:
        earlier = unit.invoices(organisation_id=organisation.id)
        check_closable(organisation, period, earlier=earlier, at=at, is_draft=True)
        facts = read_facts(unit, organisation, period=period, earlier=earlier, at=at)
        bills = bill_payers(facts)
        draws = _draws(unit, facts, bills, at=at)
    return make_invoice(facts, bills, draws=draws, period_name=_name(organisation, period))


def check_closable(
    organisation: Organisation,
    period: Period,
    *,
    earlier: Sequence[IssuedInvoice],
    at: datetime,
    is_draft: bool = False,
) -> None:
    """Raises PeriodOpen, PeriodClosed or PeriodGap; a draft may be of a period that goes on."""
    if at < period.end and not is_draft:
        raise PeriodOpen(f"the period goes on until {write_timestamp(period.end)}")
    last = max((found.period.end for found in earlier if found.kind == "invoice"), default=None)
    if last is not None and period.start < last:
        raise PeriodClosed(f"{organisation.name} is closed until {write_timestamp(last)} already")
    if last is not None and period.start > last:
        raise PeriodGap(f"close what comes before it first, from {write_timestamp(last)} on")
    if last is None and period.start > organisation.created_at:
        first = month_of(organisation.created_at, time_zone=organisation.time_zone)
        raise PeriodGap(
            f"{organisation.name} was made in {first}: close that first, or a period that begins then"
        )


def read_facts(
    reports: InvoiceReports,
    organisation: Organisation,
    *,
    period: Period,
    earlier: Sequence[IssuedInvoice],
    at: datetime,
) -> InvoiceFacts:
    """What the books hold of a period, given the invoices before it."""
    invoices = [found for found in earlier if found.kind == "invoice"]
    return InvoiceFacts(
        organisation=organisation,
        number=f"{organisation.name}-{len(invoices) + 1:04}",
        period=period,
        issued_at=at,
        requests=reports.requests_in(organisation.id, period=period),
        payers=reports.payers(organisation.id),
        usage=reports.used(organisation.id, period=period, earlier=invoices),
        paid_by=reports.paid_by(organisation.id, period=period),
        adjustments=reports.adjusted(organisation.id, period=period),
        brought_forward=_brought_forward(reports.payers(organisation.id), invoices),
        price_versions=reports.versions_used(organisation.id, period=period),
    )


def _brought_forward(
    payers: Mapping[str, str], invoices: Sequence[IssuedInvoice]
) -> dict[str, int]:
    """What earlier invoices were rounded up by, by payer."""
    if not invoices:
        return {}
    last = read_invoice(invoices[-1].canonical)
    rounded = {s.payer: read_decimal(s.rounding_carried_forward) for s in last.sections}
    return {payer_id: rounded.get(name, 0) for payer_id, name in payers.items()}


def _make_standing_grants(
    unit: InvoiceUnit, facts: InvoiceFacts, bills: Mapping[str, Bill], *, at: datetime
) -> None:
    """What is given back needs a place to go to. Its turn is waited for before anything is locked."""
    for payer_id, bill in sorted(bills.items()):
        if bill.collected < 0:
            standing_grant(unit, payer_id, currency=facts.organisation.currency, at=at)


def _draws(
    unit: InvoiceUnit, facts: InvoiceFacts, bills: Mapping[str, Bill], *, at: datetime
) -> dict[str, list[Draw]]:
    """Where tax and rounding of every payer are taken from, or go to."""
    currency = facts.organisation.currency
    taking = [payer_id for payer_id, bill in bills.items() if bill.collected > 0]
    funds = unit.lock_funds(taking, currency=currency)
    draws: dict[str, list[Draw]] = {}
    for payer_id, bill in sorted(bills.items()):
        if bill.collected > 0:
            balances, credit = funds[payer_id]
            draws[payer_id] = _take(balances, bill.collected, credit=credit, at=at)
        else:
            draws[payer_id] = _give_back(unit, payer_id, Money(-bill.collected, currency))
    return draws


def _take(balances: Sequence[GrantBalance], picos: int, *, credit: int, at: datetime) -> list[Draw]:
    """Paid money first, then the credit line as far as it goes; the rest is owed by the invoice."""
    paid = [balance for balance in balances if balance.grant.kind == "paid"]
    live = sum(balance.picos for balance in paid if balance.grant.is_live(at=at))
    draws = draw(paid, picos=min(live, picos), credit_picos=0, at=at)
    assert draws is not None, "live grants cover what they have"
    left = picos - sum(taken.picos for taken in draws)
    on_credit_line = min(left, max(0, credit))
    places = ((CREDIT_LINE, on_credit_line), (INVOICED, left - on_credit_line))
    return [*draws, *(Draw(place, part) for place, part in places if part)]


def _give_back(unit: InvoiceUnit, payer_id: str, amount: Money) -> list[Draw]:
    """What is owed first, then the standing grant."""
    debts = split_over_debts(unit, payer_id, amount)
    rest = amount.picos - sum(debt.picos for debt in debts)
    return [*debts, Draw(standing_grant_id(payer_id), rest)] if rest else debts


def _transactions(
    facts: InvoiceFacts,
    bills: Mapping[str, Bill],
    draws: Mapping[str, Sequence[Draw]],
    command: Command,
) -> list[Transaction]:
    """One for each payer for whom anything moves; the first has the command's own id."""
    currency = facts.organisation.currency
    moving = [
        (payer_id, bill) for payer_id, bill in sorted(bills.items()) if bill.tax or bill.rounding
    ]
    made = (
        invoice_tax_and_rounding(
            payer_id=payer_id,
            tax=Money(bill.tax, currency),
            rounding=Money(bill.rounding, currency),
            draws=draws[payer_id],
            reference=facts.number,
            command=replace(command, id=f"{command.id}.{number}") if number else command,
        )
        for number, (payer_id, bill) in enumerate(moving)
    )
    return [transaction for transaction in made if transaction]


def _issue(
    facts: InvoiceFacts,
    bills: Mapping[str, Bill],
    draws: Mapping[str, Sequence[Draw]],
    command: Command,
) -> tuple[IssuedInvoice, Invoice]:
    organisation, period = facts.organisation, facts.period
    invoice = make_invoice(facts, bills, draws=draws, period_name=_name(organisation, period))
    canonical = canonical_invoice(invoice)
    issued = IssuedInvoice(
        id=invoice_id(canonical),
        number=facts.number,
        kind="invoice",
        organisation_id=organisation.id,
        period=period,
        issued_at=command.at,
        corrects=None,
        command_id=command.id,
        canonical=canonical,
    )
    return issued, invoice


def _name(organisation: Organisation, period: Period) -> str | None:
    return name_month(period, time_zone=organisation.time_zone)
