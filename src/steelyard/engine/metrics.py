"""What Prometheus may read: vLLM's names for what vLLM has, OpenTelemetry's for what it has.

https://docs.vllm.ai/en/stable/usage/metrics.html and
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from steelyard.engine.engine import Engine, EngineStats
    from steelyard.engine.sequence import Sequence

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class EngineMetrics(Collector):
    """Counts are read from the engines when asked; only durations are gathered here."""

    def __init__(self, engines: Callable[[], list[Engine]]) -> None:
        self._engines = engines
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._first_token = self._seconds("vllm:time_to_first_token_seconds")
        self._between_tokens = self._seconds("vllm:inter_token_latency_seconds")
        self._whole = self._seconds("vllm:e2e_request_latency_seconds")
        self._queue = self._seconds("vllm:request_queue_time_seconds")
        self._prompt = self._histogram("vllm:request_prompt_tokens", _TOKENS)
        self._answer = self._histogram("vllm:request_generation_tokens", _TOKENS)
        self._otel_first_token = self._otel("gen_ai_server_time_to_first_token_seconds")
        self._otel_per_token = self._otel("gen_ai_server_time_per_output_token_seconds")
        self._otel_whole = self._otel("gen_ai_server_request_duration_seconds")

    def expose(self) -> bytes:
        """Everything, in Prometheus' text form."""
        return generate_latest(self._registry)

    def observe(self, sequence: Sequence, *, model: str) -> None:
        """Take the times of a sequence that has ended."""
        times, count = sequence.times, sequence.completion_tokens
        self._prompt.labels(model).observe(sequence.prompt_tokens)
        self._answer.labels(model).observe(count)
        self._whole.labels(model).observe(times.ended_s - times.arrived_s)
        self._otel_whole.labels(model).observe(times.ended_s - times.arrived_s)
        if times.started_s is not None:
            self._queue.labels(model).observe(times.started_s - times.arrived_s)
        if times.first_token_s is None:
            return
        first = times.first_token_s - times.arrived_s
        self._first_token.labels(model).observe(first)
        self._otel_first_token.labels(model).observe(first)
        if count > 1:
            between = (times.ended_s - times.first_token_s) / (count - 1)
            self._between_tokens.labels(model).observe(between)
            self._otel_per_token.labels(model).observe(between)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """What the engines count by themselves."""
        stats = [
            (engine.model.name, engine.device_kind, engine.stats()) for engine in self._engines()
        ]
        for name, meaning, read in _GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=["model_name"])
            for model, _, found in stats:
                gauge.add_metric([model], read(found))
            yield gauge
        for name, meaning, read in _COUNTERS:
            counter = CounterMetricFamily(name, meaning, labels=["model_name"])
            for model, _, found in stats:
                counter.add_metric([model], read(found))
            yield counter
        yield _ends(stats)
        yield _device_time(stats)

    def _seconds(self, name: str) -> Histogram:
        return self._histogram(name, _SECONDS)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        meaning = "Of each sequence that has ended."
        return Histogram(name, meaning, ["model_name"], registry=self._registry, buckets=buckets)

    def _otel(self, name: str) -> Histogram:
        meaning = "Of each sequence that has ended."
        label = ["gen_ai_request_model"]
        return Histogram(name, meaning, label, registry=self._registry, buckets=_SECONDS)


_Read = Callable[["EngineStats"], float]
_GAUGES: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("vllm:num_requests_running", "Sequences in the batch.", lambda s: s.running),
    ("vllm:num_requests_waiting", "Sequences that wait for a place.", lambda s: s.waiting),
    (
        "vllm:kv_cache_usage_perc",
        "Blocks that sequences hold, as a share of all.",
        lambda s: s.blocks_held / s.blocks,
    ),
)
_COUNTERS: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("vllm:prompt_tokens", "Prompt tokens of ended sequences.", lambda s: s.prompt_tokens),
    ("vllm:generation_tokens", "Tokens that ended sequences gave.", lambda s: s.completion_tokens),
    ("vllm:prefix_cache_queries", "Prompt tokens looked for.", lambda s: s.prompt_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", lambda s: s.cached_tokens),
    ("vllm:num_preemptions", "Sequences sent back for want of blocks.", lambda s: s.preemptions),
    ("steelyard_engine_steps", "Steps taken.", lambda s: s.steps),
    ("steelyard_engine_seconds", "Time spent in steps.", lambda s: s.engine_us / 1e6),
)


def _ends(stats: list[tuple[str, str, EngineStats]]) -> CounterMetricFamily:
    labels = ["model_name", "finished_reason"]
    ends = CounterMetricFamily(
        "vllm:request_success", "Sequences by how they ended.", labels=labels
    )
    for model, _, found in stats:
        ends.add_metric([model, "stop"], found.stopped)
        ends.add_metric([model, "length"], found.finished - found.stopped)
        ends.add_metric([model, "abort"], found.cancelled)
        ends.add_metric([model, "error"], found.failed)
    return ends


def _device_time(stats: list[tuple[str, str, EngineStats]]) -> CounterMetricFamily:
    labels = ["model_name", "device"]
    meaning = "Time of the GPU, or of the process's CPUs, in steps."
    device = CounterMetricFamily("steelyard_engine_device_seconds", meaning, labels=labels)
    for model, kind, found in stats:
        device.add_metric([model, kind], found.device_us / 1e6)
    return device
