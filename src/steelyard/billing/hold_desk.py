"""Places holds in the books: a thread that grants whatever requests have gathered, in one commit."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from steelyard.batch_queue import BatchQueue
from steelyard.billing.books import Books, BooksUnit
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.hold import Hold
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import place_hold
from steelyard.money import Money

BATCH_MAX = 200


class HoldDeclined(InsufficientFunds):
    """The available balance does not cover the hold."""

    def __init__(self, *, available: Money) -> None:
        super().__init__(f"{available} available")
        self.available = available


@dataclass(slots=True)
class _Application:
    hold: Hold
    granted: "Future[None]" = field(default_factory=Future["None"])


class HoldDesk:
    """Grants holds one batch at a time, so that concurrent requests never overspend a balance."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._queue = BatchQueue[_Application](batch_max=BATCH_MAX)
        self._thread = threading.Thread(target=self._serve, name="hold-desk", daemon=True)
        self._thread.start()

    def place(self, hold: Hold) -> "Future[None]":
        """Done when the hold is durable; fails with HoldDeclined if the balance is too low."""
        application = _Application(hold)
        self._queue.put(application)
        return application.granted

    def close(self) -> None:
        self._queue.close()
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._queue.take():
            self._grant(batch)

    def _grant(self, batch: list[_Application]) -> None:
        try:
            with self._books.write() as unit:
                declined = _decide(batch, unit)
        except Exception as error:
            # Whatever failed, failed for the whole batch: each caller hears of it.
            for application in batch:
                application.granted.set_exception(error)
            return
        for application in batch:
            available = declined.get(application.hold.id)
            if available is None:
                application.granted.set_result(None)
            else:
                application.granted.set_exception(HoldDeclined(available=available))


def _decide(batch: list[_Application], unit: BooksUnit) -> dict[str, Money]:
    """Grant in order of arrival; the declined come back with what was available to them."""
    accounts = {_prepaid(application.hold) for application in batch}
    available = unit.lock_balances(accounts)
    granted: list[Hold] = []
    declined: dict[str, Money] = {}
    for hold in (application.hold for application in batch):
        account_id = _prepaid(hold).id
        balance = available.get(account_id, 0)
        if hold.amount.picos > balance:
            declined[hold.id] = Money(balance, hold.amount.currency)
        else:
            available[account_id] = balance - hold.amount.picos
            granted.append(hold)
    placed = (place_hold(hold) for hold in granted)
    unit.post([transaction for transaction in placed if transaction])
    unit.insert_holds(granted)
    return declined


def _prepaid(hold: Hold) -> LedgerAccount:
    return LedgerAccount("prepaid", hold.payer_id, hold.amount.currency)
