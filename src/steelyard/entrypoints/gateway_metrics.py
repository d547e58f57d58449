"""What Prometheus may read of the gateway; `docs/reference/metrics.md` lists the same.

Requests are counted as they end (`gateway/request_metrics.py`). Outbox, holds and leases are read
when somebody asks, on the event loop, so that they belong to one moment.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import get_args

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.lease_wallet import LeaseWallet
from steelyard.gateway.model_catalog import ModelCatalog
from steelyard.gateway.routing.breaker import BreakerState

Family = GaugeMetricFamily | CounterMetricFamily


class GatewayMetrics(Collector):
    """Tells what stands in one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.registry = gateway.requests.registry
        self.registry.register(self)

    def expose(self) -> bytes:
        """Everything, in Prometheus' text form; call it on the event loop."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Family]:
        yield from _outbox(self._gateway.outbox)
        yield from self._holds()
        yield from _leases(self._gateway.admission.holding.wallet)
        yield from _deployments(self._gateway.admission.catalog)

    def _holds(self) -> Iterator[Family]:
        running = self._gateway.requests.in_flight
        holds = self._gateway.admission.holding.open_holds
        yield GaugeMetricFamily(
            "http_server_active_requests",
            "Requests that were admitted and are not closed.",
            value=len(running),
        )
        places = {"lease": 0, "books": 0}
        held: dict[str, int] = defaultdict(int)
        for hold in holds.values():
            places["lease" if hold.lease_id else "books"] += 1
            held[hold.amount.currency] += hold.amount.picos
        yield _by("steelyard_gateway_open_holds", "Holds that are open here.", "place", places)
        yield _by("steelyard_gateway_held_picos", "What they are of.", "currency", held)
        yield GaugeMetricFamily(
            "steelyard_unexplained_holds",
            "Open holds without a request in flight.",
            value=len(holds.keys() - running.keys()),
        )


def _outbox(outbox: Outbox) -> Iterator[Family]:
    figures = outbox.figures()
    yield GaugeMetricFamily(
        "steelyard_outbox_waiting_records",
        "Records in memory that wait for the disk.",
        value=figures.waiting,
    )
    yield CounterMetricFamily(
        "steelyard_outbox_lost_events",
        "Events that were given up when the gateway ended and the disk still failed.",
        value=figures.lost,
    )
    yield GaugeMetricFamily(
        "steelyard_outbox_bytes", "Bytes of all segments.", value=figures.bytes_kept
    )
    yield GaugeMetricFamily(
        "steelyard_outbox_open_attempts",
        "Attempts that are opened on the disk and not closed there.",
        value=figures.open_attempts,
    )
    yield GaugeMetricFamily(
        "steelyard_outbox_refusing",
        "1 while the disk fails or is full, and new requests are refused.",
        value=_refuses(outbox),
    )


def _leases(wallet: LeaseWallet) -> Iterator[Family]:
    counts = {"open": 0, "drained": 0}
    picos = GaugeMetricFamily(
        "steelyard_lease_picos",
        "What is leased to this gateway: free to be held, and held.",
        labels=["state", "currency"],
    )
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for _, lease in wallet.leases():
        counts["drained" if lease.is_drained else "open"] += 1
        currency = lease.lease.amount.currency
        sums["free", currency] += lease.free_picos
        sums["held", currency] += sum(size.picos for size in lease.open_holds.values())
    for (state, currency), value in sums.items():
        picos.add_metric([state, currency], value)
    yield _by("steelyard_leases", "Leases in the hand of this gateway.", "status", counts)
    yield picos


def _deployments(catalog: ModelCatalog) -> Iterator[Family]:
    """What each deployment does, and whether it rests."""
    labels = ["model", "upstream", "upstream_model"]
    breaker = GaugeMetricFamily(
        "steelyard_deployment_breaker",
        "1 for the state that the breaker of a deployment is in.",
        labels=[*labels, "state"],
    )
    openings = CounterMetricFamily(
        "steelyard_deployment_breaker_openings",
        "How often the breaker of a deployment opened, or stayed open after a trial.",
        labels=labels,
    )
    running = GaugeMetricFamily(
        "steelyard_deployment_open_requests", "Attempts that run on a deployment.", labels=labels
    )
    for each in catalog.states():
        names = [each.model, each.upstream, each.upstream_model]
        for state in get_args(BreakerState):
            breaker.add_metric([*names, state], float(state == each.breaker))
        openings.add_metric(names, each.openings)
        running.add_metric(names, each.open_count)
    up = GaugeMetricFamily(
        "steelyard_upstream_up",
        "1 where an upstream answered when it was last looked at.",
        labels=["upstream"],
    )
    down = catalog.down()
    for upstream in catalog.routes.upstreams:
        up.add_metric([upstream.name], float(upstream.name not in down))
    yield from (breaker, openings, running, up)


def _refuses(outbox: Outbox) -> int:
    try:
        outbox.check()
    except EventLogUnavailable:
        return 1
    return 0


def _by(name: str, meaning: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, meaning, labels=[label])
    for value, number in values.items():
        gauge.add_metric([value], number)
    return gauge
