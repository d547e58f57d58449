"""A credit note: a part of a closed invoice, or all of it, is given back.

It is a document of its own with numbers of its own; the invoice never changes. `issue_credit_note`
decides and books, `read_credit_note` reads what it wrote.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import rfc8785

from steelyard.billing.commands import CommandIdTaken, check_positive
from steelyard.billing.credit_line import split_over_debts
from steelyard.billing.invoice import (
    Invoice,
    InvoiceOrganisation,
    InvoiceSection,
    read_invoice,
)
from steelyard.billing.invoice_books import InvoiceBooks, InvoiceUnit, IssuedInvoice
from steelyard.billing.top_up import standing_grant
from steelyard.errors import Refusal
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw
from steelyard.ledger.transaction import Command, give_back_invoiced
from steelyard.money import (
    Currency,
    Money,
    divide_half_even,
    read_decimal,
    round_half_even_to_minor_unit,
    write_decimal,
    write_minor,
)
from steelyard.timestamp import write_timestamp

SCHEMA: Final = "steelyard.credit-note/v1"


class InvoiceNotCreditable(Refusal):
    """A credit note corrects an invoice, and never another credit note."""

    code = "invoice_not_creditable"


class PayerNotBilled(Refusal):
    """The invoice has no section for this payer."""

    code = "payer_not_billed"


class CreditExceedsInvoice(Refusal):
    """Credit notes never give back more than the invoice has billed."""

    code = "credit_exceeds_invoice"


class AmountNotPayable(Refusal):
    """A credit note is of whole minor units of its currency, as its invoice is."""

    code = "amount_not_payable"


class CorrectedInvoice(msgspec.Struct, frozen=True):
    id: str
    number: str


class CreditNote(msgspec.Struct, frozen=True):
    """The whole document; as canonical JSON (RFC 8785) it is the credit note.

    total = net + tax = off_debts + to_balance; `left` of the invoice's section can still be given
    back.
    """

    schema: str
    number: str
    corrects: CorrectedInvoice
    organisation: InvoiceOrganisation
    payer: str
    currency: str
    time_zone: str
    tax_percent: str
    issued_at: str
    reason: str
    net: str
    tax: str
    total: str
    off_debts: str
    to_balance: str
    left: str


@dataclass(frozen=True, slots=True)
class Credited:
    """An issued credit note; `is_repeat` where the same command had issued it before."""

    issued: IssuedInvoice
    note: CreditNote
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class _Credit:
    """So much of a section is given back, after so much before, in picos."""

    invoice: IssuedInvoice
    document: Invoice
    section: InvoiceSection
    before: int
    total: int

    @property
    def tax(self) -> int:
        return tax_given_back(self.section, before=self.before, total=self.total)

    @property
    def left(self) -> int:
        return read_decimal(self.section.total) - self.before - self.total


def issue_credit_note(
    books: InvoiceBooks,
    invoice: IssuedInvoice,
    *,
    payer: str | None,
    picos: int | None,
    command: Command,
) -> Credited:
    """Give back so much of what an invoice billed a payer, or all that is left of it.

    Without `payer` it is the organisation. Raises InvoiceNotCreditable, PayerNotBilled,
    AmountNotPositive, AmountNotPayable, CreditExceedsInvoice or CommandIdTaken, with nothing changed.
    """
    if invoice.kind != "invoice":
        raise InvoiceNotCreditable
    document = read_invoice(invoice.canonical)
    section = _find_section(document, payer)
    with books.write() as unit:
        unit.wait_turn(command.id)
        unit.lock_closing()
        earlier = unit.invoices(organisation_id=invoice.organisation_id)
        repeated = next((found for found in earlier if found.command_id == command.id), None)
        if repeated is not None:
            return _repeated(repeated, invoice, payer=section.payer, picos=picos)
        if unit.find_transaction(command.id) is not None:
            raise CommandIdTaken(f"the id {command.id!r} is that of another command")
        notes = [found for found in earlier if found.kind == "credit_note"]
        before = _given_back(notes, invoice, payer=section.payer)
        total = _check_total(document, section, before=before, picos=picos)
        credit = _Credit(invoice, document, section, before, total)
        number = _number(document, notes)
        draws = _book(unit, credit, number=number, command=command)
        note = _write_note(credit, draws, number=number, command=command)
        issued = _issued(invoice, note, command)
        unit.insert_invoice(issued)
    return Credited(issued, note, is_repeat=False)


def make_credit_note(
    invoice: IssuedInvoice,
    earlier: Sequence[IssuedInvoice],
    draws: Sequence[Draw],
    *,
    payer: str,
    command: Command,
) -> CreditNote:
    """The note that gives these draws back, after the earlier notes of the same organisation. Pure.

    Raises PayerNotBilled.
    """
    document = read_invoice(invoice.canonical)
    section = _find_section(document, payer)
    before = _given_back(earlier, invoice, payer=section.payer)
    credit = _Credit(invoice, document, section, before, sum(draw.picos for draw in draws))
    return _write_note(credit, draws, number=_number(document, earlier), command=command)


def canonical_credit_note(note: CreditNote) -> str:
    """The bytes that count, as text; the note's id is their hash."""
    return rfc8785.dumps(msgspec.to_builtins(note)).decode()


