"""Cost to serve: what the engine's time for each request cost, beside what the request earned.

The time is what the engine said in its usage block, which every event keeps, whether or not the
price book charges for it. What an hour costs is the operator's to say. Nothing here moves money.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Final, Protocol

from steelyard.billing.statement import Period
from steelyard.metering.upstream_usage import UpstreamUsageMalformed, read_upstream_usage
from steelyard.metering.usage import ENGINE_CPU_MICROSECONDS, ENGINE_GPU_MICROSECONDS, Usage
from steelyard.money import Currency

MICROSECONDS_OF_HOUR: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class ServedEvent:
    """A usage event: what it was charged, and the usage block of its upstream as it came."""

    id: str
    model: str
    upstream: str
    currency: Currency
    revenue: int
    upstream_usage: bytes


class ServedReports(Protocol):
    """The events of the books, in one moment."""

    def served(self, period: Period) -> Iterator[ServedEvent]:
        """All that ended in a period, settled or not; what is not settled has earned nothing yet."""
        ...


@dataclass(frozen=True, slots=True)
class HourRates:
    """What an hour of a GPU, and an hour of one CPU, costs the operator, in picos."""

    gpu: int
    cpu: int

    def cost_rounded_down(self, *, gpu_us: int, cpu_us: int) -> int:
        """An estimate for a report, in whole picos; never charged to anybody."""
        return (gpu_us * self.gpu + cpu_us * self.cpu) // MICROSECONDS_OF_HOUR


@dataclass(frozen=True, slots=True)
class RequestCost:
    """What one request took and earned."""

    event: ServedEvent
    gpu_us: int
    cpu_us: int
    cost: int

    @property
    def margin(self) -> int:
        return self.event.revenue - self.cost


@dataclass(slots=True)
class ModelCost:
    """What all requests to one model at one upstream took and earned.

    `untimed` counts those whose upstream does not say how long they took: another's server.
    """

    model: str
    upstream: str
    requests: int = 0
    untimed: int = 0
    gpu_us: int = 0
    cpu_us: int = 0
    revenue: int = 0
    cost: int = 0

    @property
    def margin(self) -> int:
        return self.revenue - self.cost

    def add(self, request: RequestCost, *, rates: HourRates) -> None:
        self.requests += 1
        self.untimed += not (request.gpu_us or request.cpu_us)
        self.gpu_us += request.gpu_us
        self.cpu_us += request.cpu_us
        self.revenue += request.event.revenue
        # From the sum of the times: rounding each request would lose a pico with each.
        self.cost = rates.cost_rounded_down(gpu_us=self.gpu_us, cpu_us=self.cpu_us)


@dataclass(slots=True)
class CostToServe:
    """The report: models by name, and the requests that were worst to serve first."""

    models: list[ModelCost] = field(default_factory=list[ModelCost])
    requests: list[RequestCost] = field(default_factory=list[RequestCost])


def cost_to_serve(
    events: Iterable[ServedEvent], *, rates: HourRates, currency: Currency, requests_max: int
) -> CostToServe:
    """Add up the events of one currency, in which the rates are."""
    models: dict[tuple[str, str], ModelCost] = {}

    def add_each() -> Iterator[RequestCost]:
        for event in events:
            if event.currency == currency:
                request = _cost_of(event, rates)
                key = event.model, event.upstream
                models.setdefault(key, ModelCost(*key)).add(request, rates=rates)
                yield request

    # At least one, for who asks for none does not go through the events.
    worst = nsmallest(max(1, requests_max), add_each(), key=lambda r: (r.margin, r.event.id))
    return CostToServe([models[key] for key in sorted(models)], worst[:requests_max])


def _cost_of(event: ServedEvent, rates: HourRates) -> RequestCost:
    usage = _usage_of(event)
    gpu_us = usage.count(ENGINE_GPU_MICROSECONDS) if usage else 0
    cpu_us = usage.count(ENGINE_CPU_MICROSECONDS) if usage else 0
    cost = rates.cost_rounded_down(gpu_us=gpu_us, cpu_us=cpu_us)
    return RequestCost(event, gpu_us, cpu_us, cost)


def _usage_of(event: ServedEvent) -> Usage | None:
    try:
        return read_upstream_usage(event.upstream_usage) if event.upstream_usage else None
    except UpstreamUsageMalformed:
        # Its attempt has ended as an upstream's failure; what it took is not known.
        return None
