"""The attempts that were closed last are remembered as they were, and the oldest forgotten."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from steelyard.gateway import recent_usage
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import Closed
from steelyard.gateway.recent_usage import RecentUsage
from steelyard.metering.usage import text_usage
from steelyard.money import Currency, Money
from steelyard.pricing.rating import Charge, ChargeLine

# More than 64 bits: a currency of small units, in picos.
MUCH = 10**24


def closed(event_id: str, **more: Any) -> Closed:
    currency = Currency("IDR")
    usage = text_usage(input_tokens=3, output_tokens=2)
    lines = [ChargeLine("input.text", 3, MUCH), ChargeLine("output.text", 2, 1)]
    return Closed(
        event_id, usage, Charge(lines, Money(3 * MUCH + 2, currency)), "completed", **more
    )


def admitted(organisation_id: str) -> Admitted:
    opened = SimpleNamespace(organisation_id=organisation_id)
    return cast("Admitted", SimpleNamespace(opened=opened))


def test_an_attempt_is_found_as_it_was_closed_and_by_its_own_organisation_alone() -> None:
    recent = RecentUsage()
    saved = Money(MUCH, Currency("IDR"))
    kept = closed("e1", kept=text_usage(input_tokens=1, output_tokens=1), saved=saved)
    recent.add(admitted("acme"), kept)

    assert recent.find("e1", organisation_id="acme") == kept
    assert recent.find("e1", organisation_id="other") is None
    assert recent.find("e2", organisation_id="acme") is None


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_usage, "ATTEMPTS_MAX", 2)
    recent = RecentUsage()
    for event_id in ("e1", "e2", "e3"):
        recent.add(admitted("acme"), closed(event_id))

    found = [recent.find(one, organisation_id="acme") is not None for one in ("e1", "e2", "e3")]
    assert found == [False, True, True]
