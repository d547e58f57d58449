"""How fast the outbox makes attempts durable.


`outbox_requests_per_s`: two records a request, each waited for as the gateway waits, by a thousand
clients at once. `outbox_added_ms_p50` and `_p99`: what a request waits for its two syncs, at a
thousand requests a second; the first of them hides behind the upstream's own latency.

Run: python -m benchmarks.outbox
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from rich.console import Console

from steelyard.eventlog.attempt_records import EventDraft, OpenedAttempt
from steelyard.eventlog.outbox import Outbox
from steelyard.ids import new_id
from steelyard.metering.usage import text_usage
from steelyard.metering.usage_event import OpenedRecord, RecordEnding, join_record, write_meters
from steelyard.timestamp import write_timestamp

console = Console(stderr=True, highlight=False)
NOW = datetime(2026, 11, 24, tzinfo=UTC)
AT_ONCE = 1_000
PLENTY = 2**40
OPENED = OpenedRecord(
    request_id="01a20be2-6f1b-774b-814c-cac7546f0c8a",
    organisation_id="01a20be2-386e-70a4-85a5-df60edd73784",
    department_id="01a20be2-3e0c-7631-a258-ba7967645423",
    key_id="01a20be2-43fc-7254-83f6-1419c5ac7de8",
    payer_id="01a20be2-386e-70a4-85a5-df60edd73784",
    endpoint="/v1/chat/completions",
    is_streamed=True,
    model_requested="bench",
    model_served="bench",
    upstream="provider",
    admitted_at="2026-11-24T00:00:00.000000Z",
    price_version="0" * 64,
    currency="USD",
    request_digest="0" * 64,
    build="bench",
)
OPENED_JSON = msgspec.Raw(msgspec.json.encode(OPENED))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    print(json.dumps(measure(options.requests)))


def measure(requests: int) -> dict[str, float]:
    """All figures, each from a fresh outbox."""
    per_s, cpu_us = _best_of_three(requests)
    figures: dict[str, float] = {"outbox_requests_per_s": per_s, "outbox_cpu_us": cpu_us}
    waits = uvloop.run(_waits_ms(per_s=1_000, seconds=10))
    figures["outbox_added_ms_p50"] = round(statistics.median(waits), 3)
    figures["outbox_added_ms_p99"] = round(statistics.quantiles(waits, n=100)[98], 3)
    return figures


def _best_of_three(requests: int) -> tuple[int, float]:
    """Requests a second, and microseconds of processor time a request, clients included."""
    per_s: list[float] = []
    cpu_us: list[float] = []
    for _ in range(3):
        with _outbox() as outbox:
            worked = time.process_time()
            seconds = uvloop.run(_serve_many(outbox, requests))
            cpu_us.append((time.process_time() - worked) / requests * 10**6)
            outbox.close()
        per_s.append(requests / seconds)
        console.print(f"outbox: {requests / seconds:,.0f} requests a second, two records each")
    return round(max(per_s)), round(min(cpu_us), 1)


async def _serve_many(outbox: Outbox, requests: int) -> float:
    """Seconds for so many requests by a thousand clients at once, each waiting for its opening and
    then for its end."""

    async def ask(count: int) -> None:
        for _ in range(count):
            await _serve_one(outbox)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(AT_ONCE):
            clients.create_task(ask(requests // AT_ONCE))
    return time.perf_counter() - started


async def _serve_one(outbox: Outbox) -> None:
    attempt = an_attempt()
    await outbox.durable(outbox.open(attempt))
    await outbox.durable(outbox.append(_draft(attempt)))


async def _waits_ms(*, per_s: int, seconds: float) -> list[float]:
    """What each request waits for both of its syncs, at a steady rate of requests."""
    waits: list[float] = []

    async def ask() -> None:
        asked = time.perf_counter()
        await _serve_one(outbox)
        waits.append((time.perf_counter() - asked) * 1000)

    with _outbox() as outbox:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            for number in range(round(per_s * seconds)):
                await asyncio.sleep(max(0.0, started + number / per_s - time.perf_counter()))
                requests.create_task(ask())
        outbox.close()
    return waits


@contextmanager
def _outbox() -> Generator[Outbox]:
    """An outbox in a folder of its own; the caller closes it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Outbox(Path(folder) / "bench.outbox", source="urn:bench", bytes_max=PLENTY)


def an_attempt(**changes: Any) -> OpenedAttempt:
    """An attempt as a gateway opens it, with an id of its own."""
    attempt = OpenedAttempt(
        id=new_id(),
        source="urn:bench",
        payer_id=OPENED.payer_id,
        currency="USD",
        held=5_000_000_000,
        placed_at="2026-11-24T00:00:00.000000Z",
        bound_input=100,
        bound_output=100,
        opened=OPENED_JSON,
    )
    return msgspec.structs.replace(attempt, **changes) if changes else attempt


_ENDING = RecordEnding(
    hold_id=new_id(),
    held="0.005",
    meters=write_meters(text_usage(input_tokens=120, output_tokens=40)),
    upstream_usage=msgspec.Raw(b'{"prompt_tokens":120,"completion_tokens":40}'),
    count_source="provider",
    end_cause="completed",
    first_token_at=None,
    ended_at=write_timestamp(NOW),
    amount="0.00064",
    output_digest="0" * 64,
)


def _draft(attempt: OpenedAttempt) -> EventDraft:
    ending = msgspec.structs.replace(_ENDING, hold_id=attempt.id)
    return EventDraft(
        attempt.id,
        OPENED.payer_id,
        OPENED.organisation_id,
        ending.ended_at,
        ending.amount,
        join_record(bytes(attempt.opened), ending),
    )


if __name__ == "__main__":
    main()
