"""Checks of the ledger by itself: every sum is made again from the postings."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from steelyard.billing.invariant_check import Check
from steelyard.billing.stored_event import AccountRow, LeaseRow, TransactionRow
from steelyard.ledger.chart import NEVER_NEGATIVE, read_account_id
from steelyard.ledger.hold import Hold

# Transactions that a batch of events makes.
BATCH_TEMPLATES = frozenset({"settle_holds", "suspend_holds", "settle_leased", "suspend_leased"})


class TransactionCheck:
    """I1: sees every transaction once, and keeps what each account's postings add up to."""

    def __init__(self) -> None:
        self._check = Check("I1", "every transaction sums to zero and is as it was sealed")
        self.by_account: dict[str, int] = defaultdict(int)
        self.batch_count = 0

    @classmethod
    def of(cls, transactions: Iterable[TransactionRow]) -> "TransactionCheck":
        check = cls()
        for transaction in transactions:
            check.see(transaction)
        return check

    def see(self, transaction: TransactionRow) -> None:
        check, postings = self._check, transaction.postings
        whole = sum(postings.values())
        check.expect(
            whole == 0 and len(postings) >= 2,
            lambda: f"{transaction.id} has {len(postings)} postings that sum to {whole} picos",
        )
        check.expect(
            transaction.template is not None,
            lambda: f"{transaction.id} has postings, and no transaction",
        )
        check.expect(
            transaction.is_sealed, lambda: f"{transaction.id} was changed after it was booked"
        )
        for account_id, picos in postings.items():
            self.by_account[account_id] += picos
        self.batch_count += transaction.template in BATCH_TEMPLATES

    def finish(self) -> Check:
        whole = sum(self.by_account.values())
        self._check.expect(whole == 0, lambda: f"the whole ledger sums to {whole} picos")
        return self._check


def check_balances(postings: Mapping[str, int], accounts: Iterable[AccountRow]) -> list[Check]:
    """I2 and I6: balances by the postings, and none below its floor."""
    added = Check("I6", "every balance is what its postings add up to")
    positive = Check("I2", "no balance is below the floor of its account")
    seen = {account.id: account for account in accounts}
    for account_id in sorted(postings.keys() | seen.keys()):
        account = seen.get(account_id)
        found, expected = account.balance if account else 0, postings.get(account_id, 0)
        added.expect(
            found == expected,
            lambda a=account_id, f=found, e=expected: f"{a} says {f}, its postings say {e}",
        )
        if account is not None:
            _check_floor(positive, account, stands=expected)
    return [positive, added]


def _check_floor(check: Check, account: AccountRow, *, stands: int) -> None:
    kind = read_account_id(account.id).kind
    check.expect(account.kind == kind, lambda: f"{account.id} says that it is {account.kind}")
    if kind in NEVER_NEGATIVE:
        has_floor = account.floor == 0
    elif kind == "receivable":
        has_floor = account.floor is not None and account.floor <= 0
    else:
        has_floor = account.floor is None
    check.expect(has_floor, lambda: f"{account.id} has the floor {account.floor}")
    if account.floor is not None:
        check.expect(stands >= account.floor, lambda: f"{account.id} is at {stands}")


def check_holds(
    postings: Mapping[str, int],
    holds: Iterable[Hold],
    reservations: Mapping[tuple[str, str], int],
    conflicts: Iterable[str] = (),
    leases: Iterable[LeaseRow] = (),
) -> Check:
    """I3: held money is that of the open holds; what budgets reserve is theirs and the leases'."""
    claim = "held money and reserved budgets are those of open holds and leases, and no other"
    check = Check("I3", claim)
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
    for lease in leases:
        for draw in lease.budget_draws:
            reserved[draw.budget_id, draw.window] += draw.amount
    stands = {a: p for a, p in postings.items() if a.startswith("held:")}
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
            lambda w=window, s=said, e=expected: f"budget {w} reserves {s}, holds and leases {e}",
        )
    for hold_id in conflicts:
        check.expect(False, lambda h=hold_id: f"hold {h} has ended twice, or is open all the same")
    return check


def check_leases(postings: Mapping[str, int], leases: Iterable[LeaseRow]) -> Check:
    """Leased money is what is left of the leases.

    With I2 that is the whole of the claim: what was leased or held came out of accounts that never
    fall below zero, so that leased + held never pass the funds.
    """
    check = Check(
        "I8", "leased money is what is left of the leases, and no account paid for it twice"
    )
    expected: dict[str, int] = defaultdict(int)
    for lease in leases:
        expected[f"leased:{lease.payer_id}:{lease.amount.currency}"] += lease.amount.picos
        drawn = sum(draw.picos for draw in lease.draws)
        check.expect(
            drawn == lease.amount.picos,
            lambda i=lease, d=drawn: f"lease {i.id} is of {i.amount.picos} picos and drew {d}",
        )
    stands = {a: p for a, p in postings.items() if a.startswith("leased:")}
    whole = sum(stands.values()), sum(expected.values())
    check.expect(whole[0] == whole[1], lambda: f"{whole[0]} picos are leased, in leases {whole[1]}")
    for account_id in sorted(stands.keys() | expected.keys()):
        found, left = stands.get(account_id, 0), expected.get(account_id, 0)
        check.expect(
            found == left,
            lambda a=account_id, f=found, e=left: f"{a} has {f} picos, its leases {e}",
        )
    return check
