"""Tenants: an organisation and its departments. One of the two pays for a request."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from steelyard.money import Currency

PaysFrom = Literal["organisation", "department"]


@dataclass(frozen=True, slots=True)
class Organisation:
    id: str
    name: str
    currency: Currency
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Department:
    """A part of an organisation. It spends the organisation's balance, or one of its own."""

    id: str
    organisation: Organisation
    name: str
    pays_from: PaysFrom
    created_at: datetime

    @property
    def path(self) -> str:
        return f"{self.organisation.name}/{self.name}"

    @property
    def payer_id(self) -> str:
        return self.id if self.pays_from == "department" else self.organisation.id
