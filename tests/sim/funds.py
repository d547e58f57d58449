"""What must be true of the books after every unit of work."""

import sqlite3
from collections import Counter
from dataclasses import dataclass

TENANTS_MONEY = ("prepaid", "held", "leased")


@dataclass(slots=True)
class Funds:
    """What the books say at one moment; read beside the product's own code."""

    connection: sqlite3.Connection
    paid_in: int = 0

    def problems(self) -> list[str]:
        rows = self.connection.execute("SELECT kind, balance FROM ledger_accounts").fetchall()
        sums: Counter[str] = Counter()
        for kind, balance in rows:
            sums[kind] += balance
        below = [kind for kind, balance in rows if kind in TENANTS_MONEY and balance < 0]
        held, leased = self._sum("open_holds"), self._sum("leases")
        spent = sums["revenue"] + sums["suspense"]
        here = sum(sums[kind] for kind in TENANTS_MONEY)
        return [
            *(f"{kind} is below zero" for kind in below),
            *([f"the ledger sums to {sum(sums.values())}"] if sum(sums.values()) else []),
            *([f"held {sums['held']}, holds {held}"] if sums["held"] != held else []),
            *([f"leased {sums['leased']}, leases {leased}"] if sums["leased"] != leased else []),
            *(
                [f"{here} left and {spent} spent of {self.paid_in}"]
                if here + spent != self.paid_in
                else []
            ),
        ]

    def open_count(self) -> int:
        """Holds and leases that are open."""
        (holds,), (leases,) = (
            self.connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            for table in ("open_holds", "leases")
        )
        return holds + leases

    def is_settled(self, log_id: str, position: int) -> bool:
        query = "SELECT position FROM log_positions WHERE log_id = ?"
        row = self.connection.execute(query, (log_id,)).fetchone()
        return (row[0] if row else 0) == position

    def _sum(self, table: str) -> int:
        return self.connection.execute(f"SELECT COALESCE(SUM(amount), 0) FROM {table}").fetchone()[
            0
        ]
