"""How fast the outbox makes attempts durable, and how fast a crash of a full one is recovered.

`outbox_requests_per_s`: two records a request, each waited for as the gateway waits, by a thousand
clients at once. `outbox_added_ms_p50` and `_p99`: what a request waits for its two syncs, at a
thousand requests a second; the first of them hides behind the upstream's own latency.
`recovery_s_1m`: from the start of a gateway until a million attempts that were left open have their
events on the disk.

Run: python -m benchmarks.outbox [--open 1000000]
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import uvloop
from rich.console import Console

from steelyard.billing.lease_desk import LeaseDesk
from steelyard.clock import SystemClock
from steelyard.eventlog.attempt_records import EventDraft, OpenedAttempt
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.event_draft import close_record, hold_of_attempt
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery import Recovery
from steelyard.ids import new_id
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import text_usage
from steelyard.metering.usage_event import OpenedRecord
from steelyard.money import Currency, Money

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
    parser.add_argument("--open", type=int, default=1_000_000)
    options = parser.parse_args()
    print(json.dumps(measure(requests=options.requests, left_open=options.open)))


def measure(*, requests: int, left_open: int) -> dict[str, Any]:
    """All figures, each from a fresh outbox."""
    figures: dict[str, Any] = {"outbox_requests_per_s": _best_of_three(requests)}
    waits = uvloop.run(_waits_ms(per_s=1_000, seconds=10))
    figures["outbox_added_ms_p50"] = round(statistics.median(waits), 3)
    figures["outbox_added_ms_p99"] = round(statistics.quantiles(waits, n=100)[98], 3)
    figures["recovery_s_1m"] = round(_recovery_s(left_open) * 1_000_000 / left_open, 1)
    figures["recovery_measured_with"] = left_open
    return figures


def _best_of_three(requests: int) -> int:
    found: list[float] = []
    for _ in range(3):
        with _outbox() as outbox:
            seconds = uvloop.run(_serve_many(outbox, requests))
            outbox.close()
        found.append(requests / seconds)
        console.print(f"outbox: {requests / seconds:,.0f} requests a second, two records each")
    return round(max(found))


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
    attempt = _attempt()
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


def _recovery_s(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.outbox"
        outbox = Outbox(path, source="urn:bench:1", bytes_max=PLENTY)
        for opening in [outbox.open(_attempt()) for _ in range(count)]:
            opening.done.result()
        outbox.close()
        started = time.perf_counter()
        outbox = Outbox(path, source="urn:bench:2", bytes_max=PLENTY)
        books = cast("Any", _NoHolds())
        desk = LeaseDesk(books, ttl=timedelta())
        recovery = Recovery(
            books=books,
            leases=LeaseRecovery(desk, outbox, SystemClock(), "urn:bench"),
            outbox=outbox,
            prices=cast("PriceDirectory", None),
            upstreams=[],
            clock=SystemClock(),
            source_prefix="urn:bench",
            patience_s=0,
        )
        asyncio.run(recovery.resolve(recovery.find()))
        seconds = time.perf_counter() - started
        outbox.close()
    console.print(f"recovery: {count:,} open attempts in {seconds:.1f} s")
    return seconds


class _NoHolds:
    """Books in which no hold is open: what is measured is the outbox."""

    def write(self) -> AbstractContextManager[Any]:
        def none(**_: object) -> list[object]:
            return []

        return nullcontext(SimpleNamespace(open_holds=none, leases_of=none))


@contextmanager
def _outbox() -> Generator[Outbox]:
    """An outbox in a folder of its own; the caller closes it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Outbox(Path(folder) / "bench.outbox", source="urn:bench", bytes_max=PLENTY)


def _attempt() -> OpenedAttempt:
    return OpenedAttempt(
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


_HOLD = hold_of_attempt(_attempt())
_USAGE = text_usage(input_tokens=120, output_tokens=40)
_RECORD = close_record(
    OPENED,
    _HOLD,
    meter=AnswerMeter(reported=_USAGE, raw_usage=b'{"prompt_tokens":120,"completion_tokens":40}'),
    usage=_USAGE,
    amount=Money(640_000_000, Currency("USD")),
    end_cause="completed",
    count_source="provider",
    at=NOW,
)


def _draft(attempt: OpenedAttempt) -> EventDraft:
    return EventDraft(attempt.id, NOW, msgspec.structs.replace(_RECORD, hold_id=attempt.id))


if __name__ == "__main__":
    main()
