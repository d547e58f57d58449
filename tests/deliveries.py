"""What an outbox has, brought to the books by hand: as it is, or changed on its way."""

import msgspec

from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.books import BooksUnit
from steelyard.billing.event_preparation import prepare_batch
from steelyard.billing.settlement import settle_batch
from steelyard.eventlog.log import LogRecord
from steelyard.eventlog.outbox_reader import OutboxReader, find_outboxes
from steelyard.metering.usage_event import UsageEvent
from tests.world import World


def records_of(world: World) -> list[LogRecord]:
    reader = OutboxReader(find_outboxes(world.settings.outbox_dir)[0])
    records = reader.read_after(0, limit=1000)
    reader.close()
    return records


def deliver(world: World, records: list[LogRecord], *, log_id: str) -> dict[str, int]:
    with world.stores.books.write() as unit:
        return settle_records(world, records, unit, log_id=log_id)


def settle_records(
    world: World, records: list[LogRecord], unit: BooksUnit, *, log_id: str
) -> dict[str, int]:
    rating = BatchRating(world.stores.audit.price_documents())
    batch = prepare_batch(records, log_id=log_id, rating=rating)
    return settle_batch(batch, unit, at=world.clock.now())


def with_changes(event: UsageEvent, **changes: object) -> UsageEvent:
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **changes))


def stands_on(world: World, account_id: str) -> int:
    with world.stores.audit.snapshot() as snapshot:
        return snapshot.balances().get(account_id, 0)
