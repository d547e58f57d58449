"""How fast the worker brings usage events into the books, durable and exactly once.

Fills an outbox with real events of one organisation, with their holds in the books, and lets the
worker settle them: read, decode, check, hash, rate, end the hold, post, sum up, commit. The rate at
a size is that of the last events up to it; those before are put into the books as the worker would
have, without an outbox. The peer in the same run is the database alone, which takes the finished
event rows and nothing else in batches of the same size: the ratio says how much of the machine is
left to the rest.

Run: make bench-worker            up to a million events
     make bench-worker FULL=1     up to ten million
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import structlog
from rich.console import Console
from sqlalchemy import MetaData
from sqlalchemy.sql.elements import quoted_name
from tests.drafts import draft_of
from tests.postgres_server import create_database, find_binaries, running_postgres

from steelyard.access.tenant import Department, Organisation
from steelyard.access.virtual_key import VirtualKey
from steelyard.app.stores import Stores, open_stores
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.books import BookedEvent
from steelyard.billing.event_preparation import (
    PreparedBatch,
    PreparedEvent,
    UsagePath,
    prepare_batch,
)
from steelyard.billing.hourly_sums import HOUR_CHARACTERS, ChargeWriter, Sheet, sum_usage
from steelyard.billing.settlement import settle_batch
from steelyard.billing.statement import Period, make_statement
from steelyard.entrypoints.worker_process import Worker
from steelyard.eventlog.attempt_records import EventDraft, write_event
from steelyard.eventlog.disk import LocalDisk
from steelyard.eventlog.outbox_reader import OutboxReader
from steelyard.eventlog.segment_writer import SegmentWriter
from steelyard.ids import new_id
from steelyard.ledger.grant import Grant
from steelyard.ledger.hold import Draw, Hold
from steelyard.ledger.transaction import Command, place_holds, top_up
from steelyard.metering.usage_event import UsageRecord, hash_event
from steelyard.money import Currency, Money, write_decimal
from steelyard.pricing.price_book import publishable_version
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.settings import Settings, read_settings
from steelyard.storage import schema
from steelyard.storage.bulk import BulkInsert
from steelyard.timestamp import write_timestamp

console = Console(stderr=True, highlight=False)
USD = Currency("USD")
MONTH = datetime(2026, 10, 1, tzinfo=UTC)
HOURS = 24 * 31
BATCH = 10_000
# The rate is that of so many events: some seconds of work.
MEASURED = 200_000
HELD = 5_000_000_000
INPUT_PICOS, OUTPUT_PICOS = 2_000_000, 10_000_000
MODELS = ("small", "large")
# A server for work, not for tests: it syncs every commit to the disk.
POSTGRES_OPTIONS = "-c fsync=on -c shared_buffers=512MB -c max_wal_size=4GB"
BOOK = """
schema: steelyard.price-book/v1
name: bench
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: "*"
    prices:
      input.text: { amount: 2, per: 1M }
      output.text: { amount: 10, per: 1M }
