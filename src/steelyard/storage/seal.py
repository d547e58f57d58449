"""Seals: a row that nothing else in the books can vouch for carries the hash of what it says."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Table

from steelyard.storage import schema
from steelyard.timestamp import write_timestamp

SEAL: Final = "seal"
# What changes after a row was written is not under its seal.
_CHANGES: Final = frozenset({SEAL, "approved_at", "approved_by"})
# Transactions are sealed as well, with their postings: see `seal_transaction`.
SEALED_TABLES: Final = (
    schema.grants,
    schema.adjustments,
    schema.suspense_decisions,
    schema.re_rating_runs,
    schema.chargebacks,
)


def sealed(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for this table with its seal."""
    return {**row, SEAL: seal_row(table, row)}


def seal_row(table: Table, row: Mapping[str, Any]) -> str:
    """The seal that this row has to have."""
    names = [column.name for column in table.columns if column.name not in _CHANGES]
    return _hash([table.name, *(row[name] for name in names)])


def seal_transaction(head: Iterable[object], postings: Iterable[tuple[str, int]]) -> str:
    """Of a transaction: id, template, reference, moment, actor and reason, and its postings."""
    lines = sorted(f"{account_id}={picos}" for account_id, picos in postings)
    return _hash([*head, *lines])


def _hash(values: Iterable[object]) -> str:
    # A length before each value, so that nothing can move from one into the next.
    texts = [_text(value) for value in values]
    whole = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(whole.encode()).hexdigest()


def _text(value: object) -> str:
    if value is None:
        return "\0"
    return write_timestamp(value) if isinstance(value, datetime) else str(value)
