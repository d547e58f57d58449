"""Chargeback of a period: shown at any moment, booked between balances once it is closed.

Read `post_chargeback` first.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.access.tenant import Organisation
from steelyard.billing.chargeback_books import (
    ChargebackBooks,
    ChargebackReports,
    ChargebackUnit,
    PostedChargeback,
)
from steelyard.billing.chargeback_report import (
    Chargeback,
    ChargebackFacts,
    canonical_chargeback,
    make_chargeback,
    read_chargeback,
)
from steelyard.billing.commands import CommandIdTaken, Wanted
from steelyard.billing.pay_out import draw_paid
from steelyard.billing.statement import Period
from steelyard.billing.top_up import standing_grant
from steelyard.errors import Refusal
from steelyard.ledger.hold import Draw
from steelyard.ledger.transaction import Command, Transaction, charge_back
from steelyard.money import Money, read_decimal


class PeriodNotClosed(Refusal):
    """A chargeback is booked for a closed period only. 'steelyard invoice list' shows which are."""

    code = "period_not_closed"


class ChargebackPosted(Refusal):
    """The chargeback of this period is booked already."""

    code = "chargeback_posted"


class ChargebackEmpty(Refusal):
    """Nothing moves between balances: whoever bears the shares pays for the shared already."""

    code = "chargeback_empty"


@dataclass(frozen=True, slots=True)
class Shown:
    """A chargeback; `posted_by` is the command that has booked it."""

    chargeback: Chargeback
    posted_by: str | None


@dataclass(frozen=True, slots=True)
class Posted:
    """What was booked; `is_repeat` where it was before, and nothing more happened."""

    chargeback: Chargeback
    id: str
    is_repeat: bool


def show_chargeback(
    reports: ChargebackReports, organisation: Organisation, *, period: Period
) -> Shown:
    """What was posted for a period; where nothing was, what weights of now make of it."""
    number = _invoice_number(reports, organisation, period)
    posted = reports.chargeback_of(number) if number else None
    if posted is not None:
        return Shown(read_chargeback(posted.canonical), posted.id)
    return Shown(make_chargeback(read_facts(reports, organisation, period, number)), None)


def post_chargeback(
    books: ChargebackBooks, organisation: Organisation, *, period: Period, command: Command
) -> Posted:
    """Book the shares of a closed period between the balances of those who pay, once.

    Raises PeriodNotClosed, ChargebackPosted, ChargebackEmpty or InsufficientFunds, with nothing
    changed.
    """
    with books.write() as unit:
        unit.wait_turn(command.id)
        number = _invoice_number(unit, organisation, period)
        earlier = unit.find_transaction(command.id)
        if earlier is not None:
            return _repeated(unit, earlier, number)
        if number is None:
            raise PeriodNotClosed
        unit.wait_turn(f"chargeback/{number}")
        if unit.chargeback_of(number) is not None:
            raise ChargebackPosted(f"the chargeback of {number}'s period is booked already")
        chargeback = make_chargeback(read_facts(unit, organisation, period, number))
        if not chargeback.balances:
            raise ChargebackEmpty
        unit.post([_transaction(unit, organisation, chargeback, number, command)])
        canonical = canonical_chargeback(chargeback)
        unit.insert_chargeback(PostedChargeback(command.id, organisation.id, number, canonical))
    return Posted(chargeback, command.id, is_repeat=False)


def read_facts(
    reports: ChargebackReports, organisation: Organisation, period: Period, number: str | None
) -> ChargebackFacts:
    """What a department cost is what it used and what was adjusted, before tax."""
    own: dict[str, int] = defaultdict(int)
    unassigned = 0
    for row in reports.used(organisation.id, period=period, earlier=()):
        own[row.department] += row.picos
    for row in reports.adjusted(organisation.id, period=period):
        if row.department is None:
            unassigned -= row.picos
        else:
            own[row.department] -= row.picos
    return ChargebackFacts(
        organisation=organisation.name,
        currency=organisation.currency,
        period=period,
        invoice=number,
        payers=reports.payers(organisation.id),
        departments=reports.departments_of(organisation.id),
        own=own,
        unassigned=unassigned,
        weights=reports.weights_of(organisation.id),
        splits=reports.splits_of(organisation.id, period=period),
    )


def _invoice_number(
    reports: ChargebackReports, organisation: Organisation, period: Period
) -> str | None:
    """The invoice that closed exactly this period."""
    found = reports.invoices(organisation_id=organisation.id)
    numbers = (one.number for one in found if one.kind == "invoice" and one.period == period)
    return next(numbers, None)


def _repeated(unit: ChargebackUnit, earlier: Transaction, number: str | None) -> Posted:
    posted = unit.chargeback_of(number) if number else None
    if posted is None or not Wanted("charge_back", number).is_done_by(earlier):
        raise CommandIdTaken(
            f"the id {earlier.id!r} is that of another command ({earlier.template}, "
            f"{earlier.reference}); choose another"
        )
    return Posted(read_chargeback(posted.canonical), posted.id, is_repeat=True)


def _transaction(
    unit: ChargebackUnit,
    organisation: Organisation,
    chargeback: Chargeback,
    number: str,
    command: Command,
) -> Transaction:
    """One for all payers, so that it is all or nothing."""
    currency = organisation.currency
    net = {line.payer_id: read_decimal(line.amount) for line in chargeback.balances}
    # Turns are waited for before anything is locked.
    given = [
        (standing_grant(unit, payer_id, currency=currency, at=command.at), picos)
        for payer_id, picos in net.items()
        if picos > 0
    ]
    return charge_back(
        _taken(unit, organisation, chargeback, net, command),
        given=given,
        currency=currency,
        reference=number,
        command=command,
    )


def _taken(
    unit: ChargebackUnit,
    organisation: Organisation,
    chargeback: Chargeback,
    net: Mapping[str, int],
    command: Command,
) -> dict[str, list[Draw]]:
    """What is taken from the paid grants of each payer that gives; raises InsufficientFunds."""
    currency = organisation.currency
    funds = unit.lock_funds(list(net), currency=currency)
    return {
        line.payer_id: draw_paid(
            unit,
            funds[line.payer_id][0],
            payer_id=line.payer_id,
            amount=Money(-net[line.payer_id], currency),
            at=command.at,
            what=f"charged to {line.payer}",
        )
        for line in chargeback.balances
        if net[line.payer_id] < 0
    }
