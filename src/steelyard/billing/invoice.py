"""An invoice: what a period cost, as one canonical document. Its hash is its id.

The document is a pure function of what the books hold of a period: `bill_payers` says what each
payer owes for it, `make_invoice` writes it down. Every amount is a decimal string, exact to the
pico; only totals are rounded, to the currency's minor unit, and what that adds is carried forward.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec
import rfc8785

from steelyard.access.tenant import PPM_DECIMALS, Organisation, write_tax
from steelyard.billing.statement import Period
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw
from steelyard.money import (
    Money,
    divide_half_even,
    round_half_even_to_minor_unit,
    write_decimal,
    write_minor,
)
from steelyard.timestamp import write_timestamp

SCHEMA: Final = "steelyard.invoice/v1"
PPM: Final = 100 * 10**PPM_DECIMALS

# What a charge was paid from.
Source = Literal["promotional", "paid", "credit_line"]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Settled usage of one key, model, meter and price; `used_in` is the invoice of the closed
    period in which it was used, where that was an earlier one."""

    payer_id: str
    department: str
    project: str | None
    key: str
    model: str
    meter: str
    picos_per_unit: int
    count: int
    picos: int
    used_in: str | None


@dataclass(frozen=True, slots=True)
class AdjustmentRow:
    """An adjustment that is billed in the period; `picos` are positive in the payer's favour, and
    so is the part of them that went to promotional credit."""

    payer_id: str
    id: str
    kind: str
    department: str | None
    reference: str
    reason: str
    booked_at: datetime
    picos: int
    by_source: Mapping[Source, int]


@dataclass(frozen=True, slots=True)
class InvoiceFacts:
    """What the books hold of a period; `payers` are names by id, the organisation first.

    `paid_by` says what the usage of the period was paid from, `brought_forward` what earlier
    invoices were rounded up by, by payer.
    """

    organisation: Organisation
    number: str
    period: Period
    issued_at: datetime
    requests: int
    payers: Mapping[str, str]
    usage: Sequence[UsageRow]
    paid_by: Mapping[tuple[str, Source], int]
    adjustments: Sequence[AdjustmentRow]
    brought_forward: Mapping[str, int]
    price_versions: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bill:
    """What a period costs one payer, in picos.

    `net` is what was taken for usage other than promotional credit, after adjustments; `rounding` is
    what the total has more than net and tax, `carried_forward` all that rounding ever added.
    """

    usage: int
    not_covered: int
    promotional: int
    adjustments: int
    net: int
    tax: int
    rounding: int
    carried_forward: int
    total: int
    by_source: Mapping[Source, int]

    @property
    def collected(self) -> int:
        """What the invoice itself takes, or gives back where it is below zero."""
        return self.tax + self.rounding


class InvoiceLine(msgspec.Struct, frozen=True):
    """One meter of one model at one price, used by one key."""

    department: str
    project: str | None
    key: str
    model: str
    meter: str
    count: str
    unit_price: str
    amount: str
    used_in: str | None


class InvoiceAdjustment(msgspec.Struct, frozen=True):
    """An amount in the payer's favour, or against it with a minus sign."""

    id: str
    kind: str
    department: str | None
    reference: str
    reason: str
    booked_at: str
    amount: str


class InvoiceSection(msgspec.Struct, frozen=True):
    """What one payer is billed.

    net = usage - not_covered - promotional - adjustments (without what they gave to promotional
    credit); total = net + tax + rounding = from_balance + to_pay.
    """

    payer: str
    lines: list[InvoiceLine]
    adjustments: list[InvoiceAdjustment]
    usage: str
    not_covered: str
    promotional: str
    adjusted: str
    net: str
    tax: str
    rounding_brought_forward: str
    rounding: str
    rounding_carried_forward: str
    total: str
    from_balance: str
    to_pay: str


class InvoicePeriod(msgspec.Struct, frozen=True):
    """From a moment up to but without another; `name` where it is a calendar month."""

    start: str
    end: str
    name: str | None


class InvoiceOrganisation(msgspec.Struct, frozen=True):
    id: str
    name: str


class Invoice(msgspec.Struct, frozen=True):
    """The whole document; as canonical JSON (RFC 8785) it is the invoice."""

    schema: str
    number: str
    organisation: InvoiceOrganisation
    currency: str
    time_zone: str
    tax_percent: str
    period: InvoicePeriod
    issued_at: str
    requests: int
    price_versions: list[str]
    sections: list[InvoiceSection]
    total: str
    to_pay: str


def bill_payers(facts: InvoiceFacts) -> dict[str, Bill]:
    """What each payer is billed, before it is known where tax and rounding come from."""
    return {payer_id: _bill(facts, payer_id) for payer_id in facts.payers}


def make_invoice(
    facts: InvoiceFacts,
    bills: Mapping[str, Bill],
    *,
    draws: Mapping[str, Sequence[Draw]],
    period_name: str | None,
) -> Invoice:
    """Write it down; `draws` say what tax and rounding were taken from, or given back to."""
    organisation, currency = facts.organisation, facts.organisation.currency
    total = sum(bill.total for bill in bills.values())
    sections = [
        _section(facts, payer_id, bill, draws.get(payer_id, ())) for payer_id, bill in bills.items()
    ]
    to_pay = sum(_to_pay(bill, draws.get(payer_id, ())) for payer_id, bill in bills.items())
    return Invoice(
        schema=SCHEMA,
        number=facts.number,
        organisation=InvoiceOrganisation(organisation.id, organisation.name),
        currency=currency,
        time_zone=organisation.time_zone,
        tax_percent=write_tax(organisation.tax_ppm),
        period=InvoicePeriod(
            write_timestamp(facts.period.start), write_timestamp(facts.period.end), period_name
        ),
        issued_at=write_timestamp(facts.issued_at),
        requests=facts.requests,
        price_versions=sorted(facts.price_versions),
        sections=sections,
        total=write_minor(Money(total, currency)),
        to_pay=write_decimal(to_pay),
    )


