"""Checks of the ledger by itself: every sum is made again from the postings."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from steelyard.billing.invariant_check import Check
from steelyard.ledger.chart import NEVER_NEGATIVE, read_account_id
from steelyard.ledger.hold import Hold

# Transactions that a batch of events makes.
BATCH_TEMPLATES = frozenset({"settle_holds", "suspend_holds"})


@dataclass(frozen=True, slots=True)
class PostingRow:
    transaction_id: str
    template: str
    reference: str
    account_id: str
    picos: int


@dataclass(slots=True)
class PostingSums:
    """What the postings add up to; those of batches by batch and account as well."""

    by_account: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_transaction: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_batch: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    @classmethod
    def of(cls, postings: Iterable[PostingRow]) -> "PostingSums":
        sums = cls()
        for posting in postings:
            sums.by_account[posting.account_id] += posting.picos
            sums.by_transaction[posting.transaction_id] += posting.picos
            if posting.template in BATCH_TEMPLATES:
                sums.by_batch[posting.reference, posting.account_id] += posting.picos
        return sums


def check_sums(postings: PostingSums) -> Check:
    check = Check("I1", "every transaction, and the whole ledger, sums to zero")
    for transaction_id, picos in postings.by_transaction.items():
        check.expect(picos == 0, lambda t=transaction_id, p=picos: f"{t} sums to {p} picos")
    whole = sum(postings.by_account.values())
    check.expect(whole == 0, lambda: f"the whole ledger sums to {whole} picos")
    return check


def check_balances(postings: PostingSums, balances: Mapping[str, int]) -> list[Check]:
    replayed = Check("I6", "every balance is what its postings add up to")
    positive = Check("I2", "no available balance and no held amount is negative")
    for account_id in sorted(postings.by_account.keys() | balances.keys()):
        found, expected = balances.get(account_id, 0), postings.by_account.get(account_id, 0)
        replayed.expect(
            found == expected,
            lambda a=account_id, f=found, e=expected: f"{a} says {f}, its postings say {e}",
        )
        if read_account_id(account_id).kind in NEVER_NEGATIVE:
            positive.expect(expected >= 0, lambda a=account_id, e=expected: f"{a} is at {e}")
    return [positive, replayed]


def check_holds(
    postings: PostingSums,
    holds: Iterable[Hold],
    reservations: Mapping[tuple[str, str], int],
) -> Check:
    """Held money is that of the open holds, and so is what budgets have reserved."""
    check = Check("I3", "held money and reserved budgets are those of the open holds, and no other")
    held: dict[str, int] = defaultdict(int)
    reserved: dict[tuple[str, str], int] = defaultdict(int)
    for hold in holds:
        held[f"held:{hold.payer_id}:{hold.amount.currency}"] += hold.amount.picos
        drawn = sum(draw.picos for draw in hold.draws)
        check.expect(
            drawn == hold.amount.picos,
            lambda h=hold, d=drawn: f"hold {h.id} is of {h.amount.picos} picos and drew {d}",
        )
        for draw in hold.budget_draws:
            reserved[draw.budget_id, draw.window] += draw.amount
    stands = {a: p for a, p in postings.by_account.items() if a.startswith("held:")}
    for account_id in sorted(stands.keys() | held.keys()):
        found, expected = stands.get(account_id, 0), held.get(account_id, 0)
        check.expect(
            found == expected,
            lambda a=account_id, f=found, e=expected: f"{a} has {f} picos, open holds {e}",
        )
    for window in sorted(reservations.keys() | reserved.keys()):
        said, expected = reservations.get(window, 0), reserved.get(window, 0)
        check.expect(
            said == expected,
            lambda w=window, s=said, e=expected: f"budget {w} reserves {s}, open holds {e}",
        )
    return check
