"""What a key may ask about itself: its models and their prices, its balance, its charges."""

from typing import Any

import anyio.to_thread

from steelyard.access.tenant import Organisation
from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.billing.statement import read_balance
from steelyard.entrypoints.openai_api.error_answer import EventNotFound
from steelyard.errors import Refusal
from steelyard.gateway.admission import Quote
from steelyard.gateway.closing import Closed
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.refusals import ModelNotFound
from steelyard.gateway.upstreams.base import ServedModel
from steelyard.metering.usage_event import UsageEvent, decode_event, read_meters, write_meters
from steelyard.money import write_decimal
from steelyard.pricing.rating import Charge, rate_usage
from steelyard.timestamp import read_timestamp


def model_document(
    model: ServedModel, prices: PriceDirectory, organisation: Organisation, *, created: int
) -> dict[str, Any]:
    """A model with what it costs this organisation now."""
    document: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": model.upstream,
        "max_model_len": model.context_tokens_max,
        "tokenizer_sha256": model.tokenizer.sha256,
    }
    try:
        document["pricing"] = prices.pin(model.id, organisation=organisation).as_document()
    except Refusal as refusal:
        document["pricing"] = None
        document["pricing_missing"] = str(refusal)
    return document


async def models_document(
    parts: GatewayParts, key: VirtualKey, path: str, *, created: int
) -> dict[str, Any]:
    """All models, or the one that the path names; raises ModelNotFound."""
    prices, organisation = parts.gateway.admission.prices, key.department.organisation
    wanted = path.removeprefix("/v1/models").removeprefix("/")
    served = {model.id: model for model in parts.catalog.models()}
    names = {name: name for name in served} | dict(parts.catalog.aliases())
    listed = [
        model_document(served[model], prices, organisation, created=created)
        | ({"id": name, "root": model} if name != model else {})
        for name, model in names.items()
        if wanted in {"", name} and model in served and parts.limits.allows_model(key, model)
    ]
    if not wanted:
        return {"object": "list", "data": listed}
    if not listed:
        raise ModelNotFound(f"there is no model {wanted[:100]!r} here")
    return listed[0]


async def balance_document(parts: GatewayParts, key: VirtualKey) -> dict[str, Any]:
    """What the payer of this key can spend, has set aside, and owes."""
    department = key.department
    tenant = department if department.pays_from == "department" else department.organisation

    def read() -> dict[str, Any]:
        with parts.stores.reports.snapshot() as snapshot:
            balance = read_balance(snapshot, tenant)
        return {
            "object": "balance",
            "payer": tenant.path,
            "available": write_decimal(balance.available.picos),
            "held": write_decimal(balance.held.picos),
            "owed": write_decimal(balance.owed.picos),
            "currency": balance.available.currency,
        }

    return await anyio.to_thread.run_sync(read)


async def usage_document(parts: GatewayParts, key: VirtualKey, path: str) -> dict[str, Any]:
    """What one call was charged, and why; raises EventNotFound."""
    event_id = path.rpartition("/")[2]
    organisation_id = key.department.organisation.id

    def read() -> tuple[UsageEvent, str] | None:
        with parts.stores.reports.snapshot() as snapshot:
            found = snapshot.recent_events(event_id=event_id, limit=1)
        return (decode_event(found[0].body), found[0].outcome) if found else None

    found = await anyio.to_thread.run_sync(read)
    if found is not None and found[0].data.organisation_id == organisation_id:
        return _settled(*found, parts.gateway.admission.prices)
    closed = parts.gateway.recent.find(event_id, organisation_id=organisation_id)
    if closed is None:
        raise EventNotFound
    return _not_settled(closed)


def quote_document(quote: Quote) -> dict[str, Any]:
    """A count, and the price that it would have."""
    return {
        "object": "tokenize",
        "model": quote.model.id,
        "input_tokens": quote.input_tokens,
        "count_source": quote.count_source,
        "input_tokens_max": quote.input_tokens_max,
        "output_tokens_max": quote.output_tokens_max,
        "cost": {
            "prompt": write_decimal(quote.prompt_cost.picos),
            "highest": write_decimal(quote.highest_cost.picos),
        },
        "currency": quote.prompt_cost.currency,
        "price_version": quote.pinned.version.sha256,
    }


def _settled(event: UsageEvent, outcome: str, prices: PriceDirectory) -> dict[str, Any]:
    """An event of the books, as it was booked, with the prices that it was booked at."""
    record = event.data
    usage = read_meters(record.meters)
    version = prices.version(record.price_version)
    listed = version.book.prices_of(record.model_served) if version else None
    lines: list[dict[str, Any]] = []
    if version is not None and listed is not None:
        listed = listed.chosen(is_batch=record.batch_id is not None)
        moment = listed.at(read_timestamp(record.admitted_at))
        lines = _lines(rate_usage(usage, prices=moment, currency=version.book.currency))
    return {
        "object": "usage",
        "event_id": event.id,
        "status": outcome,
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "model_requested": record.model_requested,
        "model_served": record.model_served,
        "upstream": record.upstream,
        "is_streamed": record.is_streamed,
        "end_cause": record.end_cause,
        "saved": record.saved,
        "count_source": record.count_source,
        "admitted_at": record.admitted_at,
        "first_token_at": record.first_token_at,
        "ended_at": record.ended_at,
        "meters": record.meters,
        "upstream_usage": record.upstream_usage,
        "price_version": record.price_version,
        "charge_lines": lines,
        "held": record.held,
        "cost": record.amount,
        "currency": record.currency,
    }


def _not_settled(closed: Closed) -> dict[str, Any]:
    """What the gateway has recorded, and the books do not have yet."""
    return {
        "object": "usage",
        "event_id": closed.event_id,
        "status": "not_settled",
        "end_cause": closed.end_cause,
        "saved": write_decimal(closed.saved.picos) if closed.saved is not None else None,
        "meters": write_meters(closed.usage),
        "charge_lines": _lines(closed.charge),
        "cost": write_decimal(closed.total.picos),
        "currency": closed.total.currency,
    }


def _lines(charge: Charge) -> list[dict[str, Any]]:
    return [
        {
            "meter": line.meter,
            "count": str(line.count),
            "price_of_one": write_decimal(line.picos_per_unit),
            "amount": write_decimal(line.picos),
        }
        for line in charge.lines
    ]
