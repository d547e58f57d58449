"""Transactions: postings that sum to zero, made only by the named templates below."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from steelyard.ledger.chart import AccountKind, LedgerAccount
from steelyard.ledger.grant import Grant
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw, Hold
from steelyard.ledger.lease import Lease
from steelyard.money import Currency, Money

Parts = dict[LedgerAccount, int]

# Usage moves money by these, whole batches at a time; its events tell the rest.
USAGE_TEMPLATES: Final = (
    "place_holds",
    "settle_holds",
    "suspend_holds",
    "lease_funds",
    "return_lease",
    "settle_leased",
    "suspend_leased",
)
# People move money by these, and the sweep of expired grants.
COMMAND_TEMPLATES: Final = (
    "top_up",
    "promotional_credit",
    "expire_grant",
    "release_hold",
    "refund_usage",
    "charge_usage",
    "pay_out",
    "receive_payment",
    "write_off",
    "decide_suspense",
    "invoice_tax_and_rounding",
    "charge_back",
    "record_upstream_cost",
    "credit_upstream_cost",
    "pay_upstream",
    "credit_note",
)


@dataclass(frozen=True, slots=True)
class Posting:
    """A signed amount on one ledger account; credits are positive."""

    account: LedgerAccount
    picos: int


@dataclass(frozen=True, slots=True)
class Command:
    """Who moved money by hand, why, and when."""

    id: str
    at: datetime
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """Postings that belong together; they sum to zero in one currency."""

    id: str
    template: str
    reference: str
    booked_at: datetime
    postings: Sequence[Posting]
    actor: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert len(self.postings) >= 2, f"{self.id}: a transaction has at least two postings"
        assert sum(p.picos for p in self.postings) == 0, f"{self.id}: postings do not sum to zero"
        assert len({p.account.currency for p in self.postings}) == 1, f"{self.id}: two currencies"


@dataclass(frozen=True, slots=True)
class HoldsEnded:
    """The holds of one payer that a batch of events ends, added up; all of them from its held
    account, or all of them from its leases."""

    payer_id: str
    currency: Currency
    held: int
    charged: int
    uncovered: int
    back: Sequence[Draw]
    account: Literal["held", "leased"] = "held"


def top_up(amount: Money, *, grant: Grant, command: Command) -> Transaction:
    """The tenant has paid in; the amount is available at once."""
    return _give("top_up", amount, grant=grant, source="clearing", command=command)


def give_promotional_credit(amount: Money, *, grant: Grant, command: Command) -> Transaction:
    """We give credit away; it costs us now and is earned back when it is spent."""
    return _give("promotional_credit", amount, grant=grant, source="promo_expense", command=command)


def expire_grant(transaction_id: str, grant: Grant, *, left: Money, at: datetime) -> Transaction:
    """What is left of an expired grant is the tenant's no more."""
    target: AccountKind = "breakage" if grant.kind == "paid" else "promo_expense"
    parts = {
        _prepaid(grant.payer_id, grant.id, left.currency): -left.picos,
        LedgerAccount(target, None, left.currency): left.picos,
    }
    return Transaction(transaction_id, "expire_grant", grant.id, at, _postings(parts))


def place_holds(transaction_id: str, holds: Sequence[Hold], *, at: datetime) -> Transaction | None:
    """Set the draws of one payer's holds aside; nothing moves for holds of zero."""
    draws = [draw for hold in holds for draw in hold.draws]
    if not draws:
        return None
    payer_id, currency = holds[0].payer_id, holds[0].amount.currency
    assert all((h.payer_id, h.amount.currency) == (payer_id, currency) for h in holds), "two payers"
    parts = _drawn(draws, payer_id, currency)
    parts[LedgerAccount("held", payer_id, currency)] = sum(draw.picos for draw in draws)
    return Transaction(transaction_id, "place_holds", payer_id, at, _postings(parts))


def settle_holds(
    transaction_id: str, ended: HoldsEnded, *, reference: str, at: datetime
) -> Transaction | None:
    """End a batch of holds of one payer: the charges are earned, the rest returns.

    A charge above its hold is not taken from the tenant: the part that nothing covers stands on the
    suspense account until somebody decides.
    """
    parts = _returned(ended.back, ended.payer_id, ended.currency)
    parts[LedgerAccount(ended.account, ended.payer_id, ended.currency)] = -ended.held
    parts[LedgerAccount("revenue", None, ended.currency)] = ended.charged
    parts[LedgerAccount("suspense", None, ended.currency)] = -ended.uncovered
    template = "settle_holds" if ended.account == "held" else "settle_leased"
    return _transaction(transaction_id, template, reference, at, parts)


def suspend_holds(
    transaction_id: str, ended: HoldsEnded, *, reference: str, at: datetime
) -> Transaction | None:
    """Two computations disagree: the held amounts wait in suspense, and nothing is earned."""
    parts = {
        LedgerAccount(ended.account, ended.payer_id, ended.currency): -ended.held,
        LedgerAccount("suspense", None, ended.currency): ended.held,
    }
    template = "suspend_holds" if ended.account == "held" else "suspend_leased"
    return _transaction(transaction_id, template, reference, at, parts)


