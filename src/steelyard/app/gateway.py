"""Builds the gateway from its parts."""

from collections.abc import AsyncGenerator, Callable, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from steelyard.access.store import AccessStore
from steelyard.app.answer_caches import open_answer_cache
from steelyard.app.disconnect_setting import read_policies
from steelyard.app.limit_counts import open_counts
from steelyard.app.routing import Routing
from steelyard.app.stores import Stores, open_stores
from steelyard.clock import Clock
from steelyard.counting.counting_process import CountingProcess
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.recount_log import SUFFIX, RecountLog
from steelyard.eventlog.relay import read_relayed
from steelyard.gateway.admission import Admission
from steelyard.gateway.answer_store import SqliteAnswerStore
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.batches.batch_runner import BatchRunner
from steelyard.gateway.batches.batch_store import BatchStore
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.documents.runner import Documents
from steelyard.gateway.documents.store import DocumentStore
from steelyard.gateway.editor_sessions import EditorSessions
from steelyard.gateway.holding import Holding
from steelyard.gateway.idempotency import Idempotency
from steelyard.gateway.key_directory import KeyDirectory, SecretsByHash
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.limit_directory import LimitDefaults, LimitDirectory, LimitsByPlace
from steelyard.gateway.model_catalog import ModelCatalog
from steelyard.gateway.outbox_pruning import OutboxPruning
from steelyard.gateway.pipelines.pipeline_runner import PipelineRunner
from steelyard.gateway.pipelines.run_store import RunStore
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.prompt_counter import PromptCounter
from steelyard.gateway.recovery import Recovery
from steelyard.gateway.snapshot import Snapshot, SnapshotWatch
from steelyard.gateway.upstream_audit import UpstreamAudit
from steelyard.gateway.upstreams.base import Upstream
from steelyard.ids import new_id
from steelyard.metering.usage_event import EventCharge, decode_event
from steelyard.pricing.price_book import PriceVersion
from steelyard.settings import Settings

# Longer than reading all keys can take.
JUST_REVOKED: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the gateway's HTTP application serves with."""

    gateway: Gateway
    keys: KeyDirectory
    limits: LimitDirectory
    catalog: ModelCatalog
    idempotency: Idempotency
    stores: Stores
    routing: Routing
    batches: BatchRunner
    pipelines: PipelineRunner
    documents: Documents
    sessions: EditorSessions = field(default_factory=EditorSessions)


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncGenerator[GatewayParts]:
    """Build the gateway, find what an earlier life left open, and keep it fresh."""
    async with AsyncExitStack() as closing, _open_parts(settings, closing) as parts:
        yield parts


