"""What Prometheus reads of a worker: over HTTP, of what it has settled and how far it is."""

import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from steelyard.entrypoints.metrics_server import metrics_served
from steelyard.entrypoints.worker_metrics import WorkerMetrics
from steelyard.entrypoints.worker_process import Reconciling, Worker
from steelyard.eventlog.log import LogRecord
from steelyard.eventlog.outbox_reader import OutboxReader
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.storage.database import BooksUnavailable
from steelyard.storage.reconciliation import SqlReconciliation
from tests.deliveries import deliver, records_of, with_changes
from tests.postgres_server import free_port
from tests.world import World

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def metrics(world: World) -> WorkerMetrics:
    """The metrics of a worker of this world, whose clock is the world's."""
    metrics = WorkerMetrics()
    stores = replace(world.stores, clock=world.clock)
    world.worker.close()
    world.worker = Worker(stores, world.settings.outbox_dir, batch_max=1000, metrics=metrics)
    world.organisation(dollars="1")
    return metrics


def test_settled_events_their_latency_and_the_place_in_the_log_are_told(
    world: World, metrics: WorkerMetrics
) -> None:
    for _ in range(3):
        world.chat()
    world.clock.advance(seconds=4)
    log_id = world.outbox.log_id

    world.settle()
    samples = _read(metrics)

    assert samples["steelyard_events_total", ("settled",)] == 3
    assert samples["steelyard_events_total", ("quarantined",)] == 0
    assert samples["steelyard_settle_latency_seconds_sum", ()] == 4
    assert samples["steelyard_settle_duration_seconds_count", ()] == 1
    assert samples["steelyard_log_position", (log_id,)] == 3
    assert samples["steelyard_log_lag_records", (log_id,)] == 0


def test_what_is_not_settled_yet_is_lag(
    world: World, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.entrypoints.worker_process.LAGS_EVERY_S", 0.0)
    world.chat()
    world.settle()
    for _ in range(5):
        world.chat()

    def refuse(*_: object) -> int:
        return 0

    with monkeypatch.context() as paused:
        paused.setattr(Worker, "_settle_log", refuse)
        world.worker.work()
    behind = _read(metrics)
    world.settle()

    log_id = world.outbox.log_id
    assert behind["steelyard_log_lag_records", (log_id,)] == 5
    assert _read(metrics)["steelyard_log_lag_records", (log_id,)] == 0


def test_what_is_suspended_or_quarantined_is_unexplained_at_the_next_look(
    world: World, metrics: WorkerMetrics
) -> None:
    reconciling = Reconciling(world.stores, metrics, every_s=0)
    reconciling.run_if_due()
    clean = _read(metrics)
    world.chat()
    [sent] = records_of(world)
    wrong = encode_event(with_changes(decode_event(sent.body), amount="0.5"))

    deliver(world, [LogRecord(1, wrong), LogRecord(2, b"garbage")], log_id="another-log")
    reconciling.run_if_due()
    samples = _read(metrics)

    assert _unexplained(clean) == {}
    assert _unexplained(samples) == {
        ("steelyard_unexplained_picos", ("suspense",)): 266_000_000,
        ("steelyard_unexplained_records", ("quarantine",)): 1,
    }
    assert samples["steelyard_reconciliations_total", ()] == 2
    assert samples["steelyard_balance_picos", ("USD", "suspense")] == 266_000_000


def test_books_that_are_away_are_a_failed_look_and_stop_nobody(
    world: World, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise BooksUnavailable("away")

    reconciling = Reconciling(world.stores, metrics, every_s=0)
    with monkeypatch.context() as broken, capture_logs() as lines:
        broken.setattr(SqlReconciliation, "snapshot", fail)
        away = Reconciling(world.stores, metrics, every_s=0)
        away.run_if_due()
    reconciling.run_if_due()

    assert [line["event"] for line in lines] == ["books.not_reconciled"]
    assert _read(metrics)["steelyard_reconciliation_failures_total", ()] == 1


def test_the_port_answers_metrics_and_nothing_else(metrics: WorkerMetrics) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    with metrics_served(metrics.expose, host="127.0.0.1", port=port, setting="X"):
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as response:
            body, kind = response.read(), response.headers["content-type"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/", timeout=5)

    assert b"steelyard_unexplained_picos" in body
    assert kind.startswith("text/plain; version=0.0.4")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/metrics", timeout=5)


def test_a_port_that_is_taken_is_said_and_stops_nobody(metrics: WorkerMetrics) -> None:
    port = free_port()

    with (
        metrics_served(metrics.expose, host="127.0.0.1", port=port, setting="X"),
        capture_logs() as lines,
        metrics_served(metrics.expose, host="127.0.0.1", port=port, setting="X_PORT"),
    ):
        pass

    assert [(line["event"], line["code"]) for line in lines] == [
        ("metrics.not_served", "port_in_use")
    ]
    assert "X_PORT" in lines[0]["reason"]


def test_the_end_of_an_outbox_is_found_across_segments(world: World) -> None:
    world.organisation(dollars="1")
    reader = OutboxReader(world.settings.outbox_dir / "world.outbox")
    ends = [reader.newest()]
    for _ in range(3):
        world.chat()
        ends.append(reader.newest())
        world.stop_gateway()
        world.start_gateway()

    assert ends == [None, 1, 2, 3]


def _read(metrics: WorkerMetrics) -> Samples:
    families = text_string_to_metric_families(metrics.expose().decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def _unexplained(samples: Samples) -> Samples:
    return {
        name: value
        for name, value in samples.items()
        if name[0].startswith("steelyard_unexplained") and value
    }
