"""Opens what counts requests against limits: the gateway alone, or all of them in Valkey."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from steelyard.access.rate_limit import LocalCounts, RequestCounts
from steelyard.errors import Failure
from steelyard.settings import Settings, SettingsInvalid


class ValkeyMissing(Failure):
    """Valkey's client is not installed: pip install 'steelyard[valkey]'."""

    code = "valkey_missing"


@dataclass(frozen=True, slots=True)
class Counting:
    """What counts, what has to run beside it, and what has to be awaited before it is used."""

    counts: RequestCounts
    keep: Callable[[], Coroutine[Any, Any, None]]
    ready: Callable[[], Coroutine[Any, Any, object]]


def open_counts(settings: Settings) -> Counting:
    """Raises ValkeyMissing or SettingsInvalid; whether Valkey is there shows later."""
    local = LocalCounts(time.monotonic, share_of=settings.gateway_count)
    if settings.valkey_url is None:
        return Counting(local, anyio.sleep_forever, anyio.lowlevel.checkpoint)
    try:
        from steelyard.gateway.shared_counts import SharedCounts
        from steelyard.gateway.valkey_link import ValkeyLink, check_url
    except ImportError as error:
        raise ValkeyMissing from error
    try:
        check_url(settings.valkey_url)
    except ValueError as error:
        raise SettingsInvalid(f"valkey_url: {error}") from error
    link = ValkeyLink(settings.valkey_url, timeout_s=settings.valkey_timeout_s)
    shared = SharedCounts(link, local, name=settings.gateway_name)
    return Counting(shared, shared.keep, shared.tried.wait)
