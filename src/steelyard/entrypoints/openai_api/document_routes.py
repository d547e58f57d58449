"""The door of documents: POST /v1/documents, GET /v1/documents/{id}, POST /v1/documents/{id}/retry."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.entrypoints.openai_api.error_answer import DocumentNotFound
from steelyard.entrypoints.openai_api.http_client import HttpClient
from steelyard.gateway.documents.planning import Plan, plan_document
from steelyard.gateway.documents.runner import Progress
from steelyard.gateway.documents.store import StoredDocument, StoredPart
from steelyard.gateway.event_stream import write_event
from steelyard.gateway.refusals import NotEnoughMoney
from steelyard.gateway.relay import ClientLeft
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.workloads.asked import read_typed
from steelyard.gateway.workloads.document import parse_document
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.usage_event import decode_event, read_meters
from steelyard.money import read_decimal, write_decimal
from steelyard.storage.reports import SqlSnapshot
from steelyard.timestamp import write_timestamp

PATH = "/v1/documents"
RETRY = "/retry"


class RetryBody(msgspec.Struct):
    """The body of another try."""

    stream: bool | None = None


_retry_decoder = msgspec.json.Decoder(RetryBody)


async def serve_document(
    parts: GatewayParts, key: VirtualKey, body: bytes, client: HttpClient, request_id: str
) -> None:
    """Plan it, and run it unless only the plan was asked for."""
    kind = client.headers.get("content-type")
    asked = await anyio.to_thread.run_sync(parse_document, body, kind)
    plan = await plan_document(asked, key, parts.gateway.admission)
    headers = {"x-request-id": request_id}
    if asked.is_estimate:
        await client.answer(msgspec.json.encode(_estimate(plan)), headers)
        return
    document_id = new_id()
    run_lease = await _set_aside(parts, key, plan, document_id)
    at = write_timestamp(parts.gateway.clock.now())
    sources = [part.text for part in plan.parts]
    try:
        await anyio.to_thread.run_sync(
            lambda: parts.documents.store.add(
                document_id, key_id=key.id, at=at, wanted=plan.wanted, sources=sources
            )
        )
    except BaseException:
        run_lease.end()
        raise
    progress = parts.documents.start(document_id, run_lease)
    tell = partial(document_answer, parts, key, document_id)
    await _follow(client, progress, tell, is_streamed=asked.is_streamed, headers=headers)


async def serve_document_again(
    parts: GatewayParts, key: VirtualKey, body: bytes, client: HttpClient, request_id: str
) -> None:
    """Another try of a document that failed: only what is not paid for is asked."""
    document_id = client.path.removeprefix(f"{PATH}/").removesuffix(RETRY)
    wanted = read_typed(body or b"{}", _retry_decoder)
    await _find(parts, key, document_id)
    progress = await parts.documents.begin_again(document_id)
    tell = partial(document_answer, parts, key, document_id)
    headers = {"x-request-id": request_id}
    await _follow(client, progress, tell, is_streamed=bool(wanted.stream), headers=headers)


async def _follow(
    client: HttpClient,
    progress: Progress,
    tell: Callable[[], Awaitable[dict[str, Any]]],
    *,
    is_streamed: bool,
    headers: Mapping[str, str],
) -> None:
    """Tell what happens as long as somebody listens; the document goes on in any case."""
    if is_streamed:
        await client.start_stream(dict(headers))
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await client.left()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            async with aclosing(progress.follow()) as events:
                async for event in events:
                    if is_streamed and event["type"] == "document.part":
                        await client.send(write_event(msgspec.json.encode(event)))
            told = await tell()
            if is_streamed:
                last = {"type": f"document.{told['status']}", **told}
                await client.send(write_event(msgspec.json.encode(last)))
                await client.send(write_event(b"[DONE]"))
            else:
                await client.answer(msgspec.json.encode(told), headers)
        except ClientLeft:
            return
        finally:
            tasks.cancel_scope.cancel()
    if is_streamed and client.has_started:
        await client.finish()


async def document_answer(parts: GatewayParts, key: VirtualKey, document_id: str) -> dict[str, Any]:
    """How a document is doing, with a line for each part; raises DocumentNotFound."""
    found = await _find(parts, key, document_id)
    lines = await anyio.to_thread.run_sync(parts.documents.store.parts, document_id)

    def read() -> list[StoredPart]:
        with parts.stores.reports.snapshot() as snapshot:
            return [_with_charge(line, snapshot) for line in lines]

    return _told(found, await anyio.to_thread.run_sync(read))


async def _find(parts: GatewayParts, key: VirtualKey, document_id: str) -> StoredDocument:
    found = await anyio.to_thread.run_sync(parts.documents.store.find, document_id)
    if found is None or found.key_id != key.id:
        raise DocumentNotFound
    return found


def _with_charge(part: StoredPart, snapshot: SqlSnapshot) -> StoredPart:
    """The part, with its charge from the books where a crash took it from us."""
    if part.state != "charged" or part.cost or part.event_id is None:
        return part
    found = snapshot.recent_events(event_id=part.event_id, limit=1)
    if not found:
        return part
    record = decode_event(found[0].body).data
    usage = read_meters(record.meters)
    return msgspec.structs.replace(
        part,
        cost=record.amount,
        currency=record.currency,
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
    )


async def _set_aside(
    parts: GatewayParts, key: VirtualKey, plan: Plan, document_id: str
) -> RunLease:
    """Set the most that the document can cost aside, as a whole; raises NotEnoughMoney or
    BudgetExceeded."""
    department, holding = key.department, parts.gateway.admission.holding
    source, at = parts.gateway.outbox.source, parts.gateway.clock.now()
    hold = Hold(document_id, department.payer_id, plan.highest, source, at, "{}")
    project_id = key.project.id if key.project else None
    scope = HoldScope(
        department.organisation.id, department.id, project_id, key.id, plan.tokens_max
    )
    run_lease = holding.lease_for(document_id)
    try:
        await holding.set_aside(hold, scope, run_lease=run_lease)
    except HoldDeclined as declined:
        raise NotEnoughMoney(
            f"this document may cost up to {plan.highest}; available: {declined.available}; top up"
        ) from declined
    return run_lease


def _estimate(plan: Plan) -> dict[str, Any]:
    return {
        "object": "document.estimate",
        "model": plan.wanted.model,
        "task": plan.wanted.task,
        "parts": len(plan.parts),
        "calls_by_stage": plan.sizes,
        "highest_cost": write_decimal(plan.highest.picos),
        "currency": plan.highest.currency,
    }


def _told(document: StoredDocument, parts: list[StoredPart]) -> dict[str, Any]:
    charged = [part for part in parts if part.state == "charged"]
    picos = sum(read_decimal(part.cost) for part in charged if part.cost)
    currency = next((part.currency for part in charged if part.currency), None)
    lines = [
        {
            "stage": part.stage,
            "place": part.place,
            "status": part.state,
            "event_id": part.event_id,
            "prompt_tokens": part.prompt_tokens,
            "completion_tokens": part.completion_tokens,
            "cost": part.cost,
        }
        for part in parts
    ]
    is_over = document.state == "completed"
    return {
        "id": document.id,
        "object": "document",
        "status": document.state,
        "model": document.wanted.model,
        "task": document.wanted.task,
        "output_text": parts[-1].answer if is_over else None,
        "error": document.complaint,
        "parts": lines,
        "usage": {
            "prompt_tokens": sum(part.prompt_tokens or 0 for part in charged),
            "completion_tokens": sum(part.completion_tokens or 0 for part in charged),
            "cost": write_decimal(picos),
            "currency": currency,
        },
    }