"""


@dataclass
class Bench:
    """One set of books with one organisation in it, and what was measured on it."""

    name: str
    stores: Stores
    folder: Path
    organisation: Organisation
    keys: list[VirtualKey]
    grant: Grant
    price_version: str
    events_per_s: dict[int, float] = field(default_factory=dict[int, float])
    rows_only_per_s: dict[int, float] = field(default_factory=dict[int, float])
    statement_ms: dict[int, float] = field(default_factory=dict[int, float])
    stages_us: dict[str, float] = field(default_factory=dict[str, float])


def main() -> None:
    options = _parse_options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sizes = [10**power for power in range(4, 8 if options.full else 7) if 10**power <= options.most]
    benches: list[Bench] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.databases.split(","):
            with books_on(name, Path(folder) / name) as bench:
                _measure(bench, sizes)
            benches.append(bench)
    print(json.dumps(_figures(benches)))


def _measure(bench: Bench, sizes: list[int]) -> None:
    done = 0
    _measure_stages(bench)
    worker = Worker(bench.stores, bench.folder, batch_max=BATCH)
    # A worker that has been at work for a while: its second process is running.
    fill_outbox(bench, first=0, count=2 * BATCH, of=10**6)
    _settle(worker)
    for size in sizes:
        measured = min(size - done, MEASURED)
        _put_into_books(bench, first=done, count=size - done - measured, of=size)
        path = fill_outbox(bench, first=size - measured, count=measured, of=size)
        bench.events_per_s[size] = measured / _settle(worker)
        done = size
        shutil.rmtree(path)
        bench.rows_only_per_s[size] = _rows_only(bench, min(size, MEASURED))
        bench.statement_ms[size] = _statement_ms(bench)
        console.print(
            f"{bench.name:<10} {size:>10,} events: {bench.events_per_s[size]:>9,.0f} a second "
            f"(rows alone {bench.rows_only_per_s[size]:>9,.0f}), "
            f"statement {bench.statement_ms[size]:.0f} ms"
        )
    worker.close()


def _settle(worker: Worker) -> float:
    """Seconds until the worker has nothing left to do."""
    started = time.perf_counter()
    while worker.work():
        pass
    return time.perf_counter() - started


def _measure_stages(bench: Bench) -> None:
    """Where the time goes, one stage after the other in one process."""
    path = fill_outbox(bench, first=0, count=3 * BATCH, of=10**6)
    reader = OutboxReader(path)
    rating = BatchRating(bench.stores.audit.price_documents())
    stages: dict[str, list[float]] = {"read": [], "prepare": [], "post": [], "commit": []}
    for number in range(3):
        moments = [time.perf_counter()]
        records = reader.read_after(number * BATCH, limit=BATCH)
        moments.append(time.perf_counter())
        batch = prepare_batch(records, log_id=reader.log_id, rating=rating)
        moments.append(time.perf_counter())
        with bench.stores.books.write() as unit:
            settle_batch(batch, unit, at=bench.stores.clock.now())
            moments.append(time.perf_counter())
        moments.append(time.perf_counter())
        for stage, start, end in zip(stages, moments, moments[1:], strict=False):
            stages[stage].append((end - start) / BATCH * 10**6)
    reader.close()
    shutil.rmtree(path)
    bench.stages_us = {stage: round(min(found), 2) for stage, found in stages.items()}
    console.print(f"{bench.name:<10} microseconds an event: {bench.stages_us}")


def _rows_only(bench: Bench, count: int) -> float:
    """The database alone: finished event rows of the same shape, in batches of the same size."""
    table = schema.usage_events.to_metadata(MetaData(), name="bench_rows")
    for named in (*table.indexes, *table.constraints):
        named.name = quoted_name(f"bench_{named.name}", quote=False)
    insert = BulkInsert(table)
    moment = write_timestamp(MONTH)
    charges = '[["input.text",100,2000000],["output.text",30,10000000]]'
    booked = (500_000_000, charges, f"{new_id()}:500000000", "", "settled")
    rows = [
        (new_id(), 1, n, b"\0" * 32, 1, 1, n % BATCH, moment, moment, *booked) for n in range(count)
    ]
    with bench.stores.database.write() as connection:
        table.create(connection)
    started = time.perf_counter()
    for start in range(0, count, BATCH):
        with bench.stores.database.write() as connection:
            insert.run(connection, rows[start : start + BATCH])
    seconds = time.perf_counter() - started
    with bench.stores.database.write() as connection:
        table.drop(connection)
    return count / seconds


def _statement_ms(bench: Bench) -> float:
    period = Period(MONTH, MONTH + timedelta(hours=HOURS))
    found: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        with bench.stores.reports.snapshot() as snapshot:
            made = make_statement(snapshot, bench.organisation, period=period)
        found.append((time.perf_counter() - started) * 1000)
        assert made.lines, "the statement has lines"
    return statistics.median(found)


def fill_outbox(bench: Bench, *, first: int, count: int, of: int) -> Path:
    """An outbox with so many events, and their holds in the books."""
    path = bench.folder / f"{new_id()}.outbox"
    source = f"urn:steelyard:gateway:bench:{new_id()}"
    outbox = SegmentWriter(path, bytes_max=2**40, disk=LocalDisk())
    previous_hash, sequence = "0" * 64, 0
    for start in range(0, count, BATCH):
        bodies: list[bytes] = []
        holds: list[Hold] = []
        for number in range(first + start, first + min(start + BATCH, count)):
            sequence += 1
            draft, hold = _event(bench, number, of=of, source=source)
            body = write_event(draft, source=source, sequence=sequence, previous_hash=previous_hash)
            previous_hash = hash_event(body)
            bodies.append(body)
            holds.append(hold)
        outbox.write(bodies, [])
        place(bench, holds)
    outbox.close()
    return path


def _put_into_books(bench: Bench, *, first: int, count: int, of: int) -> None:
    """Settled events as they stand in the books, a batch at a time, without holds and postings."""
    source = f"urn:steelyard:gateway:bench:{new_id()}"
    paths = [_path(bench, key, model) for key in bench.keys for model in MODELS]
    log_id, sequence = new_id(), 0
    sheet = (("input.text", INPUT_PICOS), ("output.text", OUTPUT_PICOS))
    charges = ChargeWriter()
    for start in range(first, first + count, BATCH):
        booked: list[BookedEvent] = []
        funding: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
        counted: list[tuple[tuple[int, str, Sheet], tuple[int, int]]] = []
        for place, number in enumerate(range(start, min(start + BATCH, first + count))):
            sequence += 1
            key, model, ended_at, counts = _use(bench, number, of=of)
            picos = sum(n * unit for n, (_, unit) in zip(counts, sheet, strict=True))
            moment, path = write_timestamp(ended_at), key * len(MODELS) + model
            counted.append(((path, moment[:HOUR_CHARACTERS], sheet), counts))
            owner = bench.organisation.id, bench.organisation.id
            funding[(*owner, moment[:HOUR_CHARACTERS], bench.grant.id, USD)] += picos
            event_id = new_id()
            event = PreparedEvent(
                event_id,
                event_id,
                hashlib.sha256(event_id.encode()).digest(),
                source,
                sequence,
                path,
                moment,
                picos,
                charges.write(sheet, counts),
                None,
                place,
            )
            spent = f"{bench.grant.id}:{picos}"
            booked.append(BookedEvent(event, moment, picos, spent, "", "settled"))
        batch = PreparedBatch(
            log_id=log_id,
            first_position=sequence - len(booked) + 1,
            record_count=len(booked),
            events=[],
            paths=paths,
            malformed=[],
            usage=sum_usage(counted),
            # The bytes of a batch take a twelfth of their size when they are compressed.
            segment=os.urandom(100 * len(booked)),
        )
        with bench.stores.books.write() as unit:
            path_ids = unit.path_ids(paths)
            unit.insert_events(booked, batch, path_ids=path_ids, at=MONTH)
            unit.add_to_hours(batch.usage, funding, path_ids=path_ids)


def _path(bench: Bench, key: VirtualKey, model: str) -> UsagePath:
    return UsagePath(
        organisation_id=bench.organisation.id,
        department_id=key.department.id,
        project_id="",
        key_id=key.id,
        payer_id=bench.organisation.id,
        model=model,
        upstream="engine",
        currency=USD,
        price_version=bench.price_version,
    )


def _use(bench: Bench, number: int, *, of: int) -> tuple[int, int, datetime, tuple[int, int]]:
    """Which key asked which model somewhere in the month, and the tokens of prompt and answer."""
    ended_at = MONTH + timedelta(hours=HOURS) * number / of
    counts = 20 + number % 480, 5 + number % 120
    return number % len(bench.keys), number % 7 % len(MODELS), ended_at, counts


def place(bench: Bench, holds: list[Hold]) -> None:
    """Set the holds aside, as admission does."""
    transaction = place_holds(new_id(), holds, at=MONTH)
    assert transaction is not None
    with bench.stores.books.write() as unit:
        unit.post([transaction])
        unit.insert_holds(holds)


def _event(bench: Bench, number: int, *, of: int, source: str) -> tuple[EventDraft, Hold]:
    """The event of an answer somewhere in the month, as the gateway writes it, and its hold."""
    key_number, model_number, ended_at, (prompt, answer) = _use(bench, number, of=of)
    key, model = bench.keys[key_number], MODELS[model_number]
    amount = prompt * INPUT_PICOS + answer * OUTPUT_PICOS
    hold_id = new_id()
    digest = hashlib.sha256(hold_id.encode()).hexdigest()
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    record = UsageRecord(
        request_id=new_id(),
        organisation_id=bench.organisation.id,
        department_id=key.department.id,
        key_id=key.id,
        payer_id=bench.organisation.id,
        endpoint="/v1/chat/completions",
        is_streamed=True,
        model_requested=model,
        model_served=model,
        upstream="engine",
        admitted_at=write_timestamp(ended_at - timedelta(seconds=2)),
        price_version=bench.price_version,
        currency=USD,
        request_digest=digest,
        build="bench",
        hold_id=hold_id,
        held=write_decimal(HELD),
        meters={"input.text": str(prompt), "output.text": str(answer)},
        upstream_usage=msgspec.Raw(msgspec.json.encode(usage)),
        count_source="engine",
        end_cause="completed",
        first_token_at=write_timestamp(ended_at - timedelta(seconds=1)),
        ended_at=write_timestamp(ended_at),
        amount=write_decimal(amount),
        output_digest=digest,
    )
    hold = Hold(
        id=hold_id,
        payer_id=bench.organisation.id,
        amount=Money(HELD, USD),
        source=source,
        placed_at=ended_at,
        opened="{}",
        draws=(Draw(bench.grant.id, HELD),),
    )
    return draft_of(hold_id, record), hold


@contextmanager
def books_on(name: str, folder: Path) -> Generator[Bench]:
    """Fresh books on SQLite, or on a PostgreSQL server of their own that does sync to disk."""
    if name == "sqlite":
        yield _found(name, open_stores(_settings(folder, None), should_migrate=True), folder)
        return
    binaries = find_binaries()
    assert binaries is not None, "PostgreSQL's server is not installed"
    with running_postgres(binaries, options=POSTGRES_OPTIONS) as server:
        settings = _settings(folder, create_database(server, "bench"))
        yield _found(name, open_stores(settings, should_migrate=True), folder)


def _settings(folder: Path, database_url: str | None) -> Settings:
    return read_settings(data_dir=folder / "data", database_url=database_url)


def _found(name: str, stores: Stores, folder: Path) -> Bench:
    """An organisation with five departments, four keys each, and money enough."""
    organisation = Organisation(new_id(), "bench", USD, MONTH)
    stores.access.insert_organisation(organisation)
    keys: list[VirtualKey] = []
    for department_name in ("law", "press", "research", "sales", "support"):
        department = Department(new_id(), organisation, department_name, "organisation", MONTH)
        stores.access.insert_department(department)
        for number in range(4):
            key = VirtualKey(
                id=new_id(),
                name=f"key-{number}",
                department=department,
                hint="",
                created_at=MONTH,
                revoked_at=None,
            )
            stores.access.insert_key(key, secret_hash=new_id())
            keys.append(key)
    version = publishable_version(read_price_book(BOOK))
    stores.prices.publish(version, at=MONTH)
    grant = Grant(new_id(), organisation.id, "paid", USD, MONTH)
    command = Command(new_id(), MONTH, "bench", "bench")
    with stores.books.write() as unit:
        unit.insert_grant(grant)
        unit.post([top_up(Money(9_000_000 * 10**12, USD), grant=grant, command=command)])
    return Bench(name, stores, folder, organisation, keys, grant, version.sha256)


def _figures(benches: list[Bench]) -> dict[str, object]:
    figures: dict[str, object] = {}
    for bench in benches:
        largest = max(bench.events_per_s)
        middle = 10**6 if 10**6 in bench.events_per_s else largest
        figures[f"{bench.name}_events_per_s"] = round(bench.events_per_s[middle])
        figures[f"{bench.name}_ratio_to_rows_only"] = round(
            bench.events_per_s[middle] / bench.rows_only_per_s[middle], 3
        )
        figures[f"{bench.name}_events_per_s_by_size"] = {
            size: round(value) for size, value in bench.events_per_s.items()
        }
        figures[f"{bench.name}_statement_ms_by_size"] = {
            size: round(value, 1) for size, value in bench.statement_ms.items()
        }
        figures[f"{bench.name}_stages_us"] = bench.stages_us
        figures.setdefault("statement_ms_1m", round(bench.statement_ms[middle], 1))
    return {**figures, "batch": BATCH, "cores": os.cpu_count()}


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--most", type=int, default=10**7, help="no more events than these")
    parser.add_argument("--full", action="store_true", help="go on to ten million events")
    parser.add_argument("--databases", default="sqlite,postgres", help="which of the two")
    return parser.parse_args()


if __name__ == "__main__":
    main()
