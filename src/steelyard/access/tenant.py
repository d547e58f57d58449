"""Tenants: an organisation, its departments and their projects. An organisation or a department
pays for a request."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from steelyard.errors import Refusal
from steelyard.money import Currency
from steelyard.time_zone import load_time_zone

PaysFrom = Literal["organisation", "department"]

PPM_DECIMALS: Final = 4
_TAX = re.compile(r"(0|[1-9][0-9]{0,2})(?:\.([0-9]{1,4}))?", re.ASCII)


class TimeZoneUnknown(Refusal):
    """A time zone is a name of the IANA database, as Europe/Berlin or Asia/Shanghai."""

    code = "time_zone_unknown"


class TaxMalformed(Refusal):
    """A tax is a number of per cent from 0 to 100 with at most 4 decimals, as 19 or 7.7."""

    code = "tax_malformed"


@dataclass(frozen=True, slots=True)
class Organisation:
    id: str
    name: str
    currency: Currency
    created_at: datetime
    time_zone: str = "UTC"
    tax_ppm: int = 0
    plan: str | None = None

    @property
    def path(self) -> str:
        return self.name

    @property
    def payer_id(self) -> str:
        return self.id


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

    @property
    def currency(self) -> Currency:
        return self.organisation.currency


@dataclass(frozen=True, slots=True)
class Project:
    """A part of a department's work, with budgets and keys of its own; the department pays."""

    id: str
    department: Department
    name: str
    created_at: datetime

    @property
    def path(self) -> str:
        return f"{self.department.path}/{self.name}"


def read_time_zone(text: str) -> str:
    """Accept a name of the IANA database; raises TimeZoneUnknown."""
    try:
        load_time_zone(text)
    except ValueError as error:
        raise TimeZoneUnknown(str(error)) from error
    return text


def read_tax(text: str) -> int:
    """Turn per cent, as '19' or '7.7', into parts per million; raises TaxMalformed."""
    match = _TAX.fullmatch(text)
    if match is None:
        raise TaxMalformed(f"{text!r} is no tax; write per cent such as 19 or 7.7")
    ppm = int(match[1]) * 10**PPM_DECIMALS + int((match[2] or "").ljust(PPM_DECIMALS, "0"))
    if ppm > 100 * 10**PPM_DECIMALS:
        raise TaxMalformed(f"{text} per cent is more than all of it; a tax is at most 100")
    return ppm


def write_tax(ppm: int) -> str:
    """The shortest number of per cent that reads back to the same tax."""
    whole, rest = divmod(ppm, 10**PPM_DECIMALS)
    decimals = f"{rest:0{PPM_DECIMALS}d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)
