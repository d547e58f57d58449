"""What upstreams earned and cost, from hourly sums, from what was recorded, and from events."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, func, select

from steelyard.billing.cost_to_serve import ServedEvent
from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.billing.statement import Period
from steelyard.billing.upstream_cost import UpstreamMoney
from steelyard.ledger.chart import read_account_id
from steelyard.ledger.transaction import upstream_cost_reference
from steelyard.metering.event_segment import unpack_bodies
from steelyard.metering.usage_event import decode_event
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.fund_unit import SqlFundUnit
from steelyard.timestamp import write_timestamp

_hours, _paths, _accounts = schema.usage_hours, schema.usage_paths, schema.ledger_accounts
_transactions, _postings = schema.ledger_transactions, schema.ledger_postings
_events, _segments = schema.usage_events, schema.event_segments
ROWS_AT_ONCE: Final = 5_000
_COST_TEMPLATES: Final = ("record_upstream_cost", "credit_upstream_cost")


class SqlUpstreamReports:
    """Implements UpstreamReports and ServedReports."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def earned(self, period: Period) -> Mapping[UpstreamMoney, int]:
        first, last = (write_timestamp(m)[:HOUR_CHARACTERS] for m in (period.start, period.end))
        query = (
            select(_paths.c.upstream, _paths.c.currency, func.sum(_hours.c.picos).label("picos"))
            .join(_paths, _paths.c.id == _hours.c.path_id)
            # Nothing is billed before it is used.
            .where(
                _hours.c.billed_hour >= first,
                _hours.c.used_hour >= first,
                _hours.c.used_hour < last,
            )
            .group_by(_paths.c.upstream, _paths.c.currency)
        )
        return {
            (row.upstream, Currency(row.currency)): int(row.picos)
            for row in self.connection.execute(query)
        }

    def recorded(self, month: str) -> Mapping[UpstreamMoney, int]:
        of_month = upstream_cost_reference("", month)
        query = (
            select(_postings.c.account_id, func.sum(_postings.c.picos).label("picos"))
            .join(_transactions, _transactions.c.id == _postings.c.transaction_id)
            .where(
                _transactions.c.template.in_(_COST_TEMPLATES),
                _transactions.c.reference.startswith(of_month, autoescape=True),
                _postings.c.account_id.startswith("upstream_cost:", autoescape=True),
            )
            .group_by(_postings.c.account_id)
        )
        rows = self.connection.execute(query)
        return {_upstream_of(row.account_id): -int(row.picos) for row in rows}

    def payable(self) -> Mapping[UpstreamMoney, int]:
        query = select(_accounts.c.id, _accounts.c.balance).where(
            _accounts.c.kind == "upstream_payable"
        )
        return {_upstream_of(row.id): row.balance for row in self.connection.execute(query)}

    def served(self, period: Period) -> Iterator[ServedEvent]:
        query = (
            select(_events, _paths.c.model, _paths.c.upstream, _paths.c.currency)
            .join(_paths, _paths.c.id == _events.c.path_id)
            # Nothing is billed before it is used.
            .where(
                _events.c.billed_at >= period.start,
                _events.c.ended_at >= period.start,
                _events.c.ended_at < period.end,
            )
            .order_by(_events.c.segment_id, _events.c.place)
            .execution_options(yield_per=ROWS_AT_ONCE)
        )
        segment, bodies = 0, list[bytes]()
        for row in self.connection.execute(query):
            if row.segment_id != segment:
                segment, bodies = row.segment_id, self._bodies(row.segment_id)
            place: int = row.place
            yield ServedEvent(
                id=row.id,
                model=row.model,
                upstream=row.upstream,
                currency=Currency(row.currency),
                revenue=row.amount if row.outcome == "settled" else 0,
                upstream_usage=bytes(decode_event(bodies[place]).data.upstream_usage),
            )

    def _bodies(self, segment_id: int) -> list[bytes]:
        query = select(_segments.c.body).where(_segments.c.id == segment_id)
        return unpack_bodies(self.connection.execute(query).scalar_one())


class SqlUpstreamUnit(SqlFundUnit, SqlUpstreamReports):
    """Implements UpstreamUnit."""


class SqlUpstreamStore:
    """Opens snapshots; `SqlUpstreamReports` implements UpstreamReports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator[SqlUpstreamReports]:
        with self._database.read() as connection:
            yield SqlUpstreamReports(connection)


def _upstream_of(account_id: str) -> UpstreamMoney:
    account = read_account_id(account_id)
    assert account.tenant_id is not None, f"{account_id} belongs to no upstream"
    return account.tenant_id, account.currency