def read_credit_note(canonical: str) -> CreditNote:
    """The credit note that `canonical_credit_note` wrote."""
    return msgspec.json.decode(canonical, type=CreditNote)


def tax_given_back(section: InvoiceSection, *, before: int, total: int) -> int:
    """The tax in a total, after so much was given back before.

    It is what the share of all credit notes in the section makes of its tax, less what earlier ones
    gave back: however an invoice is given back, in the end it is its tax to the pico.
    """
    billed, tax = read_decimal(section.total), read_decimal(section.tax)
    after = divide_half_even(tax * (before + total), billed)
    return after - divide_half_even(tax * before, billed)


def _number(document: Invoice, earlier: Sequence[IssuedInvoice]) -> str:
    """Credit notes of an organisation are numbered without a gap."""
    return f"{document.organisation.name}-C{len(earlier) + 1:04}"


def _find_section(invoice: Invoice, payer: str | None) -> InvoiceSection:
    name = payer or invoice.organisation.name
    for section in invoice.sections:
        if section.payer == name:
            return section
    billed = ", ".join(section.payer for section in invoice.sections)
    raise PayerNotBilled(f"{invoice.number} bills {billed}, and not {name!r}")


def _given_back(notes: Sequence[IssuedInvoice], invoice: IssuedInvoice, *, payer: str) -> int:
    """What earlier credit notes gave a payer back of an invoice."""
    earlier = [read_credit_note(note.canonical) for note in notes if note.corrects == invoice.id]
    return sum(read_decimal(note.total) for note in earlier if note.payer == payer)


def _check_total(
    invoice: Invoice, section: InvoiceSection, *, before: int, picos: int | None
) -> int:
    """What is to be given back, in picos."""
    left = read_decimal(section.total) - before
    if picos is not None:
        check_positive(picos)
        _, added = round_half_even_to_minor_unit(Money(picos, Currency(invoice.currency)))
        if added.picos:
            raise AmountNotPayable(
                f"{write_decimal(picos)} {invoice.currency} is no whole number of minor units"
            )
    if left <= 0 or (picos is not None and picos > left):
        raise CreditExceedsInvoice(
            f"of what {invoice.number} billed {section.payer}, {write_decimal(max(0, left))} "
            f"{invoice.currency} is left to give back"
        )
    return left if picos is None else picos


def _book(unit: InvoiceUnit, credit: _Credit, *, number: str, command: Command) -> list[Draw]:
    """What the payer owes is settled first; the rest goes to its standing grant."""
    amount = Money(credit.total, Currency(credit.document.currency))
    names = unit.payers(credit.invoice.organisation_id)
    payer_id = next(i for i, name in names.items() if name == credit.section.payer)
    grant = standing_grant(unit, payer_id, currency=amount.currency, at=command.at)
    draws = split_over_debts(unit, payer_id, amount)
    rest = amount.picos - sum(debt.picos for debt in draws)
    if rest:
        draws.append(Draw(grant.id, rest))
    tax = Money(credit.tax, amount.currency)
    unit.post(
        [give_back_invoiced(draws, payer_id=payer_id, tax=tax, reference=number, command=command)]
    )
    return draws


def _write_note(
    credit: _Credit, draws: Sequence[Draw], *, number: str, command: Command
) -> CreditNote:
    document = credit.document
    off_debts = sum(draw.picos for draw in draws if draw.grant_id in {CREDIT_LINE, INVOICED})
    return CreditNote(
        schema=SCHEMA,
        number=number,
        corrects=CorrectedInvoice(credit.invoice.id, credit.invoice.number),
        organisation=document.organisation,
        payer=credit.section.payer,
        currency=document.currency,
        time_zone=document.time_zone,
        tax_percent=document.tax_percent,
        issued_at=write_timestamp(command.at),
        reason=command.reason,
        net=write_decimal(credit.total - credit.tax),
        tax=write_decimal(credit.tax),
        total=write_minor(Money(credit.total, Currency(document.currency))),
        off_debts=write_decimal(off_debts),
        to_balance=write_decimal(credit.total - off_debts),
        left=write_decimal(credit.left),
    )


def _issued(invoice: IssuedInvoice, note: CreditNote, command: Command) -> IssuedInvoice:
    canonical = canonical_credit_note(note)
    return IssuedInvoice(
        id=hashlib.sha256(canonical.encode()).hexdigest(),
        number=note.number,
        kind="credit_note",
        organisation_id=invoice.organisation_id,
        period=invoice.period,
        issued_at=command.at,
        corrects=invoice.id,
        command_id=command.id,
        canonical=canonical,
    )


def _repeated(
    found: IssuedInvoice, invoice: IssuedInvoice, *, payer: str, picos: int | None
) -> Credited:
    taken = CommandIdTaken(f"the id {found.command_id!r} issued {found.number} already")
    if found.kind != "credit_note" or found.corrects != invoice.id:
        raise taken
    note = read_credit_note(found.canonical)
    if note.payer != payer or picos not in {None, read_decimal(note.total)}:
        raise taken
    return Credited(found, note, is_repeat=True)
