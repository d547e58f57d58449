"""What Prometheus may read of the worker; `docs/reference/metrics.md` lists the same.

Counts are gathered as batches are settled. What the books say comes from the last look of the
reconciliation, so that a scrape asks no database.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from steelyard.billing.event_preparation import PreparedBatch
from steelyard.billing.reconciliation import NOTHING_SEEN, Reconciled
from steelyard.storage.recount_store import SideSums, UpstreamDrift
from steelyard.timestamp import read_timestamp

OUTCOMES: Final = ("settled", "suspended", "quarantined", "repeated")
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)


@dataclass(frozen=True, slots=True)
class LogStanding:
    """How far one log is in the books, and how far it goes; None where that is not known."""

    position: int
    newest: int | None


class Audited(Protocol):
    """What the upstream audit has found over the last day."""

    @property
    def drifts(self) -> Sequence[UpstreamDrift]: ...

    def exceeds(self, sums: SideSums) -> bool:
        """Whether a side drifts further than is put up with."""
        ...


class WorkerMetrics(Collector):
    """Gathers, and tells in Prometheus' text form."""

    def __init__(self) -> None:
        self.reconciled: Callable[[], Reconciled] = lambda: NOTHING_SEEN
        self.logs: Mapping[str, LogStanding] = {}
        self.reconciliation_failures = 0
        self.audited: Audited | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._events = Counter(
            "steelyard_events",
            "Records of the event log, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self._events.labels(outcome)
        self._latency = Histogram(
            "steelyard_settle_latency_seconds",
            "From the end of the oldest answer of a batch until the batch is in the books.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._duration = Histogram(
            "steelyard_settle_duration_seconds",
            "Of the transaction that brings a batch into the books.",
            registry=self.registry,
            buckets=_SECONDS,
        )

    def observe(
        self, batch: PreparedBatch, counts: Mapping[str, int], *, at: datetime, took_s: float
    ) -> None:
        """A batch is in the books."""
        for outcome in OUTCOMES:
            self._events.labels(outcome).inc(counts.get(outcome, 0))
        self._duration.observe(took_s)
        if batch.events:
            oldest = read_timestamp(min(event.ended_at for event in batch.events))
            self._latency.observe(max(0.0, (at - oldest).total_seconds()))

    def expose(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        found = self.reconciled()
        yield _by_label(
            "steelyard_unexplained_picos",
            "Money that two places of the books tell differently, or that waits for a person.",
            "check",
            found.picos,
        )
        yield _by_label(
            "steelyard_unexplained_records",
            "Records of the log that are missing, changed, or wait for a person.",
            "check",
            found.records,
        )
        yield from _looking(found, self.reconciliation_failures)
        yield from _standing(self.logs)
        yield from _drifting(self.audited)
        balances = GaugeMetricFamily(
            "steelyard_balance_picos",
            "Balances of all ledger accounts of a kind.",
            labels=["kind", "currency"],
        )
        for (kind, currency), picos in found.balances.items():
            balances.add_metric([kind, currency], picos)
        yield balances
        holds = found.holds
        yield _by_label(
            "steelyard_open_holds",
            "Open holds with a row in the books.",
            "status",
            {
                "placed": holds.open_count - holds.unresolved_count,
                "unresolved": holds.unresolved_count,
            },
        )


def _looking(found: Reconciled, failures: int) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """Whether the reconciliation itself is at work: an alarm that is silent may be dead."""
    yield CounterMetricFamily("steelyard_reconciliations", "Looks at the books.", value=found.looks)
    yield CounterMetricFamily(
        "steelyard_reconciliation_failures", "Looks that did not come to an end.", value=failures
    )
    yield GaugeMetricFamily(
        "steelyard_reconciliation_behind_records",
        "Settled records that were not looked at yet.",
        value=found.records_behind,
    )


def _standing(logs: Mapping[str, LogStanding]) -> Iterator[GaugeMetricFamily]:
    yield _by_label(
        "steelyard_log_position",
        "How far each log is in the books.",
        "log_id",
        {log_id: one.position for log_id, one in logs.items()},
    )
    yield _by_label(
        "steelyard_log_lag_records",
        "Records of each log that are not in the books yet.",
        "log_id",
        {
            log_id: max(0, one.newest - one.position)
            for log_id, one in logs.items()
            if one.newest is not None
        },
    )


def _drifting(audited: Audited | None) -> Iterator[GaugeMetricFamily]:
    """What upstreams reported beside what their own tokenizers say."""
    sides = ["upstream", "model", "side"]
    ratio = GaugeMetricFamily(
        "steelyard_audit_drift_ratio",
        "How much more an upstream reported than was recounted, over a day; 0.01 is one per cent.",
        labels=sides,
    )
    exceeded = GaugeMetricFamily(
        "steelyard_audit_drift_exceeded",
        "1 where that is further than is put up with.",
        labels=sides,
    )
    events = GaugeMetricFamily(
        "steelyard_audit_events",
        "Sampled events of a day, by what became of their recount.",
        labels=["upstream", "model", "outcome"],
    )
    for drift in audited.drifts if audited else ():
        of = [drift.upstream, drift.model]
        for side, sums in (("input", drift.input), ("output", drift.output)):
            ratio.add_metric([*of, side], sums.drift_ppm / 1_000_000)
            exceeded.add_metric([*of, side], float(audited is not None and audited.exceeds(sums)))
        events.add_metric([*of, "recounted"], drift.recounted)
        events.add_metric([*of, "uncountable"], drift.uncountable)
        events.add_metric([*of, "dropped"], drift.dropped)
    yield from (ratio, exceeded, events)


def _by_label(name: str, meaning: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, meaning, labels=[label])
    for value, number in values.items():
        gauge.add_metric([value], number)
    return gauge
