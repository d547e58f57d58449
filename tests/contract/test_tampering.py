"""Whatever row of the money tables is changed or taken away, verification finds it and names it."""

from collections.abc import Generator

import pytest

from steelyard.billing.verification import verify_books
from steelyard.storage.audit import SqlAuditSnapshot
from tests import tampered_books
from tests.conftest import DATABASES
from tests.tampered_books import one_row, tampered
from tests.world import World

# What is written into a column, and what the difference names; one row of the table is hit.
CHANGES = {
    "ledger_accounts.balance": ("balance = balance + 1 WHERE kind = 'prepaid'", "prepaid:"),
    "ledger_accounts.balance of ours": ("balance = balance - 1 WHERE kind = 'revenue'", "revenue:"),
    "ledger_accounts.kind": ("kind = 'revenue' WHERE kind = 'suspense'", "suspense:"),
    "ledger_accounts.floor": ("floor = NULL WHERE kind = 'prepaid'", "prepaid:"),
    "ledger_transactions.template": ("template = 'pay_out' WHERE template = 'top_up'", ""),
    "ledger_transactions.reference": ("reference = 'x' WHERE template = 'refund_usage'", ""),
    "ledger_transactions.booked_at": ("booked_at = '2026-01-01T00:00:00.000000Z'", ""),
    "ledger_transactions.actor": ("actor = 'nobody' WHERE template = 'top_up'", ""),
    "ledger_transactions.reason": ("reason = 'no' WHERE template = 'promotional_credit'", ""),
    "ledger_postings.picos": ("picos = picos + 1", ""),
    "ledger_postings.account_id": (
        "account_id = 'breakage:USD' WHERE account_id = 'clearing:USD'",
        "",
    ),
    "grants.payer_id": ("payer_id = 'x'", "grants "),
    "grants.kind": ("kind = 'paid' WHERE kind = 'promotional'", "grants "),
    "grants.priority": ("priority = 0", "grants "),
    "grants.granted_at": ("granted_at = '2026-01-01T00:00:00.000000Z'", "grants "),
    "grants.expires_at": ("expires_at = '2030-01-01T00:00:00.000000Z'", "grants "),
    "open_holds.amount": ("amount = amount + 1", "hold "),
    "open_holds.draws": ("draws = ''", "hold "),
    "open_holds.payer_id": ("payer_id = 'x'", "held:"),
    "open_holds.budget_draws": ("budget_draws = ''", "budget "),
    "leases.amount": ("amount = amount - 1", "leased:"),
    "leases.draws": ("draws = REPLACE(draws, ':', '0:')", "prepaid:"),
    "leases.payer_id": ("payer_id = 'x'", "leased:"),
    "leases.budget_draws": ("budget_draws = ''", "budget "),
    "budget_windows.reserved": ("reserved = reserved + 1", "budget "),
    "budget_windows.used": ("used = used - 1", "budget "),
    "event_segments.first_position": ("first_position = 7", "log "),
    "event_segments.event_count": ("event_count = event_count + 1", "segment "),
    "event_segments.log_id": ("log_id = 'another'", "log "),
    "event_segments.body": ("body = {damaged}", "segment "),
    "event_sources.source": ("source = 'another'", "source"),
    "usage_events.id": ("id = 'x'", "not in the books"),
    "usage_events.source_id": ("source_id = 99", "source"),
    "usage_events.sequence": ("sequence = sequence + 50", "sequence"),
    "usage_events.content_hash": ("content_hash = {damaged}", "content hash"),
    "usage_events.path_id": ("path_id = 99", "path"),
    "usage_events.segment_id": ("segment_id = 99", "in their logs"),
    "usage_events.place": ("place = 99", "in their logs"),
    "usage_events.ended_at": ("ended_at = '2026-11-24T12:00:59.000000Z'", "end is"),
    "usage_events.billed_at": ("billed_at = '2026-11-24T12:00:59.000000Z'", "billed at"),
    "usage_events.amount": ("amount = amount - 1 WHERE outcome = 'settled'", "event "),
    "usage_events.amount of none": ("amount = amount + 1 WHERE outcome = 'suspended'", "event "),
    "usage_events.charges": ("charges = '[]' WHERE outcome = 'settled'", "lines 0"),
    "usage_events.charges damaged": ("charges = 'x' WHERE outcome = 'settled'", "event "),
    "usage_events.draws": ("draws = '' WHERE outcome = 'settled'", "spent 0"),
    "usage_events.draws damaged": ("draws = 'x' WHERE outcome = 'settled'", "event "),
    "usage_events.budget_draws": ("budget_draws = '' WHERE outcome = 'settled'", "budget "),
    "usage_events.outcome": ("outcome = 'suspended' WHERE outcome = 'settled'", "event "),
    "event_shares.event_id": ("event_id = 'x'", "departments bear {}"),
    "event_shares.department_id": ("department_id = 'x'", "departments bear "),
    "event_shares.weight": ("weight = weight + 1", "departments bear "),
    "event_shares.picos": ("picos = picos + 1", "departments bear "),
    "usage_paths.organisation_id": ("organisation_id = 'x'", "path"),
    "usage_paths.department_id": ("department_id = 'x'", "path"),
    "usage_paths.project_id": ("project_id = 'x'", "path"),
    "usage_paths.key_id": ("key_id = 'x'", "path"),
    "usage_paths.payer_id": ("payer_id = 'x'", "path"),
    "usage_paths.model": ("model = 'x'", "path"),
    "usage_paths.upstream": ("upstream = 'x'", "path"),
    "usage_paths.currency": ("currency = 'EUR'", "path"),
    "usage_paths.price_version": ("price_version = 'x'", "path"),
    "usage_hours.picos": ("picos = picos - 1", "usage_hours "),
    "usage_hours.count": ("count = count + 1", "usage_hours "),
    "usage_hours.billed_hour": ("billed_hour = '2026-10-24T12'", "usage_hours "),
    "usage_hours.used_hour": ("used_hour = '2026-10-24T12'", "usage_hours "),
    "usage_hours.meter": ("meter = 'call'", "usage_hours "),
    "usage_hours.picos_per_unit": ("picos_per_unit = 1", "usage_hours "),
    "request_hours.request_count": ("request_count = request_count - 1", "request_hours "),
    "funding_hours.picos": ("picos = picos - 1", "funding_hours "),
    "funding_hours.grant_id": ("grant_id = 'x'", "funding_hours "),
    "funding_hours.payer_id": ("payer_id = 'x'", "funding_hours "),
    "adjustments.kind": ("kind = 'correction' WHERE kind = 'refund'", "adjustments "),
    "adjustments.organisation_id": ("organisation_id = 'x'", "adjustments "),
    "adjustments.department_id": ("department_id = 'x'", "adjustments "),
    "adjustments.payer_id": ("payer_id = 'x'", "adjustments "),
    "adjustments.amount": ("amount = amount + 1", "adjustments "),
    "adjustments.draws": ("draws = '' WHERE kind = 'refund'", "adjustments "),
    "adjustments.reference": ("reference = 'x'", "adjustments "),
    "adjustments.billed_at": ("billed_at = '2026-01-01T00:00:00.000000Z'", "adjustments "),
    "suspense_decisions.amount": ("amount = amount - 1", "suspense_decisions "),
    "suspense_decisions.actor": ("actor = 'nobody'", "suspense_decisions "),
    "suspense_decisions.decided_at": (
        "decided_at = '2026-01-01T00:00:00.000000Z'",
        "suspense_decisions ",
    ),
    "re_rating_runs.canonical": (
        "canonical = REPLACE(canonical, 'because', 'no')",
        "re_rating_runs ",
    ),
    "re_rated_events.amount_before": ("amount_before = amount_before + 1", "re-rating "),
    "re_rated_events.amount_after": ("amount_after = amount_after + 1", "re-rating "),
    "price_versions.canonical": ("canonical = REPLACE(canonical, '10', '11')", "price version "),
    "price_versions.sha256": ("sha256 = 'x'", "price version "),
    "price_versions.name": ("name = 'x'", "price book "),
    "price_versions.publication": ("publication = 9", "price book "),
    "quarantined_events.content_hash": ("content_hash = '{zeros}'", "quarantine"),
    "log_positions.position": ("position = position + 1", "log "),
}

