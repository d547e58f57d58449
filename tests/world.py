"""The one test harness: the whole product in one process, spoken to in business verbs."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec

from steelyard.access.rate_limit import LocalCounts
from steelyard.access.tenant import Department, Organisation, PaysFrom
from steelyard.access.virtual_key import VirtualKey
from steelyard.app.stores import open_stores
from steelyard.billing.commands import new_command
from steelyard.billing.statement import Balance, Period, Statement, make_statement, read_balance
from steelyard.billing.top_up import add_credit
from steelyard.billing.verification import Check, verify_books
from steelyard.clock import FakeClock
from steelyard.entrypoints.openai_api.error_answer import error_body, status_of
from steelyard.entrypoints.openai_api.surfaces import SERVED, Surface
from steelyard.entrypoints.worker_process import Worker
from steelyard.errors import Failure, SteelyardError
from steelyard.eventlog.disk import Disk
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admission
from steelyard.gateway.answer_cache import AnswerCache
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.holding import Holding
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.limit_directory import LimitDefaults, LimitDirectory, LimitsByPlace
from steelyard.gateway.model_catalog import ModelCatalog, Routes, routes_to_all
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery import Recovery
from steelyard.gateway.relay import ClientLeft, UpstreamRefused
from steelyard.gateway.request_metrics import RequestMetrics
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.serve import serve
from steelyard.gateway.snapshot import Snapshot
from steelyard.gateway.upstream_audit import UpstreamAudit
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.ids import new_id
from steelyard.metering.usage_event import UsageEvent, decode_event
from steelyard.money import Currency, Money, read_decimal
from steelyard.pricing.price_book import PriceVersion, publishable_version
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.settings import Settings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
USD = Currency("USD")
PRICE_BOOK = """
schema: steelyard.price-book/v1
name: world
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: scripted
    prices:
      input.text: { amount: 2, per: 1M }
      output.text: { amount: 10, per: 1M }
"""
QUESTION = b"""{"model": "scripted", "max_tokens": 20,
    "messages": [{"role": "user", "content": "what do I owe?"}]}"""
INPUT_PRICE = 2_000_000
OUTPUT_PRICE = 10_000_000


@dataclass(slots=True)
class RecordingClient:
    """A client that remembers what it got, and that can leave after so many chunks of text."""

    leaves_after: int | None = None
    stops_reading_after: int | None = None
    takes_bytes: int | None = None
    # Called with each event that it gets.
    watches: Callable[[], None] | None = None
    leaves_after_events: int | None = None
    status: int | None = None
    document: dict[str, Any] = field(default_factory=dict[str, Any])
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    events: list[str] = field(default_factory=list[str])
    has_started: bool = False
    _gone: anyio.Event = field(default_factory=anyio.Event)
    _tell_left: Callable[[], None] | None = None

    async def left(self) -> None:
        if self._leaves_at_once():
            self._gone.set()
        await self._gone.wait()

    def when_left(self, tell: Callable[[], None] | None) -> None:
        self._tell_left = tell
        if self._leaves_at_once() or self._gone.is_set():
            self.leave()

    def leave(self) -> None:
        self._gone.set()
        if self._tell_left is not None:
            # As a connection does: never while somebody is at work.
            asyncio.get_running_loop().call_soon(self._tell_left)

    def _leaves_at_once(self) -> bool:
        return 0 in {self.leaves_after, self.leaves_after_events}

    async def start_stream(self, headers: dict[str, str]) -> None:
        self.has_started, self.status, self.headers = True, 200, headers

    async def send(self, event: bytes) -> None:
        """Several events may come in one piece, which is taken or not."""
        if self.stops_reading_after is not None and len(self.words()) >= self.stops_reading_after:
            raise ClientLeft
        if self.takes_bytes is not None:
            self.takes_bytes -= len(event)
            if self.takes_bytes < 0:
                raise ClientLeft
        for each in event.removesuffix(b"\n\n").split(b"\n\n"):
            self.events.append(each.decode().removeprefix("data: ").strip())
            if self.watches is not None:
                self.watches()
        if self.leaves_after is not None and len(self.words()) >= self.leaves_after:
            self.leave()
        if self.leaves_after_events is not None and len(self.events) >= self.leaves_after_events:
            self.leave()

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.has_started, self.status, self.headers = True, 200, headers
        self.body = body
        if headers.get("content-type", "application/json") == "application/json":
            self.document = json.loads(body)

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        self.has_started, self.status = True, refused.answer.status
        self.headers = headers
        self.document = json.loads(refused.answer.body)

    async def fail_stream(self, failure: Failure) -> None:
        if not self.has_started:
            raise failure
        await self.send(b"data: " + error_body(failure))

    def words(self) -> list[str]:
        """What has come in pieces: of a chat, or of a transcript."""
        chunks = self.chunks()
        spoken = [
            choice["delta"]["content"]
            for chunk in chunks
            for choice in chunk.get("choices", [])
            if choice["delta"].get("content")
        ]
        return spoken or [c["delta"] for c in chunks if c.get("type") == "transcript.text.delta"]

    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    def usage(self) -> dict[str, Any]:
        if self.document:
            return self.document["usage"]
        return next(chunk["usage"] for chunk in self.chunks() if chunk.get("usage"))


@dataclass(slots=True)
class Answered:
    """What became of a request: the client's side of it, or the error."""

    client: RecordingClient
    error: SteelyardError | None = None

    @property
    def status(self) -> int | None:
        return status_of(self.error) if self.error else self.client.status


