"""How fast a gateway that starts again closes what a crash left open.

`recovery_s_1m`: from opening the outbox until a million attempts that were left open have their
events on the disk. Every one of them is known to the upstream's log, which is asked over HTTP in
another process, and is rated by a price book; they were held from leases, or with `--placed` have
their holds in books on SQLite. Fewer are scaled up.

Run: python -m benchmarks.recovery [--open 1000000] [--placed]
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop
from aiohttp import web
from rich.console import Console
from tests.postgres_server import free_port

from benchmarks.outbox import OPENED, PLENTY, an_attempt
from benchmarks.worker import Bench, books_on, place
from steelyard.billing.lease_desk import LeaseDesk
from steelyard.clock import SystemClock
from steelyard.collection import collect_seldom
from steelyard.eventlog.attempt_records import OpenedAttempt
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery import Recovery
from steelyard.gateway.snapshot import Snapshot
from steelyard.gateway.upstreams.base import Timeouts
from steelyard.gateway.upstreams.habits import ENGINE
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream
from steelyard.ledger.hold import Draw, Hold
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import PriceVersion
from steelyard.timestamp import read_timestamp

console = Console(stderr=True, highlight=False)
WRITTEN_AT_ONCE = 10_000
UPSTREAM = "engine"
SOURCE = "urn:steelyard:gateway:crashed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--open", type=int, default=1_000_000)
    parser.add_argument("--placed", action="store_true", help="with their holds in the books")
    options = parser.parse_args()
    print(json.dumps(measure(options.open, are_placed=options.placed)))


def measure(count: int, *, are_placed: bool = False) -> dict[str, float]:
    """The figures, from an outbox and books that are made for them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with (
        _upstream() as url,
        tempfile.TemporaryDirectory() as folder,
        books_on("sqlite", Path(folder)) as bench,
    ):
        path = Path(folder) / "crashed.outbox"
        _leave_open(path, bench, count, are_placed=are_placed)
        started, worked = time.perf_counter(), time.process_time()
        outbox = Outbox(path, source=f"{SOURCE}:2", bytes_max=PLENTY)
        opened_s = time.perf_counter() - started
        uvloop.run(_recover(bench, outbox, url))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - worked
        assert outbox.figures().open_attempts == 0, "every attempt has its event"
        outbox.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    console.print(
        f"recovery: {count:,} open attempts in {seconds:.1f} s, of which {opened_s:.1f} s before "
        f"the first request; {cpu_s:.1f} s of processor time, {memory} MB at most"
    )
    return {
        "recovery_s_1m": round(seconds * 1_000_000 / count, 1),
        "recovery_cpu_s_1m": round(cpu_s * 1_000_000 / count, 1),
        "recovery_measured_with": count,
        "recovery_memory_mb": memory,
    }


async def _recover(bench: Bench, outbox: Outbox, url: str) -> None:
    """What a gateway does when it starts."""
    clock = SystemClock()
    books, prices = bench.stores.books, bench.stores.prices
    snapshot = Snapshot[Sequence[PriceVersion]](prices.versions, prices.revision)
    upstream = OpenAIHttpUpstream(
        UPSTREAM,
        url,
        count_source="engine",
        habits=ENGINE,
        timeouts=Timeouts(connect_s=5.0, first_token_s=60.0, between_tokens_s=60.0),
        connections_max=10,
    )
    desk = LeaseDesk(books, ttl=timedelta(seconds=10))
    recovery = Recovery(
        books=books,
        leases=LeaseRecovery(desk, outbox, clock, SOURCE),
        outbox=outbox,
        prices=PriceDirectory(snapshot, clock),
        upstreams=[upstream],
        clock=clock,
        source_prefix=SOURCE,
        patience_s=60,
    )
    await snapshot.refresh()
    async with upstream:
        left_open = recovery.find()
        collect_seldom()
        await recovery.resolve(left_open)


def _leave_open(path: Path, bench: Bench, count: int, *, are_placed: bool) -> None:
    """So many attempts that a gateway opened before it was killed."""
    organisation_id = bench.organisation.id
    opened = msgspec.structs.replace(
        OPENED,
        organisation_id=organisation_id,
        payer_id=organisation_id,
        upstream=UPSTREAM,
        price_version=bench.price_version,
    )
    opened_json = msgspec.Raw(msgspec.json.encode(opened))
    outbox = Outbox(path, source=f"{SOURCE}:1", bytes_max=PLENTY)
    for start in range(0, count, WRITTEN_AT_ONCE):
        attempts = [
            an_attempt(source=f"{SOURCE}:1", payer_id=organisation_id, opened=opened_json)
            for _ in range(min(WRITTEN_AT_ONCE, count - start))
        ]
        for pending in [outbox.open(attempt) for attempt in attempts]:
            pending.done.result()
        if are_placed:
            draws = (Draw(bench.grant.id, attempts[0].held),)
            place(bench, [_as_hold(one, draws) for one in attempts])
    outbox.close()


def _as_hold(attempt: OpenedAttempt, draws: Sequence[Draw]) -> Hold:
    return Hold(
        id=attempt.id,
        payer_id=attempt.payer_id,
        amount=Money(attempt.held, Currency(attempt.currency)),
        source=attempt.source,
        placed_at=read_timestamp(attempt.placed_at),
        opened=bytes(attempt.opened).decode(),
        draws=draws,
    )


@contextmanager
def _upstream() -> Generator[str]:
    """A process whose request log knows every request; gives its URL."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_serve_log, args=(port,))
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def _serve_log(port: int) -> None:
    async def requests(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read())["request_ids"]
        told = ",".join([logged % request_id for request_id in asked])
        return web.Response(text=f'{{"requests":[{told}]}}', content_type="application/json")

    # What is measured is the gateway: its upstream answers out of a form.
    logged = msgspec.json.encode(_logged("%s")).decode()
    application = web.Application(client_max_size=2**24)
    application.add_routes([web.post("/requests", requests)])
    web.run_app(application, host="127.0.0.1", port=port, print=None)


def _logged(request_id: str) -> dict[str, Any]:
    """As the engine tells it."""
    counts = {"prompt_tokens": 120, "cached_tokens": 30, "completion_tokens": 40}
    ended = {"state": "ended", "index": 0, "end": "cancelled", "token_ids_sha256": "0" * 64}
    return {
        "request_id": request_id,
        "model": "bench",
        "state": "ended",
        "prompt_tokens": 120,
        "completion_tokens": 40,
        "answers": [{**ended, **counts, "engine_us": 8123, "device_us": 8090, "device": "cpu"}],
    }


if __name__ == "__main__":
    main()
