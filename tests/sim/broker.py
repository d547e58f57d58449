"""A broker of two partitions, as the relay and the workers see it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.eventlog.kafka_producer import partition_key
from steelyard.eventlog.log import EventLogReader, EventLogUnavailable, LogRecord
from steelyard.eventlog.outbox_folder import OutboxFolder
from steelyard.eventlog.outbox_reader import OutboxReader
from tests.sim.funds import Funds
from tests.sim.universe import Universe
from tests.sim.virtual_threads import sleep_here

PARTITIONS = 2
TRIP_S = 0.01


@dataclass(slots=True)
class Broker:
    """What it has acknowledged stays; what it has not may be there all the same."""

    universe: Universe
    partitions: list[list[bytes]] = field(
        default_factory=lambda: [list[bytes]() for _ in range(PARTITIONS)]
    )
    is_away: bool = False

    def trip(self) -> None:
        """To the broker, or back; raises EventLogUnavailable."""
        sleep_here(self.universe.chance.uniform(0, TRIP_S))
        if self.is_away or self.universe.strikes(self.universe.plan.faults.broker_refuses):
            self.universe.note("broker.refused")
            raise EventLogUnavailable("the simulated broker is away")

    def send(self, records: Sequence[LogRecord]) -> None:
        """Implements EventSender."""
        chance, faults = self.universe.chance, self.universe.plan.faults
        self.trip()
        is_lost = self.universe.strikes(faults.broker_forgets_to_answer)
        taken = records[: chance.randint(0, len(records))] if is_lost else records
        for record in taken:
            key = partition_key(record.body)
            self.partitions[sum(key.encode()) % PARTITIONS].append(record.body)
        if is_lost:
            self.universe.note("broker.answer_lost", sent=len(records), taken=len(taken))
            raise EventLogUnavailable("the simulated broker did not answer")
        sleep_here(chance.uniform(0, TRIP_S))

    def close(self) -> None:
        """Implements EventSender."""

    def is_settled(self, funds: Funds) -> bool:
        readers = [Partition(self, number) for number in range(PARTITIONS)]
        lengths = map(len, self.partitions)
        return all(map(funds.is_settled, [one.log_id for one in readers], lengths))


@dataclass(slots=True)
class Partition:
    """Implements EventLogReader."""

    broker: Broker
    number: int

    @property
    def log_id(self) -> str:
        return f"kafka:simulated:{self.number}"

    def read_after(self, position: int, *, limit: int) -> Sequence[LogRecord]:
        self.broker.trip()
        bodies = self.broker.partitions[self.number][position : position + limit]
        came = bodies[: self.broker.universe.chance.randint(1, limit)]
        return [LogRecord(position + 1 + index, body) for index, body in enumerate(came)]

    def newest(self) -> int:
        return len(self.broker.partitions[self.number])


@dataclass(slots=True)
class GroupMember:
    """Implements EventLogs. Which partitions are its own changes, and two members may believe the
    same one theirs: the stored position decides."""

    broker: Broker

    def readers(self) -> Sequence[EventLogReader]:
        universe = self.broker.universe
        own = [
            number
            for number in range(PARTITIONS)
            if universe.is_calm or universe.chance.random() < 0.8
        ]
        return [Partition(self.broker, number) for number in own]

    def settled(self, reader: EventLogReader, position: int) -> None:
        """The hint to the broker is lost."""

    def set_aside(self, reader: EventLogReader, records: Sequence[tuple[str, bytes]]) -> None:
        for reason, _ in records:
            self.broker.universe.note("event.set_aside", reason=reason)

    def close(self) -> None:
        """There is no connection."""


class SlowOutboxFolder(OutboxFolder):
    """Outboxes whose reading takes time, in which others move the position."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.folder)
        self._universe = universe

    def _open(self, path: Path) -> None:
        super()._open(path)
        if path in self._readers:
            self._readers[path] = SlowOutboxReader(path, self._universe)


class SlowOutboxReader(OutboxReader):
    """Implements EventLogReader."""

    def __init__(self, path: Path, universe: Universe) -> None:
        super().__init__(path)
        self._universe = universe

    def read_after(self, position: int, *, limit: int) -> list[LogRecord]:
        records = super().read_after(position, limit=limit)
        sleep_here(self._universe.chance.uniform(0, TRIP_S))
        return records
