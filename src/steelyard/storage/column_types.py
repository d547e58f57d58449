"""Types of columns that both databases keep exactly: amounts of money, and moments."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect, Numeric, String
from sqlalchemy.types import TypeDecorator, TypeEngine

from steelyard.ledger.store import BalanceTooLarge
from steelyard.timestamp import read_timestamp, write_timestamp

SQLITE_INTEGER_MAX = 2**63 - 1


class Picos(TypeDecorator[int]):
    """A whole number of picos: NUMERIC(38) on PostgreSQL, a 64-bit integer on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(Numeric(38, 0))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | Decimal | None:
        if value is None:
            return None
        assert type(value) is int, f"money must be whole, got {value!r}"
        if dialect.name != "sqlite":
            return Decimal(value)
        # SQLite turns a larger number into a float without a word.
        if abs(value) > SQLITE_INTEGER_MAX:
            raise BalanceTooLarge
        return value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        del dialect
        assert not isinstance(value, float), f"an amount came back as a float: {value!r}"
        return None if value is None else int(value)


class Moment(TypeDecorator[datetime]):
    """A UTC moment as RFC 3339 text: the same bytes in every database, and in order."""

    impl = String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else write_timestamp(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else read_timestamp(value)
