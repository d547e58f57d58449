"""Opens the answer cache: in a file of this machine, or in Valkey for all."""

import time
from contextlib import AsyncExitStack

from steelyard.app.limit_counts import ValkeyMissing
from steelyard.clock import Clock
from steelyard.gateway.answer_cache import AnswerCache
from steelyard.gateway.answer_store import SqliteAnswerStore
from steelyard.gateway.kept_answers import AnswerStore
from steelyard.settings import Settings, SettingsInvalid


def open_answer_cache(settings: Settings, clock: Clock, *, closing: AsyncExitStack) -> AnswerCache:
    """Raises ValkeyMissing or SettingsInvalid; while Valkey is away nothing is cached."""
    store: AnswerStore
    if settings.answer_cache_url is None:
        store = SqliteAnswerStore(
            settings.data_dir / "cache.db",
            owner=settings.gateway_name,
            clock=clock,
            keep_s=settings.answer_cache_keep_s,
            bytes_max=settings.answer_cache_bytes_max,
        )
        closing.callback(store.close)
    else:
        store = _in_valkey(settings.answer_cache_url, settings, closing=closing)
    return AnswerCache(store, clock, wait_s=settings.answer_cache_wait_s)


def _in_valkey(url: str, settings: Settings, *, closing: AsyncExitStack) -> AnswerStore:
    try:
        from steelyard.gateway.shared_answers import ValkeyAnswerStore
        from steelyard.gateway.valkey_link import check_url
    except ImportError as error:
        raise ValkeyMissing from error
    try:
        check_url(url)
    except ValueError as error:
        raise SettingsInvalid(f"answer_cache_url: {error}") from error
    store = ValkeyAnswerStore(
        url,
        timeout_s=settings.valkey_timeout_s,
        keep_s=settings.answer_cache_keep_s,
        lock_s=settings.answer_cache_wait_s,
        monotonic=time.monotonic,
    )
    closing.callback(store.close)
    return store