@asynccontextmanager
async def _open_parts(settings: Settings, closing: AsyncExitStack) -> AsyncGenerator[GatewayParts]:
    """Whatever is opened is closed again, the last first, should only a part of it open."""
    routing = Routing(settings)
    catalog = ModelCatalog(await routing.load())
    stores = await anyio.to_thread.run_sync(lambda: open_stores(settings))
    closing.callback(stores.database.close)
    outbox = await anyio.to_thread.run_sync(lambda: _open_outbox(settings))
    closing.push_async_callback(anyio.to_thread.run_sync, outbox.close)
    holding = Holding.of(stores.books, outbox, stores.clock, ttl_s=settings.lease_ttl_s)
    closing.push_async_callback(holding.close)
    keys = _key_directory(stores)
    limits = _limit_directory(settings, stores.access)
    prices = _price_directory(stores)
    counting = open_counts(settings)
    recovery = _recovery(
        settings, stores, holding, prices=prices, upstreams=catalog.routes.upstreams
    )
    prompt_counter = PromptCounter(_counting_process(settings))
    closing.callback(prompt_counter.close)
    cache = open_answer_cache(settings, stores.clock, closing=closing)
    admission = Admission(
        catalog=catalog,
        prices=prices,
        limits=limits,
        counts=counting.counts,
        holding=holding,
        outbox=outbox,
        clock=stores.clock,
        disconnect_policies=_disconnect_policies(settings),
        hold_chunk_tokens=settings.hold_chunk_tokens,
        prompt_counter=prompt_counter,
        cache=cache,
    )
    watch_pruning = _pruning(settings, stores, outbox).watch
    answers = _answers(settings, stores.clock)
    closing.callback(answers.close)
    kept = Idempotency(answers, wait_s=settings.idempotency_wait_s)
    audit = await anyio.to_thread.run_sync(lambda: _open_audit(settings, stores.clock))
    closing.push_async_callback(anyio.to_thread.run_sync, audit.close)
    gateway = Gateway(admission, outbox, stores.clock, audit)
    closing.callback(gateway.served.flush)
    batches = await _open_batches(settings, stores, gateway, closing=closing)
    pipelines = await _open_pipelines(settings, stores, gateway, closing=closing)
    documents = await _open_documents(settings, stores, gateway, closing=closing)
    left_open = await anyio.to_thread.run_sync(recovery.find)
    snapshots = keys.revoked, keys.snapshot, limits.snapshot, prices.snapshot
    for snapshot in snapshots:
        await snapshot.refresh()
    watches = [SnapshotWatch(snapshots, settings.refresh_s).watch]
    watches += [catalog.watch, watch_pruning, holding.keeper.keep, counting.keep]
    watches += [batches.run, documents.keep]
    async with routing.opened(catalog), anyio.create_task_group() as tasks:
        for watch in watches:
            tasks.start_soon(watch)
        await counting.ready()
        tasks.start_soon(recovery.resolve, left_open)
        yield GatewayParts(
            gateway, keys, limits, catalog, kept, stores, routing, batches, pipelines, documents
        )
        tasks.cancel_scope.cancel()


async def _open_documents(
    settings: Settings, stores: Stores, gateway: Gateway, *, closing: AsyncExitStack
) -> Documents:
    """As with batches: before recovery adds events of its own."""
    path = settings.data_dir / "documents.db"
    store = await anyio.to_thread.run_sync(lambda: DocumentStore(path, owner=settings.gateway_name))
    closing.callback(store.close)
    documents = Documents(store, gateway, stores.access.find_key, keep_s=settings.documents_keep_s)

    def with_event(ids: list[str]) -> set[str]:
        return {*_booked(stores, set(ids)).keys(), *gateway.outbox.events_among(ids)}

    await anyio.to_thread.run_sync(documents.find_unfinished, with_event)
    return documents


def _recovery(
    settings: Settings,
    stores: Stores,
    holding: Holding,
    *,
    prices: PriceDirectory,
    upstreams: Sequence[Upstream],
) -> Recovery:
    source_prefix, outbox = _source_prefix(settings), holding.outbox
    return Recovery(
        books=stores.books,
        leases=LeaseRecovery(holding.lease_desk, outbox, stores.clock, source_prefix),
        outbox=outbox,
        prices=prices,
        upstreams=upstreams,
        clock=stores.clock,
        source_prefix=source_prefix,
        patience_s=settings.recovery_patience_s,
    )


def _source_prefix(settings: Settings) -> str:
    return f"urn:steelyard:gateway:{settings.gateway_name}:"


def _open_outbox(settings: Settings) -> Outbox:
    return Outbox(
        _outbox_path(settings),
        source=_source_prefix(settings) + new_id(),
        bytes_max=settings.outbox_bytes_max,
    )


def _answers(settings: Settings, clock: Clock) -> SqliteAnswerStore:
    return SqliteAnswerStore(
        settings.data_dir / "answers.db",
        owner=settings.gateway_name,
        clock=clock,
        keep_s=settings.idempotency_keep_s,
        bytes_max=settings.idempotency_bytes_max,
    )


async def _open_batches(
    settings: Settings, stores: Stores, gateway: Gateway, *, closing: AsyncExitStack
) -> BatchRunner:
    """What batches were charged is told by the events that are there before recovery adds its own:
    open them before it."""
    store = await anyio.to_thread.run_sync(lambda: BatchStore(settings.data_dir / "files"))
    closing.callback(store.close)
    batches = BatchRunner(
        store=store,
        gateway=gateway,
        clock=stores.clock,
        owner=settings.gateway_name,
        lines_at_once=settings.batch_lines_at_once,
        find_key=stores.access.find_key,
        booked=lambda ids: {one: found.amount for one, found in _booked(stores, ids).items()},
    )
    await anyio.to_thread.run_sync(batches.find)
    return batches


