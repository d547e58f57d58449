"""Opens the event log that the settings name: the outboxes themselves, or Kafka."""

from steelyard.app.stores import Stores
from steelyard.errors import Failure, Refusal
from steelyard.eventlog.log import EventLogs
from steelyard.eventlog.outbox_folder import OutboxFolder
from steelyard.eventlog.relay import Relay
from steelyard.settings import Settings

RELAY_BATCH_MAX = 5_000


class KafkaMissing(Failure):
    """Kafka's client is not installed: pip install 'steelyard[kafka]'."""

    code = "kafka_missing"


class KafkaOptionsMalformed(Refusal):
    """Options of librdkafka are written NAME=VALUE, with commas between them."""

    code = "kafka_options_malformed"


def open_event_logs(settings: Settings, stores: Stores) -> EventLogs:
    """What a worker follows."""
    if settings.event_log == "outbox":
        return OutboxFolder(settings.outbox_dir)
    try:
        from steelyard.eventlog.kafka_log import KafkaLog
        from steelyard.eventlog.kafka_producer import KafkaProducer
    except ImportError as error:
        raise KafkaMissing from error

    def position_of(log_id: str) -> int:
        with stores.books.write() as unit:
            return unit.position(log_id)

    options = kafka_options(settings)
    return KafkaLog(
        options,
        topic=settings.kafka_topic,
        group=settings.kafka_group,
        dead_letters=KafkaProducer(options, topic=f"{settings.kafka_topic}.quarantine"),
        position_of=position_of,
    )


def open_relay(settings: Settings) -> Relay:
    """What carries this machine's outboxes to Kafka."""
    try:
        from steelyard.eventlog.kafka_producer import KafkaProducer
    except ImportError as error:
        raise KafkaMissing from error
    producer = KafkaProducer(kafka_options(settings), topic=settings.kafka_topic)
    return Relay(producer, settings.outbox_dir, batch_max=RELAY_BATCH_MAX)


def kafka_options(settings: Settings) -> dict[str, str]:
    """How to reach the brokers; raises KafkaOptionsMalformed."""
    options = {"bootstrap.servers": settings.kafka_servers}
    for part in filter(None, (settings.kafka_options or "").split(",")):
        name, separator, value = part.strip().partition("=")
        if not name or not separator:
            raise KafkaOptionsMalformed(f"{part!r} is not NAME=VALUE")
        options[name] = value
    return options
