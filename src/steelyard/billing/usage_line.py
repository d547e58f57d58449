"""A usage line: what one path used of one meter in one hour, at one price.

The unit of statements, invoices, chargeback and exports; what all of them add up is these.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Tenants are named as they are called; `project` is None where a key has none.

    `used_from` is the start of the hour (UTC) in which the answers ended. `billed_from` is later
    only where their period was closed already: then the usage is billed in the next one.
    """

    department_id: str
    department: str
    project: str | None
    key: str
    model: str
    upstream: str
    meter: str
    picos_per_unit: int
    price_version: str
    used_from: datetime
    billed_from: datetime
    count: int
    picos: int

    @property
    def is_late(self) -> bool:
        return self.used_from < self.billed_from
