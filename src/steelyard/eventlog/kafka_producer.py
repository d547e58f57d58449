"""Puts usage events on Kafka: in order for each organisation, acknowledged by every replica."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from steelyard.eventlog.log import EventLogUnavailable, LogRecord

log = structlog.get_logger()

FLUSH_S: Final = 10.0
# A broker says so of what it takes for a repetition. One that was killed after it had noted the
# number of a record and before it had the record says so too: only a new producer is believed.
NO_PLACE: Final = "a record was acknowledged without a place"


class _Keyed(msgspec.Struct):
    """The part of an event that says which partition it belongs to."""

    partitionkey: str


_decoder = msgspec.json.Decoder(_Keyed)


class _ToSend(NamedTuple):
    key: str
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


class KafkaProducer:
    """An idempotent producer: the broker drops what the network made us send twice."""

    def __init__(self, options: Mapping[str, str], *, topic: str) -> None:
        self._topic = topic
        self._failure: str | None = None
        # Whether the broker believes to have what it may not have.
        self._is_mistaken = False
        self._options = {
            "linger.ms": "5",
            "compression.type": "lz4",
            **options,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": "30000",
            "error_cb": self._note_error,
        }
        self._producer = Producer(self._options)

    def send(self, records: Sequence[LogRecord]) -> None:
        """Return when the broker has acknowledged all of them; raises EventLogUnavailable.

        After a failure some may be there and some not; sent again, the ones that are there twice
        are one event to the worker.
        """
        self._send([_ToSend(partition_key(record.body), record.body) for record in records])

    def send_aside(self, log_id: str, records: Sequence[tuple[str, bytes]]) -> None:
        """The same for records that must not move money, each with its reason."""
        self._send(
            [
                _ToSend(log_id, body, {"reason": reason, "log_id": log_id})
                for reason, body in records
            ]
        )

    def close(self) -> None:
        # One that a fatal error has ended complains once more.
        with suppress(KafkaException, SystemError):
            self._purge()

    def _send(self, messages: Sequence[_ToSend]) -> None:
        self._failure, self._is_mistaken = None, False
        try:
            for message in messages:
                self._put(message)
            waiting = self._producer.flush(FLUSH_S)
            reason = self._failure or (
                waiting and f"{waiting} records were not acknowledged in time"
            )
            if self._is_mistaken:
                self._replace(NO_PLACE)
            elif reason:
                self._purge()
        except (KafkaException, SystemError) as error:
            # SystemError is how a fatal error comes out of a call that was reporting deliveries.
            reason = str(error.__cause__ or error)
            self._replace(reason)
        if reason:
            raise EventLogUnavailable(f"Kafka does not take events: {reason}")

    def _replace(self, reason: str) -> None:
        """Begin anew: after a fatal error, as when a broker has lost its place in what we send, a
        producer takes nothing any more."""
        self.close()
        self._producer = Producer(self._options)
        log.warning("kafka.producer_replaced", topic=self._topic, reason=reason)

    def _purge(self) -> None:
        self._producer.purge()
        self._producer.flush(FLUSH_S)

    def _put(self, message: _ToSend) -> None:
        while self._failure is None:
            try:
                self._producer.produce(
                    self._topic,
                    value=message.body,
                    key=message.key,
                    headers=dict(message.headers),
                    on_delivery=self._note_delivery,
                )
            except BufferError:
                # The queue is full: let some of it go out first.
                self._producer.poll(0.1)
                continue
            self._producer.poll(0)
            return

    def _note_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = self._failure or error.str()
        elif message.offset() is None:
            self._failure = self._failure or NO_PLACE
            self._is_mistaken = True

    def _note_error(self, error: KafkaError) -> None:
        log.warning("kafka.trouble", reason=error.str())


def partition_key(body: bytes) -> str:
    """The organisation's id; what cannot be read goes with others of its kind, to quarantine."""
    try:
        return _decoder.decode(body).partitionkey
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
