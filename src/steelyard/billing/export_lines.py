"""What is exported of a period: usage lines and adjustments, and the sum that they must have."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from steelyard.access.tenant import Organisation
from steelyard.billing.bill_lines import BillLine
from steelyard.billing.fund_books import AdjustmentKind
from steelyard.billing.statement import Period
from steelyard.billing.usage_line import UsageLine
from steelyard.errors import Failure
from steelyard.money import Currency, Money


class ExportDisagrees(Failure):
    """The rows of an export do not add up to what the books billed; no file was written."""

    code = "export_disagrees"


@dataclass(frozen=True, slots=True)
class AdjustmentLine:
    """An adjustment as an export shows it: `picos` is what it adds to the bill.

    `department` is None where it is about the whole organisation. It `corrects_earlier` where the
    usage that it is about was billed in a period before this one.
    """

    id: str
    kind: AdjustmentKind
    department_id: str | None
    department: str | None
    reference: str
    billed_at: datetime
    corrects_earlier: bool
    picos: int


ExportLine = UsageLine | AdjustmentLine | BillLine


class ExportSnapshot(Protocol):
    """One moment of the books; lines come one after the other, however many there are."""

    def usage_lines(self, organisation: Organisation, *, period: Period) -> Iterator[UsageLine]:
        """By hour of billing, and within it in the order of names."""
        ...

    def adjustment_lines(
        self, organisation: Organisation, *, period: Period
    ) -> Iterator[AdjustmentLine]: ...

    def billed(self, organisation: Organisation, *, period: Period) -> int:
        """What events and adjustments of a period add up to, one by one: no hourly sum."""
        ...


class ExportBooks(Protocol):
    """Opens snapshots for exports."""

    def snapshot(self) -> AbstractContextManager[ExportSnapshot]: ...


@dataclass(slots=True)
class ExportSum:
    """Counts rows and picos while they pass."""

    currency: Currency
    rows: int = 0
    picos: int = 0

    def add(self, picos: int) -> None:
        self.rows += 1
        self.picos += picos

    @property
    def total(self) -> Money:
        return Money(self.picos, self.currency)

    def expect_invoiced(self, total: int) -> None:
        """What the invoice says; raises ExportDisagrees."""
        if self.picos != total:
            raise ExportDisagrees(
                f"the rows add up to {self.total}, the invoice to "
                f"{Money(total, self.currency)}; run 'steelyard verify'"
            )

    def expect(self, billed: int) -> None:
        """Raises ExportDisagrees."""
        if self.picos != billed:
            raise ExportDisagrees(
                f"the rows add up to {self.total}, the books billed "
                f"{Money(billed, self.currency)}; run 'steelyard verify'"
            )
