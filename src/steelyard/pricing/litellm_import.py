"""Makes a price book of LiteLLM's map of models (model_prices_and_context_window.json)."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, Final, cast

from steelyard.errors import Refusal
from steelyard.metering.usage import (
    INPUT_AUDIO_SECONDS,
    INPUT_AUDIO_TOKENS,
    INPUT_CHARACTERS,
    INPUT_IMAGE_TOKENS,
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
    OUTPUT_AUDIO_TOKENS,
    OUTPUT_IMAGE_COUNT,
    OUTPUT_IMAGE_PIXELS,
    OUTPUT_IMAGE_TOKENS,
    OUTPUT_TEXT,
    OUTPUT_TEXT_REASONING,
)
from steelyard.pricing.imported_book import (
    ImportedBook,
    ImportFindings,
    LeftOut,
    NotExact,
    UnsupportedField,
    picos_of,
)
from steelyard.pricing.price import Price, Tier
from steelyard.pricing.price_book import ModelPrices, PriceBook

METER_OF: Final[Mapping[str, tuple[str, int]]] = {
    "input_cost_per_token": (INPUT_TEXT, 10**6),
    "cache_read_input_token_cost": (INPUT_TEXT_CACHE_READ, 10**6),
    "cache_creation_input_token_cost": (INPUT_TEXT_CACHE_WRITE, 10**6),
    "cache_creation_input_token_cost_above_1hr": (INPUT_TEXT_CACHE_WRITE_1H, 10**6),
    "output_cost_per_token": (OUTPUT_TEXT, 10**6),
    "output_cost_per_reasoning_token": (OUTPUT_TEXT_REASONING, 10**6),
    "input_cost_per_audio_token": (INPUT_AUDIO_TOKENS, 10**6),
    "output_cost_per_audio_token": (OUTPUT_AUDIO_TOKENS, 10**6),
    "input_cost_per_image_token": (INPUT_IMAGE_TOKENS, 10**6),
    "output_cost_per_image_token": (OUTPUT_IMAGE_TOKENS, 10**6),
    "input_cost_per_second": (INPUT_AUDIO_SECONDS, 1),
    "input_cost_per_character": (INPUT_CHARACTERS, 10**6),
    "output_cost_per_image": (OUTPUT_IMAGE_COUNT, 1),
    "output_cost_per_pixel": (OUTPUT_IMAGE_PIXELS, 10**6),
}
NO_MODEL: Final = "sample_spec"
_TIER = re.compile(r"(.+)_above_([0-9]+)k_tokens")


class PriceListMalformed(Refusal):
    """The file is not LiteLLM's map of models."""

    code = "price_list_malformed"


def import_litellm(text: str, *, book: PriceBook) -> ImportedBook:
    """Fill an empty book with the models of the map; raises PriceListMalformed."""
    try:
        # Numbers stay text until they are decimals: no price passes through a float.
        models: object = json.loads(text, parse_float=str, parse_int=str)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PriceListMalformed(f"not JSON: {error}") from error
    if not isinstance(models, dict) or not models:
        raise PriceListMalformed("expected a JSON object of models by their names")
    findings = ImportFindings()
    entries: list[ModelPrices] = []
    for name, fields in cast("dict[str, object]", models).items():
        if name == NO_MODEL:
            continue
        if not isinstance(fields, dict):
            raise PriceListMalformed(f"{name!r}: expected a JSON object")
        try:
            meters = _meters(name, cast("dict[str, Any]", fields), findings)
        except NotExact as reason:
            findings.left_out.append(LeftOut(name, str(reason)))
        else:
            entries.append(ModelPrices(name, meters, f"LiteLLM: {name}"))
    return ImportedBook(replace(book, models=tuple(entries)), findings)


def _meters(name: str, fields: Mapping[str, Any], findings: ImportFindings) -> dict[str, Price]:
    tiers: dict[str, dict[int, str]] = {}
    stated: dict[str, str] = {}
    for key, value in fields.items():
        tier = _TIER.fullmatch(key)
        if value is None or "cost" not in key:
            continue
        if key in METER_OF:
            stated[key] = value
        elif tier and tier.group(1) in METER_OF and tier.group(1) in fields:
            tiers.setdefault(tier.group(1), {})[int(tier.group(2)) * 1_000] = value
        else:
            findings.unsupported.append(UnsupportedField(name, key))
    meters = {
        METER_OF[key][0]: _price(value, tiers.get(key, {}), per=METER_OF[key][1])
        for key, value in stated.items()
    }
    if not meters:
        raise NotExact("none of its prices has a meter here")
    if INPUT_TEXT_CACHE_WRITE in meters:
        meters.setdefault(INPUT_TEXT_CACHE_WRITE_1H, meters[INPUT_TEXT_CACHE_WRITE])
    return meters


def _price(value: object, tiers: Mapping[int, object], *, per: int) -> Price:
    steps = tuple(Tier(above, _picos(each, per=per)) for above, each in sorted(tiers.items()))
    return Price(_picos(value, per=per), per, steps)


def _picos(value: object, *, per: int) -> int:
    """The map prices one unit; we write prices of many, which people can read."""
    if not isinstance(value, str):
        raise NotExact(f"{value!r} is no price")
    try:
        return picos_of(Decimal(value), per=1) * per
    except InvalidOperation as error:
        raise NotExact(f"{value!r} is no price") from error
