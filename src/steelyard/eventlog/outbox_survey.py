"""Looks through the outbox of a gateway from beside it: which attempts and events are in it.

Nothing is changed. A gateway may be writing meanwhile: only what is durable is seen, and segments
that are pruned under the reader are in the books already.
"""

import fcntl
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from steelyard.eventlog.durable_mark import read_mark
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.segment import Batch, read_batches, segment_names


class _Named(msgspec.Struct):
    id: str


class _Leased(msgspec.Struct):
    lease_id: str | None = None


class _Opening(msgspec.Struct):
    id: str
    lease_id: str | None = None


class _Event(msgspec.Struct):
    id: str
    data: _Leased


_named_decoder = msgspec.json.Decoder(_Named)
_opening_decoder = msgspec.json.Decoder(_Opening)
_event_decoder = msgspec.json.Decoder(_Event)


@dataclass(slots=True)
class LeaseRecords:
    """What an outbox says of one lease: attempts that are open, and events."""

    open_attempts: set[str] = field(default_factory=set[str])
    events: set[str] = field(default_factory=set[str])


def attempts_among(path: Path, wanted: Collection[str]) -> set[str]:
    """Which of these attempts were opened in the outbox, or closed, as far as it is kept."""
    found = set[str]()
    for batch in _durable_batches(path):
        for body in (*batch.opened, *batch.events):
            name = _named_decoder.decode(body).id
            if name in wanted:
                found.add(name)
    return found


def records_of_lease(path: Path, lease_id: str) -> LeaseRecords:
    """The attempts and events in the outbox whose holds were granted from a lease."""
    found = LeaseRecords()
    for batch in _durable_batches(path):
        for body in batch.opened:
            opening = _opening_decoder.decode(body)
            if opening.lease_id == lease_id:
                found.open_attempts.add(opening.id)
        for body in batch.events:
            event = _event_decoder.decode(body)
            if event.data.lease_id == lease_id:
                found.events.add(event.id)
                found.open_attempts.discard(event.id)
    return found


def outbox_of(folder: Path, source: str) -> Path | None:
    """The outbox of the gateway with this source, if it is in this folder."""
    name = gateway_of(source)
    path = folder / f"{name}.outbox"
    return path if name and path.is_dir() else None


def gateway_of(source: str) -> str | None:
    """The name of the gateway in its source; None where that is another's."""
    *prefix, name, _boot = ["", "", *source.split(":")]
    return name if prefix[-3:] == ["urn", "steelyard", "gateway"] else None


@contextmanager
def gateway_kept_away(path: Path) -> Generator[bool]:
    """Whether no gateway writes this outbox; then none begins to before the block ends."""
    lock_path = path.with_suffix(".lock")
    if not lock_path.exists():
        yield True
        return
    with lock_path.open("r") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _durable_batches(path: Path) -> Iterator[Batch]:
    """Raises EventLogUnavailable where the disk fails."""
    try:
        durable = read_mark(path)
        names = [n for n in segment_names(path) if n.number <= durable.segment_number]
        for name, following in zip(names, [*names[1:], None], strict=False):
            try:
                content = memoryview(name.path_in(path).read_bytes())
            except FileNotFoundError:
                continue
            is_last = name.number == durable.segment_number
            for batch in read_batches(content[: durable.length] if is_last else content):
                if following and batch.events and batch.first_position >= following.first_position:
                    # A write that failed and could not be cut off; it was never durable.
                    break
                yield batch
    except OSError as error:
        raise EventLogUnavailable(f"the outbox {path} failed: {error}") from error
