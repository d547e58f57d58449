"""The store of published price books: canonical bytes, addressed by their hash."""

import hashlib
import json
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from steelyard.pricing.price_book import PriceVersion, canonical_bytes, read_canonical
from steelyard.pricing.store import PriceVersionTaken
from steelyard.storage import schema
from steelyard.storage.access_store import bump_revision, read_revision
from steelyard.storage.database import Database

TOPIC = "prices"


class SqlPriceStore:
    """Implements PriceStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, version: PriceVersion, *, at: datetime) -> None:
        table = schema.price_versions
        try:
            with self._database.write() as connection:
                last = connection.execute(select(func.max(table.c.publication))).scalar_one()
                row = {
                    "sha256": version.sha256,
                    "name": version.book.name,
                    "publication": (last or 0) + 1,
                    "published_at": at,
                    "canonical": canonical_bytes(version.book).decode(),
                }
                connection.execute(insert(table), row)
                bump_revision(connection, TOPIC)
        except IntegrityError as error:
            raise PriceVersionTaken(
                f"a price book {version.book.name!r} or one with the same content is published "
                "already; a published book never changes: give the new prices a new name"
            ) from error

    def versions(self) -> list[PriceVersion]:
        table = schema.price_versions
        query = select(table.c.sha256, table.c.canonical).order_by(table.c.publication)
        with self._database.read() as connection:
            return [_read_version(row.sha256, row.canonical) for row in connection.execute(query)]

    def revision(self) -> int:
        with self._database.read() as connection:
            return read_revision(connection, TOPIC)


def _read_version(sha256: str, canonical: str) -> PriceVersion:
    found = hashlib.sha256(canonical.encode()).hexdigest()
    assert found == sha256, (
        f"price version {sha256} was tampered with: its content hashes to {found}"
    )
    return PriceVersion(sha256, read_canonical(json.loads(canonical)))