async def _open_pipelines(
    settings: Settings, stores: Stores, gateway: Gateway, *, closing: AsyncExitStack
) -> PipelineRunner:
    """As with batches: before recovery adds events of its own."""
    path = settings.data_dir / f"runs-{settings.gateway_name}.db"
    store = await anyio.to_thread.run_sync(lambda: RunStore(path))
    closing.callback(store.close)
    pipelines = PipelineRunner(
        gateway=gateway,
        store=store,
        clock=stores.clock,
        folder=settings.pipelines_dir or settings.data_dir / "pipelines",
        find_department=stores.access.find_department,
        booked=lambda ids: _booked(stores, ids),
    )
    await anyio.to_thread.run_sync(pipelines.find)
    return pipelines


def _booked(stores: Stores, event_ids: Set[str]) -> dict[str, EventCharge]:
    """What those of these events charge that are in the books."""
    with stores.reports.snapshot() as snapshot:
        found = [snapshot.recent_events(event_id=one, limit=1) for one in event_ids]
    events = [decode_event(event.body) for listed in found for event in listed]
    return {event.id: EventCharge(event.data.amount, event.data.meters) for event in events}


def _pruning(settings: Settings, stores: Stores, outbox: Outbox) -> OutboxPruning:
    return OutboxPruning(
        outbox,
        stores.books,
        stores.clock,
        keep_s=settings.outbox_keep_s,
        every_s=settings.outbox_prune_s,
        relayed=_relayed(settings),
    )


def _relayed(settings: Settings) -> Callable[[], int] | None:
    """How far the relay is with this gateway's outbox, where there is one."""
    if settings.event_log == "outbox":
        return None
    return lambda: read_relayed(_outbox_path(settings))


def _outbox_path(settings: Settings) -> Path:
    return settings.outbox_dir / f"{settings.gateway_name}.outbox"


def _open_audit(settings: Settings, clock: Clock) -> UpstreamAudit:
    path = settings.outbox_dir / f"{settings.gateway_name}{SUFFIX}"
    return UpstreamAudit(
        _counting_process(settings),
        RecountLog(path),
        share=settings.audit_share,
        waiting_max=settings.audit_waiting_max,
        clock=clock,
    )


def _counting_process(settings: Settings) -> CountingProcess:
    return CountingProcess(settings.tokenizers_dir, timeout_s=settings.audit_timeout_s)


def _limit_directory(settings: Settings, access: AccessStore) -> LimitDirectory:
    snapshot = Snapshot[LimitsByPlace](access.limits, access.revision)
    defaults = LimitDefaults(
        input_tokens_max=settings.input_tokens_max,
        output_tokens_default=settings.output_tokens_default,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        requests_at_once=settings.requests_at_once,
        output_tokens_max=settings.output_tokens_max,
    )
    return LimitDirectory(snapshot, defaults)


def _disconnect_policies(settings: Settings) -> DisconnectPolicies:
    by_model = read_policies(settings.disconnect_policies or "")
    return DisconnectPolicies(settings.disconnect_policy, by_model)


def _price_directory(stores: Stores) -> PriceDirectory:
    snapshot = Snapshot[Sequence[PriceVersion]](stores.prices.versions, stores.prices.revision)
    return PriceDirectory(snapshot, stores.clock)


def _key_directory(stores: Stores) -> KeyDirectory:
    access = stores.access
    snapshot = Snapshot[SecretsByHash](
        lambda: {secret.secret_hash: secret for secret in access.secrets()},
        access.revision,
    )
    revoked = Snapshot[frozenset[str]](
        lambda: access.revoked_keys(since=stores.clock.now() - JUST_REVOKED),
        access.revision,
    )
    return KeyDirectory(snapshot, revoked, stores.pepper, stores.clock)
