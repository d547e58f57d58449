"""Credit notes made again: each has to come out of its invoice, the notes before it and the ledger.

What was given back, and what it went to, is read out of the postings. The reason is the one that
the note states; the seal of its transaction vouches for it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.billing.credit_note import (
    CreditNote,
    PayerNotBilled,
    canonical_credit_note,
    make_credit_note,
    read_credit_note,
)
from steelyard.billing.invariant_check import Check
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.invoice_checks import InvoiceAudit, posted_draws
from steelyard.billing.stored_event import TransactionRow
from steelyard.ledger.transaction import Command
from steelyard.money import read_decimal

TEMPLATE = "credit_note"


class CreditNoteCheck:
    """I10: credit notes are what their invoices and the ledger say."""

    def __init__(self, audit: InvoiceAudit) -> None:
        claim = "every credit note comes out of its invoice and its postings, byte by byte"
        self._check = Check("I10", claim)
        self._audit = audit
        self._posted: dict[str, list[TransactionRow]] = defaultdict(list)

    def see_transaction(self, transaction: TransactionRow) -> None:
        if transaction.template == TEMPLATE:
            self._posted[transaction.reference].append(transaction)

    def finish(self) -> Check:
        issued = self._audit.invoices()
        invoices = {found.id: found for found in issued if found.kind == "invoice"}
        notes: dict[str, list[IssuedInvoice]] = defaultdict(list)
        for found in issued:
            if found.kind == "credit_note":
                self._compare(found, invoices, notes[found.organisation_id])
                notes[found.organisation_id].append(found)
        numbers = {found.number for of_one in notes.values() for found in of_one}
        lost = sorted(self._posted.keys() - numbers)
        self._check.expect(
            not lost, lambda: f"postings of credit note {', '.join(lost)}, which is not there"
        )
        return self._check

    def _compare(
        self,
        found: IssuedInvoice,
        invoices: Mapping[str, IssuedInvoice],
        earlier: Sequence[IssuedInvoice],
    ) -> None:
        try:
            written = read_credit_note(found.canonical)
            invoice = invoices[found.corrects or ""]
            made = self._make(found, written, invoice, earlier)
        except (
            msgspec.MsgspecError,
            PayerNotBilled,
            LookupError,
            StopIteration,
            AssertionError,
        ) as error:
            problem = f"credit note {found.number} cannot be made again: {error!r}"
            self._check.expect(False, lambda: problem)
            return
        self._check.expect(
            canonical_credit_note(made) == found.canonical,
            lambda: f"credit note {found.number} {_first_difference(written, made)}",
        )
        self._check.expect(
            read_decimal(made.left) >= 0
            and found.organisation_id == invoices[made.corrects.id].organisation_id,
            lambda: f"credit note {found.number} gives back more than was billed, or to another",
        )
        self._compare_postings(found, made)

    def _make(
        self,
        found: IssuedInvoice,
        written: CreditNote,
        invoice: IssuedInvoice,
        earlier: Sequence[IssuedInvoice],
    ) -> CreditNote:
        names = self._audit.payers(found.organisation_id)
        payer_id = next(i for i, name in names.items() if name == written.payer)
        return make_credit_note(
            invoice,
            earlier,
            posted_draws(payer_id, self._posted[found.number]),
            payer=written.payer,
            command=Command(found.command_id, found.issued_at, "", written.reason),
        )

    def _compare_postings(self, found: IssuedInvoice, made: CreditNote) -> None:
        """Tax and revenue on the ledger went down by those of the note."""
        posted: dict[str, int] = defaultdict(int)
        for transaction in self._posted[found.number]:
            for account_id, picos in transaction.postings.items():
                posted[account_id] += picos
        for kind, amount in (("tax", made.tax), ("revenue", made.net)):
            taken = -posted[f"{kind}:{made.currency}"]
            self._check.expect(
                taken == read_decimal(amount),
                lambda k=kind, t=taken, a=amount: (
                    f"credit note {found.number} took {t} picos off {k}, it should be {a}"
                ),
            )
        ids = [transaction.id for transaction in self._posted[found.number]]
        self._check.expect(
            ids == [found.command_id],
            lambda: f"credit note {found.number} was issued with {found.command_id}, not {ids}",
        )


def _first_difference(written: CreditNote, made: CreditNote) -> str:
    for name, value in msgspec.structs.asdict(written).items():
        right = getattr(made, name)
        if value != right:
            return f"states {name} {value}, it should be {right}"
    return "is not written in canonical form"
