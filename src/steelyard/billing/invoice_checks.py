"""Invoices made again: every stored one has to come out of the log once more, byte by byte.

The sums are those of the replayed events, not the hourly ones. What moved with an invoice is read
out of the postings of its transaction. Tax and time zone are those that the invoice states: they
may have changed since, and the tax that was posted vouches for them.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

import msgspec

from steelyard.access.tenant import Organisation, TaxMalformed, read_tax
from steelyard.billing.billing_period import name_month
from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.billing.invariant_check import Check
from steelyard.billing.invoice import (
    AdjustmentRow,
    Bill,
    Invoice,
    InvoiceFacts,
    InvoiceSection,
    Source,
    UsageRow,
    bill_payers,
    canonical_invoice,
    make_invoice,
    read_invoice,
)
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.period_closing import read_facts
from steelyard.billing.statement import Period
from steelyard.billing.stored_event import GrantRow, ReplayedEvent, TransactionRow
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw, read_draws
from steelyard.timestamp import read_timestamp, write_timestamp

TEMPLATE: Final = "invoice_tax_and_rounding"
_OWED: Final = {"receivable": CREDIT_LINE, "invoiced": INVOICED}


class InvoiceAudit(Protocol):
    """What invoices are made from, beside the log."""

    def invoices(self, *, organisation_id: str | None = None) -> Sequence[IssuedInvoice]:
        """In the order in which they were issued."""
        ...

    def organisations(self) -> Mapping[str, Organisation]: ...

    def names(self) -> Mapping[str, str]:
        """What departments, projects and keys are called, by id."""
        ...

    def payers(self, organisation_id: str) -> Mapping[str, str]: ...

    def adjusted(self, organisation_id: str, *, period: Period) -> list[AdjustmentRow]: ...


class _Place(NamedTuple):
    """What becomes one line; `late_hour` is the hour of use where that is before the period."""

    payer_id: str
    department_id: str
    project_id: str
    key_id: str
    model: str
    meter: str
    picos_per_unit: int
    late_hour: str


@dataclass(slots=True)
class _Used:
    """What the events of one closed period add up to."""

    requests: int = 0
    versions: set[str] = field(default_factory=set[str])
    lines: dict[_Place, list[int]] = field(default_factory=dict[_Place, list[int]])
    paid_by: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])


class InvoiceCheck:
    """I6 and I10: invoices are what the log, the adjustments and the ledger say."""

    def __init__(self, audit: InvoiceAudit, grants: Mapping[str, GrantRow]) -> None:
        claim = "every invoice comes out of its events, adjustments and postings, byte by byte"
        self._check = Check("I10", claim)
        self._audit = audit
        self._sources: dict[str, Source] = {
            CREDIT_LINE: "credit_line",
            **{grant.id: _source_of(grant) for grant in grants.values()},
        }
        self._issued: dict[str, list[IssuedInvoice]] = defaultdict(list)
        issued = audit.invoices()
        self._notes = {found.number for found in issued if found.kind == "credit_note"}
        for found in issued:
            if found.kind == "invoice":
                self._issued[found.organisation_id].append(found)
        self._starts = {
            owner: [write_timestamp(one.period.start) for one in found]
            for owner, found in self._issued.items()
        }
        self._used: dict[str, _Used] = defaultdict(_Used)
        self._posted: dict[str, list[TransactionRow]] = defaultdict(list)

    def see_transaction(self, transaction: TransactionRow) -> None:
        touches = {account.partition(":")[0] for account in transaction.postings}
        if transaction.template == TEMPLATE or touches & {"tax", "rounding"}:
            self._posted[transaction.reference].append(transaction)

    def see(self, event: ReplayedEvent) -> None:
        row, said = event.row, event.said.data
        issued = self._invoice_at(said.organisation_id, row.billed_at)
        if row.outcome != "settled" or issued is None:
            return
        used = self._used[issued.number]
        used.requests += 1
        used.versions.add(said.price_version)
        hour = row.ended_at[:HOUR_CHARACTERS]
        is_late = hour < write_timestamp(issued.period.start)[:HOUR_CHARACTERS]
        ids = said.payer_id, said.department_id, said.project_id or "", said.key_id
        late_hour = hour if is_late else ""
        for meter, count, picos_per_unit in json.loads(row.charges):
            place = _Place(*ids, row.path.model, meter, picos_per_unit, late_hour)
            line = used.lines.setdefault(place, [0, 0])
            line[0] += count
            line[1] += count * picos_per_unit
        for draw in read_draws(row.draws):
            source = said.payer_id, draw.grant_id
            used.paid_by[source] = used.paid_by.get(source, 0) + draw.picos

    def finish(self) -> Check:
        organisations, names = self._audit.organisations(), self._audit.names()
        for owner, issued in self._issued.items():
            for place, found in enumerate(issued):
                self._compare(found, issued[:place], organisations[owner], names)
        numbers = {found.number for issued in self._issued.values() for found in issued}
        lost = sorted(self._posted.keys() - numbers - self._notes)
        self._check.expect(
            not lost,
            lambda: f"tax and rounding of invoice {', '.join(lost)}, which is not there",
        )
        return self._check

    def _invoice_at(self, organisation_id: str, billed_at: str) -> IssuedInvoice | None:
        place = bisect_right(self._starts.get(organisation_id, []), billed_at) - 1
        if place < 0:
            return None
        found = self._issued[organisation_id][place]
        return found if billed_at < write_timestamp(found.period.end) else None

    def _compare(
        self,
        found: IssuedInvoice,
        earlier: Sequence[IssuedInvoice],
        organisation: Organisation,
        names: Mapping[str, str],
    ) -> None:
        try:
            written = read_invoice(found.canonical)
            stated = replace(
                organisation, time_zone=written.time_zone, tax_ppm=read_tax(written.tax_percent)
            )
            reports = _ReplayedReports(
                self._audit, self._used[found.number], written, earlier, self._sources, names
            )
            facts = read_facts(
                reports, stated, period=found.period, earlier=earlier, at=found.issued_at
            )
            month = name_month(found.period, time_zone=stated.time_zone)
            made = self._make(found, facts, month)
        except (msgspec.MsgspecError, TaxMalformed, ValueError, AssertionError) as error:
            problem = f"invoice {found.number} cannot be made again: {error}"
            self._check.expect(False, lambda: problem)
            return
        self._check.expect(
            canonical_invoice(made) == found.canonical,
            lambda: f"invoice {found.number} {_first_difference(written, made)}",
        )

    def _make(self, found: IssuedInvoice, facts: InvoiceFacts, month: str | None) -> Invoice:
        bills, posted = bill_payers(facts), self._posted[found.number]
        self._compare_postings(found, bills, posted, str(facts.organisation.currency))
        draws = {payer_id: posted_draws(payer_id, posted) for payer_id in bills}
        return make_invoice(facts, bills, draws=draws, period_name=month)

    def _compare_postings(
        self,
        found: IssuedInvoice,
        bills: Mapping[str, Bill],
        posted: Sequence[TransactionRow],
        currency: str,
    ) -> None:
        """Tax and rounding on the ledger are those of the invoice, from its own payers."""
        expected = {
            f"tax:{currency}": sum(bill.tax for bill in bills.values()),
            f"rounding:{currency}": sum(bill.rounding for bill in bills.values()),
        } | {payer_id: -bill.collected for payer_id, bill in bills.items()}
        sums: dict[str, int] = defaultdict(int)
        for transaction in posted:
            for account_id, picos in transaction.postings.items():
                _, *owner, _ = account_id.split(":")
                sums[owner[0] if owner else account_id] += picos
        for name in sorted(expected.keys() | sums.keys()):
            self._check.expect(
                sums.get(name, 0) == expected.get(name, 0),
                lambda n=name: (
                    f"invoice {found.number} posted {sums.get(n, 0)} picos to {n}, "
                    f"it should be {expected.get(n, 0)}"
                ),
            )
        for transaction in posted:
            command, _, _ = transaction.id.partition(f"{found.command_id}.")
            self._check.expect(
                transaction.id == found.command_id or not command,
                lambda t=transaction: f"invoice {found.number} was not issued with {t.id}",
            )


@dataclass(frozen=True, slots=True)
class _ReplayedReports:
    """Implements InvoiceReports for one invoice, from the replayed events of its period."""

    audit: InvoiceAudit
    events: _Used
    written: Invoice
    before: Sequence[IssuedInvoice]
    sources: Mapping[str, Source]
    names: Mapping[str, str]

    def used(
        self, organisation_id: str, *, period: Period, earlier: Sequence[IssuedInvoice]
    ) -> list[UsageRow]:
        merged: dict[UsageRow, list[int]] = defaultdict(lambda: [0, 0])
        for place, sums in self.events.lines.items():
            named = UsageRow(
                payer_id=place.payer_id,
                department=self.names.get(place.department_id, place.department_id),
                project=self.names.get(place.project_id, place.project_id),
                key=self.names.get(place.key_id, place.key_id),
                model=place.model,
                meter=place.meter,
                picos_per_unit=place.picos_per_unit,
                count=0,
                picos=0,
                used_in=_closed_at(place.late_hour, earlier) if place.late_hour else None,
            )
            merged[named][0] += sums[0]
            merged[named][1] += sums[1]
        return [replace(row, count=count, picos=picos) for row, (count, picos) in merged.items()]

    def requests_in(self, organisation_id: str, *, period: Period) -> int:
        return self.events.requests

    def paid_by(self, organisation_id: str, *, period: Period) -> Mapping[tuple[str, Source], int]:
        sums: dict[tuple[str, Source], int] = defaultdict(int)
        for (payer_id, grant_id), picos in self.events.paid_by.items():
            source = self.sources.get(grant_id)
            assert source, f"its usage was paid from {grant_id}, which is no grant"
            sums[payer_id, source] += picos
        return sums

    def adjusted(self, organisation_id: str, *, period: Period) -> list[AdjustmentRow]:
        return self.audit.adjusted(organisation_id, period=period)

    def versions_used(self, organisation_id: str, *, period: Period) -> list[str]:
        return sorted(self.events.versions)

    def payers(self, organisation_id: str) -> Mapping[str, str]:
        """Those of now, without departments that nothing of the invoice is about: they may be newer
        than it."""
        named = {section.payer for section in self.written.sections}
        if self.before:
            sections = read_invoice(self.before[-1].canonical).sections
            named |= {s.payer for s in sections if s.rounding_carried_forward != "0"}
        needed = {organisation_id, *(payer_id for payer_id, *_ in self.events.lines)}
        found = self.audit.payers(organisation_id)
        return {p: name for p, name in found.items() if p in needed or name in named}

    def invoices(self, *, organisation_id: str | None = None) -> list[IssuedInvoice]:
        return list(self.before)


def _source_of(grant: GrantRow) -> Source:
    return "promotional" if grant.kind == "promotional" else "paid"


def _closed_at(hour: str, earlier: Sequence[IssuedInvoice]) -> str | None:
    """The invoice of the period in which an hour begins, or else the first there was."""
    moment = read_timestamp(f"{hour}:00:00Z")
    for found in earlier:
        if found.period.start <= moment < found.period.end:
            return found.number
    return earlier[0].number if earlier else None


def posted_draws(payer_id: str, posted: Iterable[TransactionRow]) -> list[Draw]:
    """What a payer's money was taken from with these transactions, or went to."""
    draws: list[Draw] = []
    for transaction in posted:
        for account_id, picos in transaction.postings.items():
            kind, *owner, _ = account_id.split(":")
            if owner and owner[0] == payer_id:
                draws.append(Draw(_OWED.get(kind) or owner[-1], abs(picos)))
    return draws


def _first_difference(written: Invoice, made: Invoice) -> str:
    """The first field in which two invoices differ, for people to read."""
    pairs: list[tuple[msgspec.Struct, msgspec.Struct]] = [(written, made)]
    if len(written.sections) == len(made.sections):
        pairs = [*zip(written.sections, made.sections, strict=True), *pairs]
    for said, expected in pairs:
        for name, value in msgspec.structs.asdict(said).items():
            right = getattr(expected, name)
            if value != right:
                whose = f"{name} of {said.payer}" if isinstance(said, InvoiceSection) else name
                return f"states {whose} as {value}, the log says {right}"
    return "is not written in canonical form"