# Which row is taken away; the newest ones, which nothing follows, above all.
DELETIONS = {
    "ledger_accounts": ("kind = 'revenue'", "revenue:"),
    "ledger_transactions": ("template = 'top_up'", "no transaction"),
    "ledger_postings": ("account_id = 'clearing:USD'", "picos"),
    "newest ledger_transactions": (
        "id = (SELECT MAX(id) FROM ledger_transactions WHERE template = 'refund_usage')",
        "no transaction",
    ),
    "grants": ("kind = 'promotional'", "promotional_credit "),
    "open_holds": ("1 = 1", "held:"),
    "leases": ("1 = 1", "leased:"),
    "budget_windows": ("1 = 1", "budget "),
    "event_segments": ("id = (SELECT MAX(id) FROM event_segments)", "segments end"),
    "event_sources": ("1 = 1", "source"),
    "newest usage_events": ("id = (SELECT MAX(id) FROM usage_events)", "not in the books"),
    "oldest usage_events": ("id = (SELECT MIN(id) FROM usage_events)", "not in the books"),
    "event_shares": ("1 = 1", "departments bear {}"),
    "usage_paths": ("id = (SELECT MAX(id) FROM usage_paths)", "path"),
    "usage_hours": ("meter = 'input.text'", "usage_hours "),
    "request_hours": ("1 = 1", "request_hours "),
    "funding_hours": ("1 = 1", "funding_hours "),
    "adjustments": ("kind = 'refund'", "refund_usage "),
    "suspense_decisions": ("1 = 1", "suspense:"),
    "re_rated_events": ("1 = 1", "re-rating "),
    "re_rating_runs": ("1 = 1", "re-rating "),
    "oldest price_versions": ("publication = 1", "price book "),
    "quarantined_events": ("1 = 1", "not in the books"),
    "log_positions": ("1 = 1", "log "),
}


