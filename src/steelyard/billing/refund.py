"""Refunds: what an event cost goes back to where it came from, once, in part or in whole."""

from collections.abc import Sequence

from steelyard.billing.adjustments import Adjusted, billed_from, write_adjustment
from steelyard.billing.commands import Booked, Wanted, carry_out, check_positive
from steelyard.billing.fund_books import Adjustment, ChargedEvent, FundBooks, FundUnit
from steelyard.errors import Refusal
from steelyard.ledger.grant import draw
from steelyard.ledger.hold import Draw, burn, unwind
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command, Transaction, charge_usage, refund_usage
from steelyard.money import Money


class EventNotFound(Refusal):
    """There is no such event in the books. 'steelyard usage' shows the newest ones."""

    code = "event_not_found"


class EventNotSettled(Refusal):
    """The event waits in suspense: nothing was charged for it, so nothing can be refunded."""

    code = "event_not_settled"


class RefundTooLarge(Refusal):
    """A refund gives back what was charged and not refunded yet, and no more."""

    code = "refund_too_large"


class RefundNotFound(Refusal):
    """There is no such refund. 'steelyard credit history' shows those of a tenant."""

    code = "refund_not_found"


class RefundUndone(Refusal):
    """This refund was undone already."""

    code = "refund_undone"


def refund_event(books: FundBooks, event_id: str, *, picos: int | None, command: Command) -> Booked:
    """Give back what an event cost, or so much of it: the last spent is the first returned.

    What returns to a grant that has expired meanwhile expires with it.
    """
    if picos is not None:
        check_positive(picos)

    def write(unit: FundUnit) -> Transaction:
        unit.wait_turn(event_id)
        event = _find(unit, event_id)
        left = _refundable(unit, event)
        amount = Money(left if picos is None else picos, event.charged.currency)
        if not 0 < amount.picos <= left:
            can_go = Money(left, amount.currency)
            raise RefundTooLarge(f"{can_go} of event {event_id} can still be refunded, no more")
        adjusted = _adjusted(unit, event, amount, command)
        # Earlier refunds have returned the end of what was spent.
        spent, _ = burn(event.draws, picos=left)
        draws = unwind(spent, picos=amount.picos)
        transaction = refund_usage(
            draws,
            payer_id=event.payer_id,
            currency=amount.currency,
            reference=event_id,
            command=command,
        )
        return write_adjustment(unit, transaction, adjusted, draws, command)

    return carry_out(books, command, Wanted("refund_usage", event_id, picos), write)


def undo_refund(books: FundBooks, refund_id: str, *, command: Command) -> Booked:
    """Charge again what a refund gave back; raises InsufficientFunds if it was spent since."""

    def write(unit: FundUnit) -> Transaction:
        unit.wait_turn(refund_id)
        refund = unit.find_adjustment(refund_id)
        if refund is None or refund.kind != "refund" or refund.amount.picos < 0:
            raise RefundNotFound(f"there is no refund {refund_id!r}")
        if unit.transactions_about(refund_id, template="charge_usage"):
            raise RefundUndone(f"the refund {refund_id} was undone already")
        taken = Money(-refund.amount.picos, refund.amount.currency)
        adjusted = _adjusted(unit, _find(unit, refund.reference), taken, command)
        draws = _charge_again(unit, refund, command)
        transaction = charge_usage(
            draws,
            payer_id=refund.payer_id,
            currency=refund.amount.currency,
            reference=refund_id,
            command=command,
        )
        return write_adjustment(unit, transaction, adjusted, draws, command)

    return carry_out(books, command, Wanted("charge_usage", refund_id), write)


def _charge_again(unit: FundUnit, refund: Adjustment, command: Command) -> Sequence[Draw]:
    amount, payer_id = refund.amount, refund.payer_id
    balances, credit = unit.lock_funds([payer_id], currency=amount.currency)[payer_id]
    draws = draw(balances, picos=amount.picos, credit_picos=credit, at=command.at)
    if draws is None:
        raise InsufficientFunds(f"the available balance does not cover {amount}")
    return draws


def _adjusted(unit: FundUnit, event: ChargedEvent, amount: Money, command: Command) -> Adjusted:
    return Adjusted(
        kind="refund",
        organisation_id=event.organisation_id,
        department_id=event.department_id,
        payer_id=event.payer_id,
        amount=amount,
        reference=event.id,
        billed_at=billed_from(unit, event.organisation_id, at=command.at),
    )


def _find(unit: FundUnit, event_id: str) -> ChargedEvent:
    event = unit.find_event(event_id)
    if event is None:
        raise EventNotFound(f"there is no event {event_id!r} in the books")
    if event.outcome != "settled":
        raise EventNotSettled
    return event


def _refundable(unit: FundUnit, event: ChargedEvent) -> int:
    """What was taken for an event, at its price of today, less what was refunded already."""
    taken = min(event.charged.picos, sum(draw.picos for draw in event.draws))
    refunded = sum(adjustment.amount.picos for adjustment in unit.adjustments_of(event.id))
    return max(0, taken - refunded)
