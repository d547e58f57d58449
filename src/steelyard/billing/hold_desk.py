"""Places holds in the books: a thread that grants whatever requests have gathered, in one commit."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime

from steelyard.batch_queue import BatchQueue
from steelyard.billing.fund_books import FundBooks
from steelyard.billing.hold_decisions import Application, Growth, Placement, decide_holds
from steelyard.errors import Refusal
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money

BATCH_MAX = 200


@dataclass(slots=True)
class _Waiting:
    application: Application
    granted: "Future[Hold]" = field(default_factory=Future["Hold"])


class HoldDesk:
    """Grants holds one batch at a time, so that concurrent requests never overspend a balance."""

    def __init__(self, books: FundBooks) -> None:
        self._books = books
        self._queue = BatchQueue[_Waiting](batch_max=BATCH_MAX)
        self._thread = threading.Thread(target=self._serve, name="hold-desk", daemon=True)
        self._thread.start()

    def place(self, hold: Hold, scope: HoldScope) -> "Future[Hold]":
        """Done when the hold is durable, with what it draws on.

        Fails with HoldDeclined if the money does not cover it, or BudgetExceeded. The same hold
        placed again is granted or declined again, without a second effect; one that has ended fails
        with HoldEnded.
        """
        return self._apply(Placement(hold, scope))

    def grow(self, hold_id: str, *, amount: Money, tokens_max: int, at: datetime) -> "Future[Hold]":
        """Done when the open hold is of this amount and of so many tokens in all, or of more.

        Fails as `place` does, or with HoldNotFound; the hold then stays as it was.
        """
        return self._apply(Growth(hold_id, amount, tokens_max, at))

    def close(self) -> None:
        self._queue.close()
        self._thread.join()

    def _apply(self, application: Application) -> "Future[Hold]":
        waiting = _Waiting(application)
        self._queue.put(waiting)
        return waiting.granted

    def _serve(self) -> None:
        while batch := self._queue.take():
            self._grant(batch)

    def _grant(self, batch: list[_Waiting]) -> None:
        try:
            with self._books.write() as unit:
                answers = decide_holds([waiting.application for waiting in batch], unit)
        except Exception as error:
            # Whatever failed, failed for the whole batch: each caller hears of it.
            for waiting in batch:
                waiting.granted.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Refusal):
                waiting.granted.set_exception(answer)
            else:
                waiting.granted.set_result(answer)
