"""The event log on Kafka: what a worker reads, partition by partition.

The stored position in the books is the truth. The broker's committed offsets are a hint for people
who look at the lag; nothing here reads them. A position is an offset and one.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from steelyard.errors import Failure
from steelyard.eventlog.kafka_producer import KafkaProducer
from steelyard.eventlog.log import EventLogReader, EventLogUnavailable, LogRecord

log = structlog.get_logger()

# How many records wait in memory, over all partitions of one worker.
FETCHED_MAX: Final = 20_000
POLL_S: Final = 0.2
# How long the partitions of a worker that died wait for another; librdkafka's own default is 45 s,
# in which an outbox may fill up.
SESSION_MS: Final = 10_000


class EventsGone(EventLogUnavailable):
    """The topic has dropped events that the books do not have: its retention is too short for how
    far the workers are behind. Nothing is settled beyond the gap until a person has looked."""

    code = "events_gone"


class KafkaPartition:
    """Implements EventLogReader on one partition that this worker has been assigned."""

    def __init__(
        self, consumer: Consumer, topic: str, partition: int, *, position: int | None
    ) -> None:
        self.log_id = log_id_of(topic, partition)
        self._consumer = consumer
        self._place = topic, partition
        self._fetched: deque[LogRecord] = deque()
        # The position that fetching goes on after; None until somebody says where.
        self._fetched_to = position
        self._gone: str | None = None

    def read_after(self, position: int, *, limit: int) -> list[LogRecord]:
        """What has been fetched after this position; raises EventsGone.

        Asked for another place than the one that is being fetched, it goes there, and has nothing
        yet.
        """
        if self._gone:
            raise EventsGone(f"{self.log_id}: {self._gone}. {EventsGone.__doc__}")
        while self._fetched and self._fetched[0].position <= position:
            self._fetched.popleft()
        starts_at = self._fetched[0].position - 1 if self._fetched else self._fetched_to
        if starts_at != position:
            self._go_to(position)
            return []
        # They stay until somebody asks for what comes after them.
        return list(islice(self._fetched, limit))

    def newest(self) -> int | None:
        """What the broker said last of the end of this partition."""
        try:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(*self._place), cached=True)
        except (KafkaException, RuntimeError) as error:
            raise EventLogUnavailable(f"{self.log_id} cannot be read: {error}") from error
        return end if end >= 0 else None

    def take(self, message: Message) -> None:
        """Keep a fetched record; one from before a change of place is dropped."""
        offset, body = message.offset(), message.value()
        if self._fetched_to is None or offset is None or offset + 1 <= self._fetched_to:
            return
        if offset != self._fetched_to:
            self.give_up(f"there are no events from offset {self._fetched_to} to {offset - 1}")
            return
        self._fetched.append(LogRecord(offset + 1, bytes(body or b"")))
        self._fetched_to = offset + 1

    def give_up(self, reason: str) -> None:
        """From here on this partition can only be complained about."""
        self._gone = reason

    @property
    def fetched_count(self) -> int:
        return len(self._fetched)

    def _go_to(self, position: int) -> None:
        self._fetched.clear()
        topic, partition = self._place
        try:
            self._consumer.seek(TopicPartition(topic, partition, position))
        except KafkaException as error:
            raise EventLogUnavailable(f"{self.log_id} cannot be read: {error}") from error
        self._fetched_to = position


class KafkaLog:
    """One member of the workers' group; its partitions come and go as other workers do."""

    def __init__(
        self,
        options: Mapping[str, str],
        *,
        topic: str,
        group: str,
        dead_letters: KafkaProducer,
        position_of: Callable[[str], int],
    ) -> None:
        self._topic = topic
        self._position_of = position_of
        self._dead_letters = dead_letters
        self._partitions: dict[int, KafkaPartition] = {}
        self._consumer = Consumer(
            {
                "session.timeout.ms": SESSION_MS,
                "heartbeat.interval.ms": SESSION_MS // 4,
                **options,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                # Positions come from the books; where they point nowhere, we want to know.
                "auto.offset.reset": "error",
                "partition.assignment.strategy": "range",
                "isolation.level": "read_committed",
                "error_cb": self._note_error,
                "on_commit": _note_commit,
            }
        )
        self._consumer.subscribe(
            [topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke
        )

    def readers(self) -> Sequence[KafkaPartition]:
        """The partitions that are this worker's now, with what has been fetched of them."""
        self._fetch()
        return list(self._partitions.values())

    def settled(self, reader: EventLogReader, position: int) -> None:
        """Tell the broker how far the books are: a hint, for those who watch the lag."""
        _, _, partition = reader.log_id.rpartition(":")
        place = TopicPartition(self._topic, int(partition), position)
        try:
            self._consumer.commit(offsets=[place], asynchronous=True)
        except KafkaException as error:
            log.info("kafka.hint_not_taken", log_id=reader.log_id, reason=str(error))

    def set_aside(self, reader: EventLogReader, records: Sequence[tuple[str, bytes]]) -> None:
        """Copy them to the dead-letter topic, for those who look there. The books have them."""
        try:
            self._dead_letters.send_aside(reader.log_id, records)
        except EventLogUnavailable as failure:
            log.error("kafka.dead_letter_not_sent", count=len(records), reason=str(failure))

    def close(self) -> None:
        self._dead_letters.close()
        self._consumer.close()

    def _fetch(self) -> None:
        waiting = sum(reader.fetched_count for reader in self._partitions.values())
        room = FETCHED_MAX - waiting
        try:
            # Polled even where there is no room: that is what keeps this worker in its group.
            messages = self._consumer.consume(max(room, 1), timeout=0.0 if waiting else POLL_S)
        except (KafkaException, RuntimeError) as error:
            raise EventLogUnavailable(f"Kafka does not answer: {error}") from error
        complaints = [complaint for message in messages if (complaint := self._take(message))]
        if complaints:
            raise EventLogUnavailable(f"Kafka does not answer: {complaints[0]}")

    def _take(self, message: Message) -> str | None:
        """Hand a record to its partition; returns what else the broker has to say."""
        reader = self._partitions.get(message.partition() or 0)
        error = message.error()
        if error is None:
            if reader:
                reader.take(message)
            return None
        if error.code() == KafkaError._AUTO_OFFSET_RESET and reader:
            reader.give_up(f"the stored position is not in the topic: {error.str()}")
            return None
        return error.str()

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the books are."""
        begin: list[TopicPartition] = []
        for place in partitions:
            position = self._stored(log_id_of(self._topic, place.partition))
            self._partitions[place.partition] = KafkaPartition(
                consumer, self._topic, place.partition, position=position
            )
            begin.append(TopicPartition(self._topic, place.partition, position or 0))
        log.info("kafka.assigned", partitions=[place.partition for place in partitions])
        consumer.assign(begin)

    def _stored(self, log_id: str) -> int | None:
        """None while the books are away: then the first read says where to begin."""
        try:
            return self._position_of(log_id)
        except Failure:
            return None

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """What is being settled now may still be posted, or another worker has been faster: the
        stored position decides."""
        for place in partitions:
            self._partitions.pop(place.partition, None)
        log.info("kafka.revoked", partitions=[place.partition for place in partitions])
        consumer.unassign()

    def _note_error(self, error: KafkaError) -> None:
        log.warning("kafka.trouble", reason=error.str())


def _note_commit(error: KafkaError | None, _places: list[TopicPartition]) -> None:
    if error is not None:
        log.info("kafka.hint_not_taken", reason=error.str())


def log_id_of(topic: str, partition: int) -> str:
    return f"kafka:{topic}:{partition}"
