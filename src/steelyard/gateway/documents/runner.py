"""Runs documents: part by part through `serve`, each held, metered and charged as a chat is.

It goes on whether anybody waits or not, and where it was when the gateway starts again.
"""

import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.access.rate_limit import RateLimited
from steelyard.access.virtual_key import KeyRevoked, VirtualKey
from steelyard.errors import SteelyardError
from steelyard.gateway.documents.part_answer import PartRefused, text_of, usage_of
from steelyard.gateway.documents.store import (
    DocumentOver,
    DocumentStore,
    DocumentsUnavailable,
    StoredDocument,
    StoredPart,
)
from steelyard.gateway.documents.tasks import ask_for
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.serve import Gateway, serve
from steelyard.gateway.upstreams.base import UpstreamFailed, UpstreamUnavailable
from steelyard.gateway.whole_client import WholeClient
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.timestamp import write_timestamp

log = structlog.get_logger()

ENDPOINT: Final = "/v1/documents"
PARTS_AT_ONCE: Final = 4
TRIES_MAX: Final = 5
TRY_AGAIN_S: Final = 1.0
PRUNE_S: Final = 600.0
Event = dict[str, Any]
T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """What has happened to a document since the gateway started, for whoever watches."""

    events: list[Event] = field(default_factory=list[Event])
    is_over: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, event: Event, *, is_last: bool = False) -> None:
        self.events.append(event)
        self.is_over = is_last
        self._changed.set()
        self._changed = anyio.Event()

    async def follow(self) -> AsyncGenerator[Event]:
        """Every event from the first to the last."""
        at = 0
        while True:
            while at < len(self.events):
                yield self.events[at]
                at += 1
            if self.is_over:
                return
            await self._changed.wait()