class World:
    """One organisation's worth of product; build it in a `with`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stores = open_stores(settings, should_migrate=True)
        self.clock = FakeClock(NOW)
        self.upstream = ScriptedUpstream()
        self.routes: Routes | None = None
        self.monotonic: Callable[[], float] = time.monotonic
        self.disconnect_policies = DisconnectPolicies()
        self.audit: UpstreamAudit | None = None
        self.disk: Disk | None = None
        # What the next gateway that starts holds for at a time; zero: whole answers.
        self.hold_chunk_tokens = 0
        self.cache: AnswerCache | None = None
        self.keys: dict[str, VirtualKey] = {}
        self.tenants: dict[str, Organisation | Department] = {}
        self.publish_prices(PRICE_BOOK)
        self.start_gateway()
        self.start_worker()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_gateway()
        self.worker.close()
        self.stores.database.close()

    def publish_prices(self, text: str) -> None:
        published = self.stores.prices.versions()
        version = publishable_version(read_price_book(text, published=published))
        self.stores.prices.publish(version, at=self.clock.now())

    def start_gateway(self) -> None:
        self.outbox = Outbox(
            self.settings.outbox_dir / "world.outbox",
            source=f"urn:steelyard:gateway:world:{new_id()}",
            bytes_max=self.settings.outbox_bytes_max,
            disk=self.disk,
        )
        self.requests = RequestMetrics()
        self.holding = Holding.of(
            self.stores.books, self.outbox, self.clock, ttl_s=self.settings.lease_ttl_s
        )
        self.hold_desk = self.holding.hold_desk
        prices = Snapshot[Sequence[PriceVersion]](
            self.stores.prices.versions, self.stores.prices.revision
        )
        self.prices = PriceDirectory(prices, self.clock)
        self.limits = LimitDirectory(
            Snapshot[LimitsByPlace](self.stores.access.limits, self.stores.access.revision),
            LimitDefaults(
                input_tokens_max=self.settings.input_tokens_max,
                output_tokens_default=self.settings.output_tokens_default,
                requests_per_minute=self.settings.requests_per_minute,
            ),
        )
        self.counts = LocalCounts(lambda: self.clock.now().timestamp())
        self.admission = Admission(
            catalog=ModelCatalog(
                self.routes or routes_to_all([self.upstream]), monotonic=self.monotonic
            ),
            prices=self.prices,
            limits=self.limits,
            counts=self.counts,
            holding=self.holding,
            outbox=self.outbox,
            clock=self.clock,
            disconnect_policies=self.disconnect_policies,
            hold_chunk_tokens=self.hold_chunk_tokens,
            cache=self.cache,
        )

    def recover(self) -> int:
        """Close what earlier lives of the gateway left open, as its start does."""
        leases = LeaseRecovery(
            self.holding.lease_desk, self.outbox, self.clock, source_prefix="urn:steelyard:"
        )
        recovery = Recovery(
            books=self.stores.books,
            leases=leases,
            outbox=self.outbox,
            prices=self.prices,
            upstreams=[self.upstream],
            clock=self.clock,
            source_prefix="urn:steelyard:",
            patience_s=0,
        )
        left_open = recovery.find()

        async def resolve() -> None:
            await self.prices.snapshot.refresh()
            await recovery.resolve(left_open)

        anyio.run(resolve)
        return left_open.count

    def keep_leases(self) -> None:
        """One round of the lease keeper: whatever it would do in the background."""
        anyio.run(self.holding.keeper.look)

    def stop_gateway(self) -> None:
        self.hold_desk.close()
        self.outbox.close()

    def start_worker(self, *, batch_max: int = 1000) -> None:
        self.worker = Worker(self.stores, self.settings.outbox_dir, batch_max=batch_max)

    def organisation(
        self, name: str = "acme", *, dollars: str = "0", plan: str | None = None
    ) -> Organisation:
        """An organisation with a department and a key of the same name as itself."""
        organisation = Organisation(new_id(), name, USD, self.clock.now(), plan=plan)
        self.stores.access.insert_organisation(organisation)
        self.tenants[name] = organisation
        self.department(organisation, name, pays_from="organisation")
        if read_decimal(dollars):
            self.top_up(organisation, dollars)
        return organisation

    def department(
        self, organisation: Organisation, name: str, *, pays_from: PaysFrom = "department"
    ) -> Department:
        department = Department(new_id(), organisation, name, pays_from, self.clock.now())
        self.stores.access.insert_department(department)
        self.tenants[department.path] = department
        key = VirtualKey(
            id=new_id(),
            name=name,
            department=department,
            hint="",
            created_at=self.clock.now(),
            revoked_at=None,
        )
        self.stores.access.insert_key(key, secret_hash=new_id())
        self.keys[name] = key
        return department

    def top_up(self, tenant: Organisation | Department, dollars: str) -> None:
        add_credit(
            self.stores.books,
            tenant,
            amount=Money(read_decimal(dollars), USD),
            command=new_command(clock=self.clock, actor="test", reason="test"),
        )

    def chat(self, key: str = "acme", **given: Any) -> Answered:
        """Ask one question; `leaves_after` makes the client go after so many words."""
        return anyio.run(self.chat_async, key, given)

    async def chat_async(self, key: str, given: dict[str, Any]) -> Answered:
        client: RecordingClient = given.pop("client", None) or RecordingClient(
            leaves_after=given.pop("leaves_after", None),
            stops_reading_after=given.pop("stops_reading_after", None),
            takes_bytes=given.pop("takes_bytes", None),
            watches=given.pop("watches", None),
        )
        body = {
            "model": "scripted",
            "messages": [{"role": "user", "content": "what do I owe?"}],
            "max_tokens": 20,
            **({"stream_options": {"include_usage": True}} if given.get("stream") else {}),
            **given,
        }
        body = {name: value for name, value in body.items() if value is not None}
        cache_control = body.pop("cache_control", None)

        def parse() -> Asked:
            asked = parse_chat(json.dumps(body).encode())
            return msgspec.structs.replace(asked, cache_control=cache_control)

        return await self.ask_parsed_async(key, parse, client=client)

    def ask(self, path: str, key: str = "acme", **body: Any) -> Answered:
        """Ask for any work that is put as JSON."""
        surface = SERVED[path]
        assert isinstance(surface, Surface), f"{path} takes a form"
        return self.ask_parsed(key, lambda: surface.parse(json.dumps(body).encode()))

    def ask_parsed_in(self, run: RunLease) -> Answered:
        """Ask as part of a run, whose money is set aside as a whole."""
        return self.ask_parsed(
            "acme", lambda: msgspec.structs.replace(parse_chat(QUESTION), run_lease=run)
        )

    def ask_split(self, weights: Mapping[str, int], key: str = "acme") -> Answered:
        """Ask for what departments bear by weight, by their ids."""
        return self.ask_parsed(
            key, lambda: msgspec.structs.replace(parse_chat(QUESTION), split=weights)
        )

    def ask_parsed(self, key: str, parse: Callable[[], Asked], **client: Any) -> Answered:
        """Ask for anything; `client` says when the client leaves."""
        told = RecordingClient(**client)
        return anyio.run(lambda: self.ask_parsed_async(key, parse, client=told))

    async def ask_parsed_async(
        self, key: str, parse: Callable[[], Asked], *, client: RecordingClient
    ) -> Answered:
        await self.prices.snapshot.refresh()
        await self.limits.snapshot.refresh()
        await self.admission.catalog.refresh()
        gateway = self.gateway()
        try:
            asked = parse()
            with anyio.fail_after(20):
                await serve(gateway, asked, self.keys[key], client, request_id=new_id())
        except SteelyardError as error:
            return Answered(client, error)
        return Answered(client)

    def gateway(self) -> Gateway:
        return Gateway(self.admission, self.outbox, self.clock, self.audit, requests=self.requests)

    def settle(self) -> None:
        """Let the worker bring everything into the books."""
        while self.worker.work():
            pass

    def balance(self, tenant: str = "acme") -> Balance:
        with self.stores.reports.snapshot() as snapshot:
            return read_balance(snapshot, self.tenants[tenant])

    def statement(self, tenant: str = "acme") -> Statement:
        self.clock.advance(seconds=1)
        period = Period(NOW.replace(day=1), self.clock.now())
        with self.stores.reports.snapshot() as snapshot:
            return make_statement(snapshot, self.tenants[tenant], period=period)

    def events(self) -> list[UsageEvent]:
        """All events in the books, the oldest first."""
        with self.stores.reports.snapshot() as snapshot:
            recent = snapshot.recent_events(limit=10_000)
        return sorted((decode_event(event.body) for event in recent), key=lambda event: event.id)

    def verify(self) -> list[Check]:
        with self.stores.audit.snapshot() as snapshot:
            return verify_books(snapshot)

    def differences(self) -> list[str]:
        """Everything that verification finds wrong."""
        return [difference for check in self.verify() for difference in check.differences]
