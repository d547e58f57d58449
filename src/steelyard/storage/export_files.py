"""Writes exported rows as CSV or Parquet, one batch after the other. A file appears whole or not at
all: it is written under another name first."""

import csv
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

from steelyard.billing.export_columns import Column, ExportRow
from steelyard.errors import Failure
from steelyard.ids import new_id

FileFormat = Literal["csv", "parquet"]
ROWS_AT_ONCE: Final = 10_000
# As many digits as the books keep, 12 of them behind the point.
DECIMAL_DIGITS: Final = 38
DECIMAL_SCALE: Final = 12

WriteRow = Callable[[ExportRow], None]


class ExportUnwritable(Failure):
    """The file of the export cannot be written there."""

    code = "export_unwritable"


class ParquetUnavailable(Failure):
    """Parquet needs: pip install 'steelyard[export]'."""

    code = "parquet_unavailable"


@contextmanager
def export_file(
    path: Path, columns: Sequence[Column], *, file_format: FileFormat
) -> Generator[WriteRow]:
    """A new file, in its place when the block ends well; raises ExportUnwritable."""
    opened = _parquet_file if file_format == "parquet" else _csv_file
    draft = path.with_name(f".{path.name}-{new_id()}")
    try:
        with opened(draft, columns) as write:
            yield write
        draft.replace(path)
    except OSError as error:
        raise ExportUnwritable(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _csv_file(path: Path, columns: Sequence[Column]) -> Generator[WriteRow]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in columns])
        yield lambda row: writer.writerow([row.get(column.name) for column in columns])


@contextmanager
def _parquet_file(path: Path, columns: Sequence[Column]) -> Generator[WriteRow]:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ParquetUnavailable from error
    types = {
        "text": arrow.string(),
        "decimal": arrow.decimal128(DECIMAL_DIGITS, DECIMAL_SCALE),
        "moment": arrow.timestamp("us", tz="UTC"),
    }
    schema = arrow.schema([(column.name, types[column.kind]) for column in columns])
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
        batch.clear()

    def write(row: ExportRow) -> None:
        batch.append({column.name: _value(row.get(column.name), column) for column in columns})
        if len(batch) >= ROWS_AT_ONCE:
            flush()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        flush()


def _value(text: str | None, column: Column) -> Any:
    if text is None or column.kind == "text":
        return text
    return Decimal(text) if column.kind == "decimal" else datetime.fromisoformat(text)
