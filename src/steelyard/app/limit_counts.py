"""Opens what counts requests against limits: the gateway alone, or all of them in Valkey."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from steelyard.access.rate_limit import LocalCounts, RequestCounts
from steelyard.errors import Failure
from steelyard.settings import Settings, SettingsInvalid

if TYPE_CHECKING:
    from steelyard.gateway.valkey_link import ValkeyLink


class ValkeyMissing(Failure):
    """Valkey's client is not installed: pip install 'steelyard[valkey]'."""

    code = "valkey_missing"


@dataclass(frozen=True, slots=True)
class Counting:
    """What counts, what has to run beside it, and what has to be awaited before it is used."""

    counts: RequestCounts
    keep: Callable[[], Coroutine[Any, Any, None]]
    ready: Callable[[], Coroutine[Any, Any, object]]


async def check_valkey(settings: Settings) -> None:
    """Raises ValkeyMissing or SettingsInvalid, or a failure if Valkey does not answer."""
    if settings.valkey_url is None:
        return
    link = _open_link(settings.valkey_url, timeout_s=settings.valkey_timeout_s)
    await link.open(())
    await link.close()


def open_counts(settings: Settings) -> Counting:
    """Raises ValkeyMissing or SettingsInvalid; whether Valkey is there shows later."""
    local = LocalCounts(time.monotonic, share_of=settings.gateway_count)
    if settings.valkey_url is None:
        return Counting(local, anyio.sleep_forever, anyio.lowlevel.checkpoint)
    link = _open_link(settings.valkey_url, timeout_s=settings.valkey_timeout_s)
    from steelyard.gateway.shared_counts import SharedCounts

    shared = SharedCounts(link, local, name=settings.gateway_name)
    return Counting(shared, shared.keep, shared.tried.wait)


def _open_link(url: str, *, timeout_s: float) -> "ValkeyLink":
    try:
        from steelyard.gateway.valkey_link import ValkeyLink, check_url
    except ImportError as error:
        raise ValkeyMissing from error
    try:
        check_url(url)
    except ValueError as error:
        raise SettingsInvalid(f"valkey_url: {error}") from error
    return ValkeyLink(url, timeout_s=timeout_s)
