"""Replay: every balance is made again from the events, the open holds and the commands.

It shares no code with settlement and reads none of its postings. What a request did to a balance
follows from its event alone: what it spent of which grant, what it earned, what nobody covered. So
placing, settling, suspending and releasing holds are not replayed one by one; those that are still
open, and what is left of leases, stand for themselves. Of a command the books keep one amount on
one account; all of its other postings follow from its template, its grant or its adjustment.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from steelyard.billing.invariant_check import Check
from steelyard.billing.replayed_chargeback import balances_of
from steelyard.billing.stored_event import (
    AccountRow,
    AdjustmentRow,
    GrantRow,
    LeaseRow,
    ReplayedEvent,
    TransactionRow,
)
from steelyard.ledger.hold import CREDIT_LINE, Draw, Hold, burn, read_draws
from steelyard.money import read_decimal

# Their effect is that of the events and of the open holds.
OF_EVENTS: Final = frozenset(
    {
        "place_holds",
        "settle_holds",
        "suspend_holds",
        "release_hold",
        "decide_suspense",
        "lease_funds",
        "settle_leased",
        "suspend_leased",
        "return_lease",
    }
)
_GIVEN_FROM: Final = {"top_up": "clearing", "promotional_credit": "promo_expense"}
_KIND_GIVEN: Final = {"top_up": "paid", "promotional_credit": "promotional"}
_SETTLED_FROM: Final = {"receive_payment": "clearing", "write_off": "write_off"}

Postings = dict[str, int]


class ReplayCheck:
    """I6: what stands on every account is what its events, holds and commands say."""

    def __init__(
        self,
        *,
        grants: Mapping[str, GrantRow],
        adjustments: Mapping[str, AdjustmentRow],
        chargebacks: Mapping[str, str],
        decisions: Mapping[str, int],
    ) -> None:
        claim = "every balance follows from the events, the open holds and the commands"
        self._check = Check("I6", claim)
        self._grants = grants
        self._adjustments = adjustments
        self._chargebacks = chargebacks
        self._decisions = decisions
        self._decided: set[str] = set()
        self._balances: dict[str, int] = defaultdict(int)
        self._booked: set[str] = set()
        # Of a template that is not named here the postings stand for themselves.
        self._replays: Mapping[str, Callable[[TransactionRow], Postings | None]] = {
            "top_up": self._give,
            "promotional_credit": self._give,
            "expire_grant": self._expire,
            "refund_usage": self._adjust,
            "charge_usage": self._adjust,
            "pay_out": self._pay_out,
            "receive_payment": self._settle_debt,
            "write_off": self._settle_debt,
            "charge_back": self._charge_back,
            "record_upstream_cost": self._record_cost,
            "credit_upstream_cost": self._record_cost,
            "pay_upstream": self._pay_upstream,
        }

    def see_transaction(self, transaction: TransactionRow) -> None:
        """A command: what its template makes of it has to be what was posted."""
        template, postings = transaction.template, dict(transaction.postings)
        if transaction.id in self._adjustments or transaction.id in self._chargebacks:
            self._booked.add(transaction.id)
        if template is None or template in OF_EVENTS:
            return
        replay = self._replays.get(template)
        expected = replay(transaction) if replay else postings
        self._check.expect(
            expected == postings,
            lambda: f"{template} {transaction.id} posted {postings}, it should be {expected}",
        )
        self._move(postings if expected is None else expected)

    def see(self, event: ReplayedEvent) -> None:
        row, said = event.row, event.said.data
        payer_id, currency = said.payer_id, said.currency
        draws, held = read_draws(row.draws), read_decimal(said.held)
        drawn = sum(draw.picos for draw in draws)
        # A lease suspends what its gateway said that the answer cost: the rest is granted again.
        # A hold may have grown without its gateway's hearing of it.
        waits = max(held, drawn) if said.lease_id is None else min(held, read_decimal(said.amount))
        amount = waits if row.outcome == "suspended" else row.amount
        self._check.expect(
            row.amount == amount,
            lambda: f"event {row.id} waits with {row.amount} picos, not {waits}",
        )
        taken = amount if row.outcome == "suspended" else min(amount, held)
        self._check.expect(
            drawn == taken, lambda: f"event {row.id} says that it spent {drawn}, not {taken}"
        )
        self._move(_drawn(draws, payer_id, currency))
        if row.outcome == "settled":
            self._move(
                {f"revenue:{currency}": row.amount, f"suspense:{currency}": drawn - row.amount}
            )
            return
        self._move({f"suspense:{currency}": drawn})
        if row.id in self._decisions:
            self._decide(event, draws, self._decisions[row.id])

    def finish(
        self, holds: Iterable[Hold], leases: Iterable[LeaseRow], accounts: Iterable[AccountRow]
    ) -> Check:
        for hold in holds:
            currency = str(hold.amount.currency)
            self._move(_drawn(hold.draws, hold.payer_id, currency))
            self._move({f"held:{hold.payer_id}:{currency}": hold.amount.picos})
        for lease in leases:
            currency = str(lease.amount.currency)
            self._move(_drawn(lease.draws, lease.payer_id, currency))
            self._move({f"leased:{lease.payer_id}:{currency}": lease.amount.picos})
        stands = {account.id: account.balance for account in accounts}
        for account_id in sorted(stands.keys() | self._balances.keys()):
            found, expected = stands.get(account_id, 0), self._balances.get(account_id, 0)
            self._check.expect(
                found == expected,
                lambda a=account_id, f=found, e=expected: f"{a} says {f}, the log says {e}",
            )
        for event_id in self._decisions.keys() - self._decided:
            self._check.expect(
                False, lambda e=event_id: f"a decision on {e}, which is not suspended"
            )
        for missing in self._adjustments.keys() - self._booked:
            self._check.expect(False, lambda m=missing: f"adjustment {m} has no transaction")
        for missing in self._chargebacks.keys() - self._booked:
            self._check.expect(False, lambda m=missing: f"chargeback {m} has no transaction")
        return self._check

    def _decide(self, event: ReplayedEvent, draws: list[Draw], picos: int) -> None:
        """What is decided is earned, and the rest is back where it came from."""
        said, drawn = event.said.data, sum(draw.picos for draw in draws)
        self._decided.add(event.row.id)
        self._check.expect(
            0 <= picos <= drawn, lambda: f"event {event.row.id}: {picos} decided of {drawn} held"
        )
        if 0 <= picos <= drawn:
            _, back = burn(draws, picos=picos)
            self._move({a: -p for a, p in _drawn(back, said.payer_id, said.currency).items()})
            self._move({f"suspense:{said.currency}": -drawn, f"revenue:{said.currency}": picos})

    def _give(self, transaction: TransactionRow) -> Postings | None:
        grant = self._grants.get(transaction.reference)
        template = transaction.template or ""
        if grant is None or grant.kind != _KIND_GIVEN[template]:
            return None
        source = f"{_GIVEN_FROM[template]}:{grant.currency}"
        amount = -transaction.postings.get(source, 0)
        return {source: -amount, grant.account_id: amount}

    def _expire(self, transaction: TransactionRow) -> Postings | None:
        grant = self._grants.get(transaction.reference)
        if grant is None:
            return None
        left = -transaction.postings.get(grant.account_id, 0)
        target = "breakage" if grant.kind == "paid" else "promo_expense"
        return {grant.account_id: -left, f"{target}:{grant.currency}": left}

    def _adjust(self, transaction: TransactionRow) -> Postings | None:
        """What was given back or charged again stands in the adjustment, place by place."""
        adjustment = self._adjustments.get(transaction.id)
        if adjustment is None:
            return None
        sign = 1 if transaction.template == "refund_usage" else -1
        draws = _try_read(adjustment.draws)
        whole = sum(draw.picos for draw in draws)
        self._check.expect(
            adjustment.amount == sign * whole,
            lambda: f"adjustment {adjustment.id} is of {adjustment.amount} picos and moved {whole}",
        )
        parts = _drawn(draws, adjustment.payer_id, adjustment.currency)
        own = {account_id: -sign * picos for account_id, picos in parts.items()}
        return own | {f"revenue:{adjustment.currency}": -sign * whole}

    def _pay_out(self, transaction: TransactionRow) -> Postings | None:
        currency = next(iter(transaction.postings)).rpartition(":")[2]
        paid = {g.account_id for g in self._grants_named(transaction) if g.kind == "paid"}
        own = {a: picos for a, picos in transaction.postings.items() if a in paid}
        return own | {f"clearing:{currency}": -sum(own.values())}

    def _settle_debt(self, transaction: TransactionRow) -> Postings | None:
        debts = ("receivable:", "invoiced:")
        owed = {a: p for a, p in transaction.postings.items() if a.startswith(debts)}
        if not owed:
            return None
        currency = next(iter(owed)).rpartition(":")[2]
        source = _SETTLED_FROM[transaction.template or ""]
        return owed | {f"{source}:{currency}": -sum(owed.values())}

    def _charge_back(self, transaction: TransactionRow) -> Postings | None:
        """The document says what each payer gives or gets; only paid grants give."""
        document = self._chargebacks.get(transaction.id)
        balances = balances_of(document, invoice=transaction.reference) if document else None
        if balances is None:
            return None
        paid = [grant for grant in self._grants_named(transaction) if grant.kind == "paid"]
        expected: Postings = {}
        for payer_id, (picos, currency) in balances.items():
            own = {
                grant.account_id: transaction.postings[grant.account_id]
                for grant in paid
                if grant.payer_id == payer_id and transaction.postings[grant.account_id] < 0
            }
            if picos > 0:
                expected[f"prepaid:{payer_id}:{payer_id}.main:{currency}"] = picos
            elif sum(own.values()) == picos:
                expected |= own
            else:
                return None
        return expected

    def _record_cost(self, transaction: TransactionRow) -> Postings | None:
        """What an upstream charges is owed to it; what it takes back is not any more."""
        _, _, upstream = transaction.reference.partition("/")
        currency = next(iter(transaction.postings)).rpartition(":")[2]
        owed = f"upstream_payable:{upstream}:{currency}"
        picos = transaction.postings.get(owed, 0)
        if (picos > 0) != (transaction.template == "record_upstream_cost"):
            return None
        return {owed: picos, f"upstream_cost:{upstream}:{currency}": -picos}

    def _pay_upstream(self, transaction: TransactionRow) -> Postings | None:
        currency = next(iter(transaction.postings)).rpartition(":")[2]
        picos = transaction.postings.get(f"clearing:{currency}", 0)
        if picos <= 0:
            return None
        owed = f"upstream_payable:{transaction.reference}:{currency}"
        return {owed: -picos, f"clearing:{currency}": picos}

    def _grants_named(self, transaction: TransactionRow) -> list[GrantRow]:
        names = [a.split(":")[2] for a in transaction.postings if a.startswith("prepaid:")]
        return [self._grants[name] for name in names if name in self._grants]

    def _move(self, postings: Mapping[str, int]) -> None:
        for account_id, picos in postings.items():
            self._balances[account_id] += picos


def _try_read(text: str) -> list[Draw]:
    """Draws that somebody may have tampered with: then they are none, and their seal is broken."""
    try:
        return read_draws(text)
    except (ValueError, AssertionError):
        return []


def _drawn(draws: Iterable[Draw], payer_id: str, currency: str) -> Postings:
    """What these draws take, by account."""
    parts: Postings = defaultdict(int)
    for draw in draws:
        grant = f"prepaid:{payer_id}:{draw.grant_id}:{currency}"
        is_credit = draw.grant_id == CREDIT_LINE
        parts[f"receivable:{payer_id}:{currency}" if is_credit else grant] -= draw.picos
    return parts
