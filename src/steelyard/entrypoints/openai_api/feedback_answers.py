"""What became of a suggestion, as editors tell it: `POST /v1/completions/{id}/feedback`, and Tabby's
`POST /v1/events`."""

import re
from typing import Any, Final, Literal

import anyio.to_thread
import msgspec

from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.entrypoints.openai_api.error_answer import EventNotFound
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.workloads.asked import read_typed
from steelyard.metering.usage_event import decode_event
from steelyard.storage.suggestion_store import FeedbackKind

PATH: Final = re.compile(r"/v1/completions/([^/]+)/feedback")
EVENTS_PATH: Final = "/v1/events"
# What our engine puts before the id of an event, to make it that of an answer.
_COMPLETION: Final = "cmpl-"


class FeedbackBody(msgspec.Struct):
    """What an editor says of a suggestion."""

    shown: bool = False
    accepted: bool = False


class TabbyEvent(msgspec.Struct):
    """What Tabby's editors say of one."""

    type: Literal["view", "select", "dismiss"]
    completion_id: str


_feedback_decoder = msgspec.json.Decoder(FeedbackBody)
_tabby_decoder = msgspec.json.Decoder(TabbyEvent)


async def feedback_answer(
    parts: GatewayParts, key: VirtualKey, path: str, body: bytes
) -> dict[str, Any]:
    """Keep what is told; raises EventNotFound for what is none of the key's organisation."""
    if path == EVENTS_PATH:
        told = read_typed(body, _tabby_decoder)
        kinds: list[FeedbackKind] = ["accepted"] if told.type == "select" else ["shown"]
        return await _record(parts, key, told.completion_id, kinds)
    match = PATH.fullmatch(path)
    if match is None:
        raise EventNotFound(f"there is nothing at {path[:200]}")
    given = read_typed(body, _feedback_decoder)
    kinds = [kind for kind, is_so in _kinds(given) if is_so]
    if not kinds:
        raise InvalidRequest("say shown, accepted, or both", parameter="shown")
    return await _record(parts, key, match[1], kinds)


def _kinds(given: FeedbackBody) -> list[tuple[FeedbackKind, bool]]:
    return [("shown", given.shown), ("accepted", given.accepted)]


async def _record(
    parts: GatewayParts, key: VirtualKey, suggestion_id: str, kinds: list[FeedbackKind]
) -> dict[str, Any]:
    event_id = suggestion_id.removeprefix(_COMPLETION)
    organisation_id = key.department.organisation.id
    is_recent = parts.gateway.recent.find(event_id, organisation_id=organisation_id) is not None

    def record() -> set[str]:
        if not is_recent and not _is_booked(parts, event_id, organisation_id):
            raise EventNotFound
        at = parts.stores.clock.now()
        store = parts.stores.suggestions
        store.record(event_id, kinds, organisation_id=organisation_id, at=at)
        return store.kinds_of(event_id)

    told = await anyio.to_thread.run_sync(record)
    return {
        "object": "completion.feedback",
        "event_id": event_id,
        "shown": bool(told),
        "accepted": "accepted" in told,
    }


def _is_booked(parts: GatewayParts, event_id: str, organisation_id: str) -> bool:
    with parts.stores.reports.snapshot() as snapshot:
        found = snapshot.recent_events(event_id=event_id, limit=1)
    return any(decode_event(one.body).data.organisation_id == organisation_id for one in found)
