"""The event log as its readers see it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from steelyard.errors import Failure


class EventLogUnavailable(Failure):
    """Usage events cannot be made durable or read, so nothing new is served."""

    code = "event_log_unavailable"


class LogRecord(NamedTuple):
    """One event as it stands in a log; positions start at 1 and have no gap."""

    position: int
    body: bytes


class EventLogReader(Protocol):
    """Reads one log from any position."""

    @property
    def log_id(self) -> str: ...

    def read_after(self, position: int, *, limit: int) -> Sequence[LogRecord]: ...

    def newest(self) -> int | None:
        """The position of the newest record; None where that is not known now."""
        ...


class EventLogs(Protocol):
    """The logs that one worker follows."""

    def readers(self) -> Sequence[EventLogReader]:
        """Those that are this worker's now; raises EventLogUnavailable."""
        ...

    def settled(self, reader: EventLogReader, position: int) -> None:
        """The books have everything up to this position."""
        ...

    def set_aside(self, reader: EventLogReader, records: Sequence[tuple[str, bytes]]) -> None:
        """The books keep these records in quarantine, each for a reason."""
        ...

    def close(self) -> None: ...
