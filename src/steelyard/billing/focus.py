"""Rows of FOCUS, the FinOps Open Cost and Usage Specification: its dataset Cost and Usage.

One row for each path, meter, price and hour, and one for each adjustment; of a closed period also
those that make the rows add up to its invoice. A quantity times its
price is the cost, to the last pico: nothing is rounded here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal

from steelyard.access.tenant import Organisation
from steelyard.billing.bill_lines import BillKind, BillLine
from steelyard.billing.export_columns import Column, ColumnKind, ExportRow, write_moment
from steelyard.billing.export_lines import AdjustmentLine, ExportLine
from steelyard.billing.statement import Period
from steelyard.billing.usage_line import UsageLine
from steelyard.metering.usage import (
    CACHE_HIT,
    CALL,
    ENGINE_TIME,
    INPUT_AUDIO_SECONDS,
    INPUT_CHARACTERS,
    ITEM,
    OUTPUT_AUDIO_CHARACTERS,
    OUTPUT_IMAGE_COUNT,
    OUTPUT_TRANSCRIPT_CHARACTERS,
    SEARCH,
    TOKEN_METERS,
)
from steelyard.money import PICOS_PER_UNIT, write_decimal

FocusVersion = Literal["1.2", "1.4"]
HOUR: Final = timedelta(hours=1)
TOKENS_PRICED_AT_ONCE: Final = 1_000_000
# Whatever else is counted, steps and equivalent tokens among them, is counted in units.
UNITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(TOKEN_METERS, "Tokens"),
        CALL: "Requests",
        CACHE_HIT: "Requests",
        SEARCH: "Requests",
        ITEM: "Items",
        INPUT_AUDIO_SECONDS: "Seconds",
        INPUT_CHARACTERS: "Characters",
        OUTPUT_AUDIO_CHARACTERS: "Characters",
        OUTPUT_TRANSCRIPT_CHARACTERS: "Characters",
        OUTPUT_IMAGE_COUNT: "Images",
        **dict.fromkeys(ENGINE_TIME, "Microseconds"),
    }
)
ADJUSTMENT_CATEGORIES: Final = MappingProxyType(
    {
        "refund": "Credit",
        "correction": "Adjustment",
        "re_rating": "Adjustment",
        "suspense": "Adjustment",
    }
)
ADJUSTMENT_DESCRIPTIONS: Final = MappingProxyType(
    {
        "refund": "Refund of usage",
        "correction": "Correction",
        "re_rating": "Usage priced again",
        "suspense": "Usage decided on after it was in doubt",
    }
)
# Category and description of what an invoice has beside usage and adjustments.
BILL_CATEGORIES: Final[Mapping[BillKind, tuple[str, str]]] = MappingProxyType(
    {
        "not_covered": ("Adjustment", "Usage beyond what was held, not charged"),
        "promotional_credit": ("Credit", "Paid from promotional credit"),
        "tax": ("Tax", "Tax"),
        "rounding": ("Adjustment", "Rounding, brought and carried forward"),
    }
)

_SHARED: Final[Sequence[tuple[str, ColumnKind]]] = (
    ("BilledCost", "decimal"),
    ("BillingAccountId", "text"),
    ("BillingAccountName", "text"),
    ("BillingCurrency", "text"),
    ("BillingPeriodEnd", "moment"),
    ("BillingPeriodStart", "moment"),
    ("ChargeCategory", "text"),
    ("ChargeClass", "text"),
    ("ChargeDescription", "text"),
    ("ChargeFrequency", "text"),
    ("ChargePeriodEnd", "moment"),
    ("ChargePeriodStart", "moment"),
    # Always empty: rules about quantities ask for it.
    ("CommitmentDiscountStatus", "text"),
    ("ConsumedQuantity", "decimal"),
    ("ConsumedUnit", "text"),
    ("ContractedCost", "decimal"),
    ("ContractedUnitPrice", "decimal"),
    ("EffectiveCost", "decimal"),
    ("InvoiceId", "text"),
    ("InvoiceIssuerName", "text"),
    ("ListCost", "decimal"),
    ("ListUnitPrice", "decimal"),
    ("PricingCategory", "text"),
    ("PricingCurrency", "text"),
    ("PricingCurrencyContractedUnitPrice", "decimal"),
    ("PricingCurrencyEffectiveCost", "decimal"),
    ("PricingCurrencyListUnitPrice", "decimal"),
    ("PricingQuantity", "decimal"),
    ("PricingUnit", "text"),
    ("ServiceCategory", "text"),
    ("ServiceName", "text"),
    ("ServiceSubcategory", "text"),
    ("SkuId", "text"),
    ("SkuMeter", "text"),
    ("SkuPriceDetails", "text"),
    ("SkuPriceId", "text"),
    ("SubAccountId", "text"),
    ("SubAccountName", "text"),
    ("Tags", "text"),
)
_PROVIDERS: Final[Mapping[FocusVersion, Sequence[str]]] = MappingProxyType(
    {
        "1.2": ("ProviderName", "PublisherName"),
        "1.4": ("HostProviderName", "ServiceProviderName"),
    }
)
_OURS: Final = (
    "x_Department",
    "x_Project",
    "x_Key",
    "x_Model",
    "x_Upstream",
    "x_PriceVersion",
    "x_IsLate",
    "x_Reference",
)


@dataclass(frozen=True, slots=True)
class FocusBill:
    """Whose bill of which period the rows are of, and who issues it."""

    organisation: Organisation
    period: Period
    issuer: str
    version: FocusVersion
    invoice_id: str | None = None


def focus_columns(version: FocusVersion) -> list[Column]:
    """The columns of a version in the order of the alphabet, and ours after them."""
    columns = [Column(name, kind) for name, kind in _SHARED]
    columns += [Column(name) for name in _PROVIDERS[version]]
    return [*sorted(columns, key=lambda c: c.name), *(Column(name) for name in _OURS)]


def focus_rows(bill: FocusBill, lines: Iterable[ExportLine]) -> Iterator[tuple[ExportRow, int]]:
    """Each row with the picos of its BilledCost."""
    always = _always(bill)
    for line in lines:
        yield {**always, **_costs(line.picos), **_row(bill, line)}, line.picos


def _row(bill: FocusBill, line: ExportLine) -> ExportRow:
    if isinstance(line, UsageLine):
        return _usage_row(bill, line)
    return (
        _adjustment_row(bill, line) if isinstance(line, AdjustmentLine) else _bill_row(bill, line)
    )


def _always(bill: FocusBill) -> ExportRow:
    return {
        "BillingAccountId": bill.organisation.id,
        "BillingAccountName": bill.organisation.name,
        "BillingCurrency": bill.organisation.currency,
        "PricingCurrency": bill.organisation.currency,
        "BillingPeriodStart": write_moment(bill.period.start),
        "BillingPeriodEnd": write_moment(bill.period.end),
        "InvoiceId": bill.invoice_id,
        "InvoiceIssuerName": bill.issuer,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": "Model inference",
        **dict.fromkeys(_PROVIDERS[bill.version], bill.issuer),
    }


def _costs(picos: int) -> ExportRow:
    names = "BilledCost", "ContractedCost", "EffectiveCost", "ListCost"
    return dict.fromkeys((*names, "PricingCurrencyEffectiveCost"), _decimal(picos))


def _usage_row(bill: FocusBill, line: UsageLine) -> ExportRow:
    sku = f"{line.model}/{line.meter}"
    tags = {"department": line.department, "project": line.project, "key": line.key}
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{line.meter} of {line.model}",
        "ChargeFrequency": "Usage-Based",
        **_charge_period(bill, line.used_from, is_late=line.is_late),
        **_prices(line),
        "PricingCategory": "Standard",
        "SkuId": sku,
        "SkuMeter": line.meter,
        "SkuPriceId": f"{sku}/{line.price_version}/{write_decimal(line.picos_per_unit)}",
        "SkuPriceDetails": _json({"x_PriceVersion": line.price_version}),
        "SubAccountId": line.department_id,
        "SubAccountName": line.department,
        "Tags": _json({name: value for name, value in tags.items() if value is not None}),
        "x_Department": line.department,
        "x_Project": line.project,
        "x_Key": line.key,
        "x_Model": line.model,
        "x_Upstream": line.upstream,
        "x_PriceVersion": line.price_version,
        "x_IsLate": "true" if line.is_late else "false",
    }


def _prices(line: UsageLine) -> ExportRow:
    """Tokens are priced by the million, everything else by one."""
    unit = UNITS.get(line.meter, "Units")
    at_once = TOKENS_PRICED_AT_ONCE if unit == "Tokens" else 1
    assert PICOS_PER_UNIT % at_once == 0, "a quantity has to be a decimal"
    price = _decimal(line.picos_per_unit * at_once)
    prices = "ContractedUnitPrice", "ListUnitPrice"
    same = "PricingCurrencyContractedUnitPrice", "PricingCurrencyListUnitPrice"
    return {
        "ConsumedQuantity": _decimal(line.count * PICOS_PER_UNIT),
        "ConsumedUnit": unit,
        "PricingQuantity": _decimal(line.count * (PICOS_PER_UNIT // at_once)),
        "PricingUnit": unit if at_once == 1 else f"{at_once} {unit}",
        **dict.fromkeys((*prices, *same), price),
    }


def _adjustment_row(bill: FocusBill, line: AdjustmentLine) -> ExportRow:
    return {
        "ChargeCategory": ADJUSTMENT_CATEGORIES[line.kind],
        "ChargeClass": "Correction" if line.corrects_earlier else None,
        "ChargeDescription": ADJUSTMENT_DESCRIPTIONS[line.kind],
        "ChargeFrequency": "One-Time",
        **_charge_period(bill, line.billed_at.replace(minute=0, second=0, microsecond=0)),
        "SubAccountId": line.department_id,
        "SubAccountName": line.department,
        "x_Department": line.department,
        "x_Reference": line.reference,
    }


def _bill_row(bill: FocusBill, line: BillLine) -> ExportRow:
    """It is about the whole period."""
    category, description = BILL_CATEGORIES[line.kind]
    return {
        "ChargeCategory": category,
        "ChargeDescription": description,
        "ChargeFrequency": "One-Time",
        "ChargePeriodStart": write_moment(bill.period.start),
        "ChargePeriodEnd": write_moment(bill.period.end),
        "SubAccountId": line.department_id,
        "SubAccountName": line.department,
        "x_Department": line.department,
        "x_Reference": line.invoice,
    }


def _charge_period(bill: FocusBill, hour: datetime, *, is_late: bool = False) -> ExportRow:
    """An hour, or what of it lies in the period; usage that is billed late keeps its own hour."""
    start, end = hour, hour + HOUR
    if not is_late:
        start, end = max(start, bill.period.start), min(end, bill.period.end)
    return {"ChargePeriodStart": write_moment(start), "ChargePeriodEnd": write_moment(end)}


def _decimal(picos: int) -> str:
    """With a point, or a reader that guesses types takes a column of whole numbers for integers."""
    text = write_decimal(picos)
    return text if "." in text else f"{text}.0"


def _json(properties: Mapping[str, str]) -> str:
    return json.dumps(properties, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