def canonical_invoice(invoice: Invoice) -> str:
    """The bytes that count, as text; `invoice_id` is their hash."""
    return rfc8785.dumps(msgspec.to_builtins(invoice)).decode()


def invoice_id(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_invoice(canonical: str) -> Invoice:
    """The invoice that `canonical_invoice` wrote."""
    return msgspec.json.decode(canonical, type=Invoice)


def _bill(facts: InvoiceFacts, payer_id: str) -> Bill:
    currency = facts.organisation.currency
    usage = sum(row.picos for row in facts.usage if row.payer_id == payer_id)
    adjusted = [row for row in facts.adjustments if row.payer_id == payer_id]
    sources: tuple[Source, ...] = ("promotional", "paid", "credit_line")
    paid: dict[Source, int] = {s: facts.paid_by.get((payer_id, s), 0) for s in sources}
    not_covered = usage - sum(paid.values())
    promotional = paid["promotional"] - sum(r.by_source.get("promotional", 0) for r in adjusted)
    taken: dict[Source, int] = {
        source: paid[source] - sum(row.by_source.get(source, 0) for row in adjusted)
        for source in sources[1:]
    }
    net = sum(taken.values())
    tax = tax_half_even_to_pico(net, tax_ppm=facts.organisation.tax_ppm)
    brought_forward = facts.brought_forward.get(payer_id, 0)
    total, carried_forward = round_half_even_to_minor_unit(
        Money(net + tax - brought_forward, currency)
    )
    return Bill(
        usage=usage,
        not_covered=not_covered,
        promotional=promotional,
        adjustments=sum(row.picos for row in adjusted),
        net=net,
        tax=tax,
        rounding=carried_forward.picos - brought_forward,
        carried_forward=carried_forward.picos,
        total=total.picos,
        by_source=taken,
    )


def tax_half_even_to_pico(net: int, *, tax_ppm: int) -> int:
    """The tax on an amount; below zero where more was given back than taken."""
    return divide_half_even(net * tax_ppm, PPM)


def _section(
    facts: InvoiceFacts, payer_id: str, bill: Bill, draws: Sequence[Draw]
) -> InvoiceSection:
    adjusted = [row for row in facts.adjustments if row.payer_id == payer_id]
    assert bill.total == bill.net + bill.tax + bill.rounding, f"{bill} does not add up"
    assert bill.usage - bill.not_covered - bill.promotional - bill.adjustments == bill.net, (
        f"{bill} is not what was taken"
    )
    to_pay = _to_pay(bill, draws)
    return InvoiceSection(
        payer=facts.payers[payer_id],
        lines=[
            _line(row) for row in sorted(facts.usage, key=_line_order) if row.payer_id == payer_id
        ],
        adjustments=[
            _adjustment(row) for row in sorted(adjusted, key=lambda row: (row.booked_at, row.id))
        ],
        usage=write_decimal(bill.usage),
        not_covered=write_decimal(bill.not_covered),
        promotional=write_decimal(bill.promotional),
        adjusted=write_decimal(bill.adjustments),
        net=write_decimal(bill.net),
        tax=write_decimal(bill.tax),
        rounding_brought_forward=write_decimal(bill.carried_forward - bill.rounding),
        rounding=write_decimal(bill.rounding),
        rounding_carried_forward=write_decimal(bill.carried_forward),
        total=write_minor(Money(bill.total, facts.organisation.currency)),
        from_balance=write_decimal(bill.total - to_pay),
        to_pay=write_decimal(to_pay),
    )


def _to_pay(bill: Bill, draws: Sequence[Draw]) -> int:
    """What no balance has paid: the credit line's part, and what the invoice asks for."""
    sign = 1 if bill.collected > 0 else -1
    owed = sum(draw.picos for draw in draws if draw.grant_id in {CREDIT_LINE, INVOICED})
    return bill.by_source["credit_line"] + sign * owed


def _line(row: UsageRow) -> InvoiceLine:
    return InvoiceLine(
        department=row.department,
        project=row.project,
        key=row.key,
        model=row.model,
        meter=row.meter,
        count=str(row.count),
        unit_price=write_decimal(row.picos_per_unit),
        amount=write_decimal(row.picos),
        used_in=row.used_in,
    )


def _line_order(row: UsageRow) -> tuple[str, str, str, str, str, str, int]:
    """Late usage last, under the invoice of the period that it came too late for."""
    place = row.department, row.project or "", row.key, row.model, row.meter
    return row.used_in or "", *place, row.picos_per_unit


def _adjustment(row: AdjustmentRow) -> InvoiceAdjustment:
    return InvoiceAdjustment(
        id=row.id,
        kind=row.kind,
        department=row.department,
        reference=row.reference,
        reason=row.reason,
        booked_at=write_timestamp(row.booked_at),
        amount=write_decimal(row.picos),
    )