def lease_funds(lease: Lease) -> Transaction:
    """Give a gateway money of a payer to hold out of, without asking again."""
    parts = _drawn(lease.draws, lease.payer_id, lease.amount.currency)
    parts[LedgerAccount("leased", lease.payer_id, lease.amount.currency)] = lease.amount.picos
    return Transaction(
        f"{lease.id}/leased", "lease_funds", lease.id, lease.granted_at, _postings(parts)
    )


def grow_lease(
    lease: Lease, *, draws: Sequence[Draw], transaction_id: str, at: datetime
) -> Transaction:
    """Give more of a payer's money to a lease that a run holds out of."""
    parts = _drawn(draws, lease.payer_id, lease.amount.currency)
    whole = sum(draw.picos for draw in draws)
    parts[LedgerAccount("leased", lease.payer_id, lease.amount.currency)] = whole
    return Transaction(transaction_id, "lease_funds", lease.id, at, _postings(parts))


def return_lease(
    lease: Lease, *, back: Sequence[Draw], at: datetime, command: Command | None = None
) -> Transaction | None:
    """Part of a lease, or all that is left of it, goes back to where it was drawn from."""
    parts = _returned(back, lease.payer_id, lease.amount.currency)
    parts[LedgerAccount("leased", lease.payer_id, lease.amount.currency)] = -sum(
        draw.picos for draw in back
    )
    # What is left of a lease that is returned from only falls, since nothing grows then, so that no
    # two returns begin at the same amount.
    transaction_id = f"{lease.id}/returned/{lease.amount.picos}"
    return _transaction(transaction_id, "return_lease", lease.id, at, parts, command=command)


def release_hold(hold: Hold, *, command: Command) -> Transaction | None:
    """The work never happened: everything that was drawn returns."""
    parts = _returned(hold.draws, hold.payer_id, hold.amount.currency)
    parts[LedgerAccount("held", hold.payer_id, hold.amount.currency)] = -hold.amount.picos
    return _transaction(
        f"{hold.id}/released", "release_hold", hold.id, command.at, parts, command=command
    )


def refund_usage(
    draws: Sequence[Draw], *, payer_id: str, currency: Currency, reference: str, command: Command
) -> Transaction:
    """Give back what usage cost, to where it was taken from."""
    parts = _returned(draws, payer_id, currency)
    parts[LedgerAccount("revenue", None, currency)] = -sum(draw.picos for draw in draws)
    return _commanded("refund_usage", reference, parts, command)


def charge_usage(
    draws: Sequence[Draw], *, payer_id: str, currency: Currency, reference: str, command: Command
) -> Transaction:
    """Charge more for usage that is in the books already: a correction, or another price."""
    parts = _drawn(draws, payer_id, currency)
    parts[LedgerAccount("revenue", None, currency)] = sum(draw.picos for draw in draws)
    return _commanded("charge_usage", reference, parts, command)


def pay_out(
    draws: Sequence[Draw], *, payer_id: str, currency: Currency, command: Command
) -> Transaction:
    """The tenant gets money back that it had paid in and not spent."""
    parts = _drawn(draws, payer_id, currency)
    parts[LedgerAccount("clearing", None, currency)] = sum(draw.picos for draw in draws)
    return _commanded("pay_out", command.id, parts, command)


def receive_payment(
    debts: Sequence[Draw], *, payer_id: str, currency: Currency, command: Command
) -> Transaction:
    """A tenant has paid of what it owed, debt by debt."""
    parts = _settled_debts(debts, payer_id, currency, source="clearing")
    return _commanded("receive_payment", command.id, parts, command)


def write_off(
    debts: Sequence[Draw], *, payer_id: str, currency: Currency, command: Command
) -> Transaction:
    """What a tenant owes will not be paid."""
    parts = _settled_debts(debts, payer_id, currency, source="write_off")
    return _commanded("write_off", command.id, parts, command)


def decide_suspense(
    amount: Money, *, draws: Sequence[Draw], payer_id: str, reference: str, command: Command
) -> Transaction:
    """A suspended amount is decided on: `amount` of it is earned, the draws return."""
    parts = _returned(draws, payer_id, amount.currency)
    parts[LedgerAccount("suspense", None, amount.currency)] = -(
        amount.picos + sum(draw.picos for draw in draws)
    )
    parts[LedgerAccount("revenue", None, amount.currency)] = amount.picos
    return _commanded("decide_suspense", reference, parts, command)


def invoice_tax_and_rounding(
    *,
    payer_id: str,
    tax: Money,
    rounding: Money,
    draws: Sequence[Draw],
    reference: str,
    command: Command,
) -> Transaction | None:
    """An invoice takes tax, and what rounds it to the minor unit, from the draws; where the two are
    below zero together, the draws get it back."""
    collected = tax.picos + rounding.picos
    assert sum(draw.picos for draw in draws) == abs(collected), f"{draws} are not {collected}"
    move = _drawn if collected > 0 else _returned
    parts = move(draws, payer_id, tax.currency)
    parts[LedgerAccount("tax", None, tax.currency)] = tax.picos
    parts[LedgerAccount("rounding", None, tax.currency)] = rounding.picos
    return _transaction(
        command.id, "invoice_tax_and_rounding", reference, command.at, parts, command=command
    )


