"""What invoices need from the books."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steelyard.billing.fund_books import FundUnit
from steelyard.billing.invoice import AdjustmentRow, Source, UsageRow
from steelyard.billing.statement import Period

InvoiceKind = Literal["invoice", "credit_note"]


@dataclass(frozen=True, slots=True)
class IssuedInvoice:
    """An invoice as the books keep it; `command_id` is the command that issued it."""

    id: str
    number: str
    kind: InvoiceKind
    organisation_id: str
    period: Period
    issued_at: datetime
    corrects: str | None
    command_id: str
    canonical: str


class InvoiceReports(Protocol):
    """What the books hold of a period, in one moment."""

    def used(
        self, organisation_id: str, *, period: Period, earlier: Sequence[IssuedInvoice]
    ) -> list[UsageRow]:
        """Settled usage that is billed in a period; of what was used before it, `earlier` says in
        which closed period that was."""
        ...

    def requests_in(self, organisation_id: str, *, period: Period) -> int: ...

    def paid_by(self, organisation_id: str, *, period: Period) -> Mapping[tuple[str, Source], int]:
        """What the settled usage of a period was paid from, by payer."""
        ...

    def adjusted(self, organisation_id: str, *, period: Period) -> list[AdjustmentRow]: ...

    def versions_used(self, organisation_id: str, *, period: Period) -> list[str]:
        """The price versions of the usage that is billed in a period."""
        ...

    def payers(self, organisation_id: str) -> Mapping[str, str]:
        """Whoever pays in an organisation: itself first, then departments with a balance of their
        own, with their names."""
        ...

    def invoices(self, *, organisation_id: str | None = None) -> list[IssuedInvoice]:
        """Invoices and credit notes, in the order in which they were issued."""
        ...


class InvoiceUnit(FundUnit, InvoiceReports, Protocol):
    """One unit of work on invoices."""

    def lock_closing(self) -> None:
        """Nothing is settled or adjusted until the unit ends."""
        ...

    def insert_invoice(self, invoice: IssuedInvoice) -> None: ...


class InvoiceBooks(Protocol):
    """The books, in units of work on invoices."""

    def write(self) -> AbstractContextManager[InvoiceUnit]: ...
