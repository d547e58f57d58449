"""What counts again, as the gateway sees it: a process of its own."""

from typing import Protocol

from steelyard.metering.recount import RecountJob, RecountRecord


class Recounter(Protocol):
    """Counts again. Called by one thread at a time."""

    def models(self) -> frozenset[str]:
        """Those that have a registered tokenizer."""
        ...

    def recount(self, job: RecountJob) -> RecountRecord:
        """Raises CountingStopped."""
        ...

    def close(self) -> None: ...
