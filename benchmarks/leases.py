"""What it costs to hold money: in the memory of a gateway that has a lease, and in the books.

`hold_us`: granting a hold from a lease and releasing it, as every request of a busy key does, in
microseconds; the median of the rounds, with the slowest beside it. The peer in the same run is the
hold that is placed in the books (SQLite) by many at once, waited for by each.

Run: python -m benchmarks.leases
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.drafts import empty_draft

from steelyard.access.tenant import Department, Organisation
from steelyard.app.stores import open_stores
from steelyard.billing.commands import new_command
from steelyard.billing.hold_desk import HoldDesk
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.billing.top_up import add_credit
from steelyard.eventlog.attempt_records import PendingEvent
from steelyard.gateway.lease_wallet import LeaseWallet
from steelyard.ids import new_id
from steelyard.ledger.hold import Draw, Hold, HoldScope
from steelyard.ledger.lease import Lease
from steelyard.money import Currency, Money
from steelyard.settings import read_settings

console = Console(stderr=True)

USD = Currency("USD")
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ROUNDS = 7
SCOPE = HoldScope("organisation", "department", None, "key", 100)
AMOUNT = Money(1_000_000, USD)


def measure(*, holds: int) -> dict[str, Any]:
    rounds = [_in_memory_us(holds) for _ in range(ROUNDS)]
    in_books = _in_books_us(holds // 20)
    hold_us = statistics.median(rounds)
    console.print(
        f"hold on a lease: {hold_us:.2f} µs granted and released (slowest round "
        f"{max(rounds):.2f}); hold in the books, in batches: {in_books:.0f} µs"
    )
    return {
        "hold_us": round(hold_us, 2),
        "hold_us_slowest_round": round(max(rounds), 2),
        "hold_in_books_us": round(in_books, 1),
    }


def _in_memory_us(count: int) -> float:
    """Holds of which 64 are open at any time, as with 64 requests at once."""
    wallet = LeaseWallet(timedelta(seconds=10))
    first = _hold("organisation")
    assert wallet.grant(first, SCOPE) is None
    [pocket] = wallet.pockets.values()
    wallet.put(pocket, _lease(Money(AMOUNT.picos * count, USD)))
    holds = [_hold("organisation") for _ in range(count)]
    event = PendingEvent(empty_draft(new_id()))
    used = LeaseSize(AMOUNT.picos // 2, 50)
    is_open: list[Hold] = []
    started = time.perf_counter()
    for hold in holds:
        granted = wallet.grant(hold, SCOPE)
        assert granted is not None
        is_open.append(granted)
        if len(is_open) == 64:
            for each in is_open:
                wallet.release(each, used, event=event)
            is_open.clear()
    return (time.perf_counter() - started) / count * 1e6


def _in_books_us(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        stores = open_stores(read_settings(data_dir=Path(folder)), should_migrate=True)
        organisation = Organisation(new_id(), "bench", USD, NOW)
        stores.access.insert_organisation(organisation)
        department = Department(new_id(), organisation, "it", "organisation", NOW)
        stores.access.insert_department(department)
        command = new_command(clock=stores.clock, actor="bench", reason="bench")
        add_credit(stores.books, organisation, amount=Money(10**15, USD), command=command)
        desk = HoldDesk(stores.books)
        scope = HoldScope(organisation.id, department.id, None, "key", 100)
        started = time.perf_counter()
        for placing in [desk.place(_hold(organisation.id), scope) for _ in range(count)]:
            placing.result()
        seconds = time.perf_counter() - started
        desk.close()
        stores.database.close()
    return seconds / count * 1e6


def _hold(payer_id: str) -> Hold:
    return Hold(new_id(), payer_id, AMOUNT, "urn:bench", NOW, "{}")


def _lease(amount: Money) -> Lease:
    return Lease(
        id=new_id(),
        organisation_id=SCOPE.organisation_id,
        payer_id="organisation",
        key_id=SCOPE.key_id,
        source="urn:bench",
        amount=amount,
        granted_at=NOW,
        expires_at=NOW + timedelta(seconds=10),
        draws=(Draw("grant", amount.picos),),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--holds", type=int, default=100_000)
    print(json.dumps(measure(holds=parser.parse_args().holds)))


if __name__ == "__main__":
    main()
