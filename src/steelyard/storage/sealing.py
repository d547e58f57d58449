"""Triggers that make the database itself check double entry: a transaction row seals its postings.

Postings are inserted first. The transaction is refused unless they sum to zero and are at least
two, and a posting is refused once its transaction exists.
"""

from collections.abc import Iterator

_SQLITE = (
    """CREATE TRIGGER ledger_transactions_sums_to_zero BEFORE INSERT ON ledger_transactions
    WHEN (SELECT COUNT(*) < 2 OR SUM(picos) <> 0
          FROM ledger_postings WHERE transaction_id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'the postings of a transaction sum to zero'); END""",
    """CREATE TRIGGER ledger_postings_not_sealed BEFORE INSERT ON ledger_postings
    WHEN EXISTS (SELECT 1 FROM ledger_transactions WHERE id = NEW.transaction_id)
    BEGIN SELECT RAISE(ABORT, 'the transaction is sealed'); END""",
)

_POSTGRES = (
    """CREATE FUNCTION steelyard_seal_transaction() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT COUNT(*) < 2 OR SUM(picos) <> 0
            FROM ledger_postings WHERE transaction_id = NEW.id) THEN
            RAISE EXCEPTION 'the postings of a transaction sum to zero';
        END IF;
        RETURN NEW;
    END $$""",
    """CREATE TRIGGER ledger_transactions_sums_to_zero BEFORE INSERT ON ledger_transactions
    FOR EACH ROW EXECUTE FUNCTION steelyard_seal_transaction()""",
    """CREATE FUNCTION steelyard_refuse_sealed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT 1 FROM ledger_transactions WHERE id = NEW.transaction_id) THEN
            RAISE EXCEPTION 'the transaction is sealed';
        END IF;
        RETURN NEW;
    END $$""",
    """CREATE TRIGGER ledger_postings_not_sealed BEFORE INSERT ON ledger_postings
    FOR EACH ROW EXECUTE FUNCTION steelyard_refuse_sealed()""",
)


def sealing_statements(*, dialect: str) -> Iterator[str]:
    """The statements that make these triggers."""
    yield from _SQLITE if dialect == "sqlite" else _POSTGRES
