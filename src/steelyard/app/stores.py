"""Opens the books and everything kept beside them."""

import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steelyard.access.store import AccessStore
from steelyard.billing.books import Books
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Failure
from steelyard.ids import new_id
from steelyard.pricing.store import PriceStore
from steelyard.settings import Settings
from steelyard.storage.access_store import SqlAccessStore
from steelyard.storage.audit import SqlAudit
from steelyard.storage.books import SqlBooks
from steelyard.storage.budget_store import SqlBudgetStore
from steelyard.storage.chargeback_unit import SqlChargebackStore
from steelyard.storage.database import Database, open_database, sqlite_url
from steelyard.storage.fund_reports import SqlFundReports
from steelyard.storage.invoice_store import SqlInvoiceStore
from steelyard.storage.migration import check_version, migrate
from steelyard.storage.price_store import SqlPriceStore
from steelyard.storage.reports import SqlReports
from steelyard.storage.suggestion_store import SqlSuggestionStore
from steelyard.storage.upstream_costs import SqlUpstreamStore
from steelyard.storage.usage_lines import SqlExportBooks


class DataFolderUnwritable(Failure):
    """The data folder cannot be written."""

    code = "data_folder_unwritable"


@dataclass(frozen=True, slots=True)
class Stores:
    """The books and everything kept beside them."""

    database: Database
    books: Books
    access: AccessStore
    budgets: SqlBudgetStore
    funds: SqlFundReports
    invoices: SqlInvoiceStore
    chargebacks: SqlChargebackStore
    upstreams: SqlUpstreamStore
    prices: PriceStore
    reports: SqlReports
    audit: SqlAudit
    exports: SqlExportBooks
    suggestions: SqlSuggestionStore
    clock: Clock
    pepper: bytes


def open_stores(settings: Settings, *, should_migrate: bool = False) -> Stores:
    """Open the books; raises BooksNotReady, BooksUnavailable or DataFolderUnwritable."""
    prepare_folder(settings.data_dir)
    database = open_database(settings.database_url or sqlite_url(settings.books_path))
    if should_migrate:
        migrate(database)
    check_version(database)
    return Stores(
        database=database,
        books=SqlBooks(database),
        access=SqlAccessStore(database),
        budgets=SqlBudgetStore(database),
        funds=SqlFundReports(database),
        invoices=SqlInvoiceStore(database),
        chargebacks=SqlChargebackStore(database),
        upstreams=SqlUpstreamStore(database),
        prices=SqlPriceStore(database),
        reports=SqlReports(database),
        audit=SqlAudit(database),
        exports=SqlExportBooks(database),
        suggestions=SqlSuggestionStore(database),
        clock=SystemClock(),
        pepper=_read_secret(settings.secret_path),
    )


def prepare_folder(folder: Path) -> None:
    """Make the folder and prove that it can be written."""
    probe = folder / f".write-probe-{new_id()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DataFolderUnwritable(
            f"the data folder {folder} cannot be written ({error.strerror}); mend its permissions, "
            "or choose another with STEELYARD_DATA_DIR"
        ) from error


def _read_secret(path: Path) -> bytes:
    """The secret that key hashes depend on, made on first use, readable by its owner only."""
    try:
        if not path.exists():
            _make_secret(path)
        return path.read_bytes()
    except OSError as error:
        raise DataFolderUnwritable(f"the secret {path} cannot be kept: {error.strerror}") from error


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{new_id()}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_hex(32))
    try:
        # A link appears whole or not at all, and never replaces the secret of another process.
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
