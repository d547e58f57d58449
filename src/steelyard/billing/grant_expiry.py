"""The sweep of expired grants: what is left of them, and what holds return to them later."""

from datetime import datetime
from typing import Final

import structlog

from steelyard.billing.fund_books import FundBooks
from steelyard.ids import new_id
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.grant import Grant
from steelyard.ledger.transaction import Transaction, expire_grant
from steelyard.money import Money

log = structlog.get_logger()

GRANTS_AT_ONCE: Final = 500


def expire_grants(books: FundBooks, *, at: datetime) -> int:
    """Take what is left of expired grants off their tenants; returns of how many grants.

    Held money is not touched: what a hold returns to an expired grant is taken by the next sweep.
    """
    count = 0
    while swept := _sweep(books, at=at):
        count += swept
    if count:
        log.info("grants.expired", count=count)
    return count


def _sweep(books: FundBooks, *, at: datetime) -> int:
    with books.write() as unit:
        grants = unit.expired_grants(at=at, limit=GRANTS_AT_ONCE)
        balances = unit.lock_balances([_account(grant) for grant in grants])
        expired: list[Transaction] = []
        for grant in grants:
            left = balances[_account(grant).id]
            if left:
                # A hold that returns money to an expired grant makes it expire once more, if need
                # be in the same moment.
                name = f"{grant.id}/expired/{new_id()}"
                expired.append(expire_grant(name, grant, left=Money(left, grant.currency), at=at))
        unit.post(expired)
    return len(expired)


def _account(grant: Grant) -> LedgerAccount:
    return LedgerAccount("prepaid", grant.payer_id, grant.currency, grant.id)
