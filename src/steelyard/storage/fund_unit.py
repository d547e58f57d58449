"""Money commands in a unit of work: who did what before, what an event cost, what was adjusted."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, func, insert, literal, select, text

from steelyard.billing.fund_books import Adjustment, ChargedEvent
from steelyard.ledger.chart import read_account_id
from steelyard.ledger.grant import Grant
from steelyard.ledger.hold import Hold, burn, read_draws, write_draws
from steelyard.ledger.transaction import Posting, Transaction
from steelyard.money import Currency, Money
from steelyard.storage import schema
from steelyard.storage.lease_unit import SqlLeaseUnit
from steelyard.storage.ledger_unit import hold_of
from steelyard.storage.seal import sealed
from steelyard.timestamp import write_timestamp

# Any fixed number. Settlement shares this lock, the closing of a period has it alone.
CLOSING_LOCK: Final = 7_316_022

_grants, _adjustments = schema.grants, schema.adjustments
_transactions, _postings = schema.ledger_transactions, schema.ledger_postings
# The id of a grant's account, as `LedgerAccount.id` writes it.
GRANT_ACCOUNT_ID: Final = (
    literal("prepaid:") + _grants.c.payer_id + ":" + _grants.c.id + ":" + _grants.c.currency
)
_MARK_UNRESOLVED: Final = {
    "sqlite": """UPDATE open_holds SET status = 'unresolved'
        WHERE status = 'placed' AND placed_at < :placed_before RETURNING id""",
    # Who is being settled or grows right now is not lost, and nobody waits for anybody.
    "postgresql": """UPDATE open_holds SET status = 'unresolved' WHERE id IN (
            SELECT id FROM open_holds WHERE status = 'placed' AND placed_at < :placed_before
            FOR UPDATE SKIP LOCKED
        ) RETURNING id""",
}


class SqlFundUnit(SqlLeaseUnit):
    """Implements FundUnit."""

    def wait_turn(self, name: str) -> None:
        # A writer on SQLite is alone anyway.
        if self.connection.dialect.name == "postgresql":
            query = "SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"
            self.connection.execute(text(query), {"name": name})

    def find_transaction(self, transaction_id: str) -> Transaction | None:
        query = select(_transactions).where(_transactions.c.id == transaction_id)
        row = self.connection.execute(query).one_or_none()
        if row is None:
            return None
        postings = select(_postings).where(_postings.c.transaction_id == transaction_id)
        return Transaction(
            id=row.id,
            template=row.template,
            reference=row.reference,
            booked_at=row.booked_at,
            postings=[
                Posting(read_account_id(posting.account_id), posting.picos)
                for posting in self.connection.execute(postings)
            ],
            actor=row.actor,
            reason=row.reason,
        )

    def find_grant(self, grant_id: str) -> Grant | None:
        row = self.connection.execute(select(_grants).where(_grants.c.id == grant_id)).one_or_none()
        return None if row is None else grant_of(row)

    def expired_grants(self, *, at: datetime, limit: int) -> list[Grant]:
        accounts = schema.ledger_accounts
        query = (
            select(_grants)
            .join(accounts, accounts.c.id == GRANT_ACCOUNT_ID)
            .where(_grants.c.expires_at <= at, accounts.c.balance > 0)
            .order_by(_grants.c.expires_at, _grants.c.id)
            .limit(limit)
        )
        return [grant_of(row) for row in self.connection.execute(query)]

    def find_event(self, event_id: str) -> ChargedEvent | None:
        events, paths = schema.usage_events, schema.usage_paths
        query = (
            select(events.c.amount, events.c.draws, events.c.outcome, paths)
            .join(paths, paths.c.id == events.c.path_id)
            .where(events.c.id == event_id)
        )
        row = self.connection.execute(query).one_or_none()
        if row is None:
            return None
        draws, outcome = read_draws(row.draws), row.outcome
        charged = self._re_rated_amount(event_id)
        if row.outcome == "suspended" and (decided := self._decided_amount(event_id)) is not None:
            # What was decided is charged, and can be refunded like any other charge.
            charged, outcome = decided, "settled"
            draws, _ = burn(draws, picos=decided)
        return ChargedEvent(
            id=event_id,
            organisation_id=row.organisation_id,
            department_id=row.department_id,
            payer_id=row.payer_id,
            charged=Money(row.amount if charged is None else charged, Currency(row.currency)),
            draws=draws,
            outcome=outcome,
        )

    def find_adjustment(self, adjustment_id: str) -> Adjustment | None:
        query = select(_adjustments).where(_adjustments.c.id == adjustment_id)
        row = self.connection.execute(query).one_or_none()
        return None if row is None else _adjustment_of(row)

    def adjustments_of(self, reference: str) -> list[Adjustment]:
        query = select(_adjustments).where(
            _adjustments.c.reference == reference, _adjustments.c.kind == "refund"
        )
        return [_adjustment_of(row) for row in self.connection.execute(query)]

    def insert_adjustment(self, adjustment: Adjustment) -> None:
        row = {
            "id": adjustment.id,
            "kind": adjustment.kind,
            "organisation_id": adjustment.organisation_id,
            "department_id": adjustment.department_id,
            "payer_id": adjustment.payer_id,
            "currency": adjustment.amount.currency,
            "amount": adjustment.amount.picos,
            "draws": write_draws(adjustment.draws),
            "reference": adjustment.reference,
            "billed_at": adjustment.billed_at,
        }
        self.connection.execute(insert(_adjustments), sealed(_adjustments, row))

    def transactions_about(self, reference: str, *, template: str) -> list[str]:
        query = select(_transactions.c.id).where(
            _transactions.c.reference == reference, _transactions.c.template == template
        )
        return [row.id for row in self.connection.execute(query)]

    def closed_until(self) -> Mapping[str, str]:
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({CLOSING_LOCK})"))
        table = schema.invoices
        query = (
            select(table.c.organisation_id, func.max(table.c.period_end).label("end"))
            .where(table.c.kind == "invoice")
            .group_by(table.c.organisation_id)
        )
        return {
            row.organisation_id: write_timestamp(row.end) for row in self.connection.execute(query)
        }

    def mark_unresolved(self, *, placed_before: datetime) -> list[str]:
        statement = text(_MARK_UNRESOLVED[self.connection.dialect.name])
        parameters = {"placed_before": write_timestamp(placed_before)}
        return sorted(row.id for row in self.connection.execute(statement, parameters))

    def list_holds(self, *, only_unresolved: bool, limit: int) -> list[Hold]:
        holds = schema.open_holds
        query = select(holds).order_by(holds.c.placed_at, holds.c.id).limit(limit)
        if only_unresolved:
            query = query.where(holds.c.status == "unresolved")
        return [hold_of(row) for row in self.connection.execute(query)]

    def _decided_amount(self, event_id: str) -> int | None:
        decisions = schema.suspense_decisions
        query = select(decisions.c.amount).where(decisions.c.event_id == event_id)
        return self.connection.execute(query).scalar_one_or_none()

    def _re_rated_amount(self, event_id: str) -> int | None:
        """What the last approved re-rating made of an event."""
        events, runs = schema.re_rated_events, schema.re_rating_runs
        query = (
            select(events.c.amount_after)
            .join(runs, runs.c.id == events.c.run_id)
            .where(events.c.event_id == event_id, runs.c.approved_at.is_not(None))
            .order_by(runs.c.approved_at.desc(), runs.c.id.desc())
            .limit(1)
        )
        return self.connection.execute(query).scalar_one_or_none()


def grant_of(row: Row[Any]) -> Grant:
    """The grant that a row of `grants` holds."""
    return Grant(
        id=row.id,
        payer_id=row.payer_id,
        kind=row.kind,
        currency=Currency(row.currency),
        granted_at=row.granted_at,
        expires_at=row.expires_at,
        priority=row.priority,
    )


def _adjustment_of(row: Row[Any]) -> Adjustment:
    return Adjustment(
        id=row.id,
        kind=row.kind,
        organisation_id=row.organisation_id,
        department_id=row.department_id,
        payer_id=row.payer_id,
        amount=Money(row.amount, Currency(row.currency)),
        draws=read_draws(row.draws),
        reference=row.reference,
        billed_at=row.billed_at,
    )