@dataclass(slots=True)
class Documents:
    """The documents of this gateway."""

    store: DocumentStore
    gateway: Gateway
    find_key: Callable[[str], VirtualKey]
    # How long a document is kept after it was begun, unless it still runs.
    keep_s: float
    progress: dict[str, Progress] = field(default_factory=dict[str, Progress])
    # One hold for all parts of a document, while it runs.
    _run_leases: dict[str, RunLease] = field(default_factory=dict[str, RunLease])
    _todo: list[str] = field(default_factory=list[str])
    _woken: anyio.Event = field(default_factory=anyio.Event)

    def find_unfinished(self, has_event: Callable[[list[str]], set[str]]) -> None:
        """Sort out what a crash left between an answer and its event. Call it before recovery writes
        events of its own: then an answer was charged if, and only if, its event is there."""
        answered = self.store.answered()
        charged = has_event(list(answered))
        for event_id, part in answered.items():
            if event_id in charged:
                self.store.keep_charge(part, cost="", currency="", tokens=(0, 0))
            else:
                self.store.forget_answer(part)
        for document in self.store.running():
            self.start(document.id)

    def start(self, document_id: str, run_lease: RunLease | None = None) -> Progress:
        """Let a document run as soon as the gateway does, out of what was set aside for it."""
        holding = self.gateway.admission.holding
        self._run_leases[document_id] = run_lease or holding.lease_for(document_id)
        progress = self.progress[document_id] = Progress()
        self._todo.append(document_id)
        self._woken.set()
        return progress

    async def begin_again(self, document_id: str) -> Progress:
        """Ask what a document that failed has not paid for; raises DocumentOver where nothing
        failed."""
        is_at_work = document_id in self.progress
        if is_at_work or not await _in_thread(partial(self.store.reopen, document_id)):
            raise DocumentOver
        return self.start(document_id)

    async def keep(self) -> None:
        """Run whatever is started, and delete what is old, for ever."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._prune)
            while True:
                while self._todo:
                    tasks.start_soon(self._run_document, self._todo.pop(0))
                self._woken = anyio.Event()
                await self._woken.wait()

    async def _run_document(self, document_id: str) -> None:
        progress = self.progress[document_id]
        try:
            document = await _in_thread(partial(self.store.find, document_id))
            assert document is not None, "a document is stored before it runs"
            key = await _in_thread(partial(self.find_key, document.key_id))
            if key.revoked_at is not None:
                raise KeyRevoked(f"the key {key.name!r} was revoked; ask for a new one")
            await self._run_stages(document, key, progress)
        except* SteelyardError as group:
            error = _first(group)
            log.warning("document.failed", document_id=document_id, code=error.code)
            await self._fail(document_id, error.code, str(error))
        except* Exception:
            log.exception("document.broke", document_id=document_id)
            await self._fail(document_id, "internal_error", "something is wrong with the gateway")
        finally:
            self._run_leases.pop(document_id).end()
            # Whoever follows it has it.
            self.progress.pop(document_id, None)

    async def _fail(self, document_id: str, code: str, message: str) -> None:
        try:
            await _in_thread(lambda: self.store.end(document_id, "failed", message))
        except DocumentsUnavailable as failure:
            # It goes on when the gateway starts again.
            log.warning("document.end_not_kept", document_id=document_id, reason=str(failure))
        told = {"type": "document.failed", "id": document_id}
        self.progress[document_id].tell(
            {**told, "error": {"code": code, "message": message}}, is_last=True
        )

    async def _prune(self) -> None:
        while True:
            before = self.gateway.clock.now() - timedelta(seconds=self.keep_s)
            try:
                count = await _in_thread(partial(self.store.prune, write_timestamp(before)))
            except DocumentsUnavailable as failure:
                log.warning("document.not_pruned", reason=str(failure))
            else:
                if count:
                    log.info("document.pruned", count=count)
            await anyio.sleep(PRUNE_S)

    async def _run_stages(
        self, document: StoredDocument, key: VirtualKey, progress: Progress
    ) -> None:
        stage = 0
        while True:
            everything = await _in_thread(partial(self.store.parts, document.id))
            parts = [part for part in everything if part.stage == stage]
            await self._run_stage(document, key, parts, progress)
            answers = await _in_thread(partial(self._answers, document.id, stage))
            if len(answers) == 1:
                break
            stage += 1
            sources = put_together(answers, group_size=document.wanted.group_size)
            await _in_thread(partial(self.store.add_stage, document.id, stage, sources))
        await _in_thread(lambda: self.store.end(document.id, "completed"))
        progress.tell({"type": "document.completed", "id": document.id}, is_last=True)
        log.info("document.completed", document_id=document.id, stages=stage + 1)

    def _answers(self, document_id: str, stage: int) -> list[str]:
        parts = [part for part in self.store.parts(document_id) if part.stage == stage]
        assert all(part.state == "charged" for part in parts), "a stage ends with its last part"
        return [part.answer or "" for part in parts]

    async def _run_stage(
        self,
        document: StoredDocument,
        key: VirtualKey,
        parts: list[StoredPart],
        progress: Progress,
    ) -> None:
        limiter = anyio.CapacityLimiter(PARTS_AT_ONCE)
        done = sum(part.state == "charged" for part in parts)

        async def run(part: StoredPart) -> None:
            nonlocal done
            async with limiter:
                usage = await self._run_part(document, key, part)
            done += 1
            place = {"stage": part.stage, "place": part.place, "done": done, "of": len(parts)}
            progress.tell({"type": "document.part", "id": document.id, **place, "usage": usage})

        async with anyio.create_task_group() as tasks:
            for part in parts:
                if part.state != "charged":
                    tasks.start_soon(run, part)

    async def _run_part(
        self, document: StoredDocument, key: VirtualKey, part: StoredPart
    ) -> dict[str, Any]:
        """Ask until it is answered; what is refused ends the document."""
        for number in range(1, TRIES_MAX + 1):
            try:
                with anyio.CancelScope() as scope:
                    return await self._ask(document, key, part, scope)
            except RateLimited as limited:
                await anyio.sleep(max(0.05, limited.retry_after_s))
            except (UpstreamUnavailable, UpstreamFailed) as failure:
                if number == TRIES_MAX or isinstance(failure, PartRefused):
                    raise
                await anyio.sleep(TRY_AGAIN_S * number)
        raise UpstreamUnavailable("the limits of the key leave no room for this document")

    async def _ask(
        self, document: StoredDocument, key: VirtualKey, part: StoredPart, scope: anyio.CancelScope
    ) -> dict[str, Any]:
        client = WholeClient()
        asked = self._asked(document, part, scope)
        request_id = f"{document.id}:{part.stage}:{part.place}"
        await serve(self.gateway, asked, key, client, request_id=request_id)
        usage = usage_of(client)
        await self._keep_charge((document.id, part.stage, part.place), usage)
        return usage

    async def _keep_charge(self, place: tuple[str, int, int], usage: dict[str, Any]) -> None:
        """Note what is charged, however long the disk takes: it must not be asked again."""
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        cost, currency = usage["cost"], usage["currency"]
        keep = partial(self.store.keep_charge, place, cost=cost, currency=currency, tokens=tokens)
        while True:
            try:
                return await _in_thread(keep)
            except DocumentsUnavailable as failure:
                log.warning("document.charge_not_kept", document_id=place[0], reason=str(failure))
                await anyio.sleep(TRY_AGAIN_S)

    def _asked(self, document: StoredDocument, part: StoredPart, scope: anyio.CancelScope) -> Asked:
        wanted = document.wanted
        instruction = wanted.for_answers if part.stage else wanted.for_part
        body = ask_for(instruction, part.source, model=wanted.model, tokens_max=wanted.tokens_max)
        place = (document.id, part.stage, part.place)

        async def keep(event_id: str, answer: bytes) -> None:
            text = text_of(answer)
            # Once it may be charged, nothing cancels the part before that is noted.
            scope.shield = True
            await _in_thread(partial(self.store.keep_answer, place, event_id=event_id, answer=text))

        asked = parse_chat(msgspec.json.encode(body))
        # An answer that a crash takes away is charged nothing, since the part is asked again.
        return msgspec.structs.replace(
            asked,
            endpoint=ENDPOINT,
            is_repeatable=True,
            keep=keep,
            run_lease=self._run_leases[document.id],
        )


def stage_sizes(part_count: int, group_size: int) -> list[int]:
    """How many calls each stage has."""
    sizes = [part_count]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / group_size))
    return sizes


def put_together(answers: list[str], *, group_size: int) -> list[str]:
    """What the next stage is asked about."""
    groups = [answers[at : at + group_size] for at in range(0, len(answers), group_size)]
    return ["\n\n".join(group) for group in groups]


def _first(group: BaseExceptionGroup[SteelyardError]) -> SteelyardError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, SteelyardError), found
    return found


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call)