@pytest.fixture(scope="module", params=DATABASES)
def busy_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[World]:
    yield from tampered_books.busy_world(request, tmp_path_factory)


def test_untouched_books_are_right(busy_world: World) -> None:
    checks = busy_world.verify()

    assert [difference for check in checks for difference in check.differences] == []
    assert all(check.compared for check in checks)


@pytest.mark.parametrize("place", CHANGES)
def test_a_changed_value_is_found_and_named(place: str, busy_world: World) -> None:
    table = place.partition(".")[0]
    change, name = CHANGES[place]
    values, _, condition = change.partition(" WHERE ")
    is_postgres = not busy_world.stores.database.is_sqlite
    damaged = "'\\x00'::bytea" if is_postgres else "x'00'"
    values = values.replace("{damaged}", damaged).replace("{zeros}", "0" * 64)
    key, one = one_row(busy_world, table, condition)

    found = _differences_after(busy_world, f"UPDATE {table} SET {values} WHERE {key} = ({one})")

    assert any(name in difference for difference in found), found


@pytest.mark.parametrize("what", DELETIONS)
def test_a_row_that_is_gone_is_found_and_named(what: str, busy_world: World) -> None:
    table = what.rpartition(" ")[2]
    condition, name = DELETIONS[what]

    found = _differences_after(busy_world, f"DELETE FROM {table} WHERE {condition}")

    assert any(name in difference for difference in found), found


def _differences_after(world: World, statement: str) -> list[str]:
    """What verification finds of the tampered books, which are then as they were."""
    with tampered(world, statement) as connection:
        checks = verify_books(SqlAuditSnapshot(connection))
    return [difference for check in checks for difference in check.differences]
