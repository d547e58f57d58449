"""Starting while the database is away: it may only be starting too."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from steelyard.storage.database import BooksUnavailable

log = structlog.get_logger()

T = TypeVar("T")
PAUSE_S: Final = 0.5


def start_patiently(start: Callable[[], T], *, patience_s: float) -> T:
    """Start again for so long while the books are unavailable; then raise BooksUnavailable.

    `start` raises it only before it serves: whatever runs deals with it itself.
    """
    gives_up_at = time.monotonic() + patience_s
    while True:
        try:
            return start()
        except BooksUnavailable as failure:
            if time.monotonic() >= gives_up_at:
                raise
            log.warning("books.awaited", reason=str(failure))
        time.sleep(PAUSE_S)
