"""What chargeback needs from the books."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from steelyard.billing.chargeback import Splits, Weights
from steelyard.billing.chargeback_report import DepartmentPlace
from steelyard.billing.invoice_books import InvoiceReports, InvoiceUnit
from steelyard.billing.statement import Period


@dataclass(frozen=True, slots=True)
class PostedChargeback:
    """A chargeback as the books keep it, under the id of the command and of its transaction."""

    id: str
    organisation_id: str
    invoice: str
    canonical: str


class ChargebackReports(InvoiceReports, Protocol):
    """What the books hold of shared departments, in one moment."""

    def departments_of(self, organisation_id: str) -> Sequence[DepartmentPlace]: ...

    def weights_of(self, organisation_id: str) -> Weights:
        """Of every shared department, by name."""
        ...

    def splits_of(self, organisation_id: str, *, period: Period) -> Splits:
        """What is borne of split events, and of adjustments of them, that are billed in a period."""
        ...

    def chargeback_of(self, invoice: str) -> PostedChargeback | None:
        """What was posted for the period of an invoice."""
        ...


class ChargebackUnit(InvoiceUnit, ChargebackReports, Protocol):
    """One unit of work on chargeback."""

    def replace_weights(self, shared_id: str, weights: Mapping[str, int]) -> None:
        """Split a shared department by these weights from now on; none end it."""
        ...

    def insert_chargeback(self, chargeback: PostedChargeback) -> None: ...


class ChargebackBooks(Protocol):
    """The books, in units of work on chargeback."""

    def write(self) -> AbstractContextManager[ChargebackUnit]: ...