def charge_back(
    taken: Mapping[str, Sequence[Draw]],
    *,
    given: Sequence[tuple[Grant, int]],
    currency: Currency,
    reference: str,
    command: Command,
) -> Transaction:
    """Departments bear their shares of others: draws of payers go to grants of other payers."""
    parts: Parts = {_prepaid(g.payer_id, g.id, currency): picos for g, picos in given}
    for payer_id, draws in taken.items():
        parts |= _drawn(draws, payer_id, currency)
    return _commanded("charge_back", reference, parts, command)


def record_upstream_cost(
    amount: Money, *, upstream: str, month: str, command: Command
) -> Transaction:
    """An upstream charges us for a month, which we owe it; below zero it takes that back."""
    parts = {
        LedgerAccount("upstream_cost", upstream, amount.currency): -amount.picos,
        LedgerAccount("upstream_payable", upstream, amount.currency): amount.picos,
    }
    template = cost_template(amount)
    return _commanded(template, upstream_cost_reference(upstream, month), parts, command)


def cost_template(amount: Money) -> str:
    return "record_upstream_cost" if amount.picos > 0 else "credit_upstream_cost"


def upstream_cost_reference(upstream: str, month: str) -> str:
    return f"{month}/{upstream}"


def pay_upstream(amount: Money, *, upstream: str, command: Command) -> Transaction:
    """We have paid of what we owe an upstream."""
    parts = {
        LedgerAccount("upstream_payable", upstream, amount.currency): -amount.picos,
        LedgerAccount("clearing", None, amount.currency): amount.picos,
    }
    return _commanded("pay_upstream", upstream, parts, command)


def give_back_invoiced(
    draws: Sequence[Draw], *, payer_id: str, tax: Money, reference: str, command: Command
) -> Transaction:
    """A credit note gives back what an invoice billed: so much of it is tax, the rest was revenue."""
    total = sum(draw.picos for draw in draws)
    assert 0 <= tax.picos <= total, f"{tax} is no part of {total} picos"
    parts = _returned(draws, payer_id, tax.currency)
    parts[LedgerAccount("tax", None, tax.currency)] = -tax.picos
    parts[LedgerAccount("revenue", None, tax.currency)] = tax.picos - total
    return _commanded("credit_note", reference, parts, command)


def _give(
    template: str, amount: Money, *, grant: Grant, source: AccountKind, command: Command
) -> Transaction:
    assert amount.picos > 0, f"what is given is positive, got {amount}"
    parts = {
        LedgerAccount(source, None, amount.currency): -amount.picos,
        _prepaid(grant.payer_id, grant.id, amount.currency): amount.picos,
    }
    return _commanded(template, grant.id, parts, command)


def _settled_debts(
    debts: Sequence[Draw], payer_id: str, currency: Currency, *, source: AccountKind
) -> Parts:
    assert debts, "what settles a debt is more than nothing"
    assert {debt.grant_id for debt in debts} <= {CREDIT_LINE, INVOICED}, f"no debts: {debts}"
    parts = _returned(debts, payer_id, currency)
    parts[LedgerAccount(source, None, currency)] = -sum(debt.picos for debt in debts)
    return parts


def _drawn(draws: Iterable[Draw], payer_id: str, currency: Currency) -> Parts:
    parts: Parts = defaultdict(int)
    for draw in draws:
        parts[_drawn_account(draw, payer_id, currency)] -= draw.picos
    return parts


def _returned(draws: Iterable[Draw], payer_id: str, currency: Currency) -> Parts:
    return {a: -picos for a, picos in _drawn(draws, payer_id, currency).items()}


def _drawn_account(draw: Draw, payer_id: str, currency: Currency) -> LedgerAccount:
    if draw.grant_id == CREDIT_LINE:
        return LedgerAccount("receivable", payer_id, currency)
    if draw.grant_id == INVOICED:
        return LedgerAccount("invoiced", payer_id, currency)
    return _prepaid(payer_id, draw.grant_id, currency)


def _prepaid(payer_id: str, grant_id: str, currency: Currency) -> LedgerAccount:
    return LedgerAccount("prepaid", payer_id, currency, grant_id)


def _commanded(template: str, reference: str, parts: Parts, command: Command) -> Transaction:
    return Transaction(
        command.id,
        template,
        reference,
        command.at,
        _postings(parts),
        command.actor,
        command.reason,
    )


def _transaction(
    transaction_id: str,
    template: str,
    reference: str,
    at: datetime,
    parts: Parts,
    *,
    command: Command | None = None,
) -> Transaction | None:
    """Nothing is written where nothing moves."""
    postings = _postings(parts)
    if not postings:
        return None
    actor, reason = (command.actor, command.reason) if command else (None, None)
    return Transaction(transaction_id, template, reference, at, postings, actor, reason)


def _postings(parts: Parts) -> tuple[Posting, ...]:
    return tuple(Posting(account, picos) for account, picos in parts.items() if picos)
