"""Puts usage events on Kafka: in order for each organisation, acknowledged by every replica."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from steelyard.eventlog.log import EventLogUnavailable, LogRecord

log = structlog.get_logger()

FLUSH_S: Final = 10.0


class _Keyed(msgspec.Struct):
    """The part of an event that says which partition it belongs to."""

    partitionkey: str


_decoder = msgspec.json.Decoder(_Keyed)


class KafkaProducer:
    """An idempotent producer: the broker drops what the network made us send twice."""

    def __init__(self, options: Mapping[str, str], *, topic: str) -> None:
        self._topic = topic
        self._failure: str | None = None
        self._producer = Producer(
            {
                "linger.ms": "5",
                "compression.type": "lz4",
                **options,
                "enable.idempotence": True,
                "acks": "all",
                "delivery.timeout.ms": "30000",
                "error_cb": self._note_error,
            }
        )

    def send(self, records: Sequence[LogRecord]) -> None:
        """Return when the broker has acknowledged all of them; raises EventLogUnavailable.

        After a failure some may be there and some not; sent again, the ones that are there twice
        are one event to the worker.
        """
        self._failure = None
        for record in records:
            self._send(record.body, key=partition_key(record.body))
        self._flush()

    def send_aside(self, log_id: str, records: Sequence[tuple[str, bytes]]) -> None:
        """The same for records that must not move money, each with its reason."""
        self._failure = None
        for reason, body in records:
            self._send(body, key=log_id, headers={"reason": reason, "log_id": log_id})
        self._flush()

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(FLUSH_S)

    def _flush(self) -> None:
        waiting = self._producer.flush(FLUSH_S)
        if waiting or self._failure:
            self._producer.purge()
            self._producer.flush(FLUSH_S)
            reason = self._failure or f"{waiting} records were not acknowledged in time"
            raise EventLogUnavailable(f"Kafka does not take events: {reason}")

    def _send(self, body: bytes, *, key: str, headers: Mapping[str, str] | None = None) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=body,
                    key=key,
                    headers=dict(headers or {}),
                    on_delivery=self._note_delivery,
                )
            except BufferError:
                # The queue is full: let some of it go out first.
                self._producer.poll(0.1)
                if self._failure:
                    return
                continue
            except KafkaException as error:
                raise EventLogUnavailable(f"Kafka does not take events: {error}") from error
            self._producer.poll(0)
            return

    def _note_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error.str()

    def _note_error(self, error: KafkaError) -> None:
        log.warning("kafka.trouble", reason=error.str())


def partition_key(body: bytes) -> str:
    """The organisation's id; what cannot be read goes with others of its kind, to quarantine."""
    try:
        return _decoder.decode(body).partitionkey
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
