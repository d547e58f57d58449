"""The outbox: durable, chained, gap-free, and honest about a disk that fails."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from steelyard.eventlog.attempt_records import EventDraft, write_event
from steelyard.eventlog.group_commit import Commit
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.outbox_reader import OutboxReader
from steelyard.ids import new_id
from steelyard.metering.usage_event import (
    NO_UPSTREAM_USAGE,
    OpenedRecord,
    RecordEnding,
    UsageRecord,
    decode_event,
    encode_event,
    hash_event,
    join_record,
)
from tests.drafts import draft_of

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PLENTY = 1 << 30


def a_record(**changes: object) -> UsageRecord:
    record = UsageRecord(
        request_id="r",
        organisation_id="o",
        department_id="d",
        key_id="k",
        payer_id="o",
        endpoint="/v1/chat/completions",
        is_streamed=False,
        model_requested="m",
        model_served="m",
        upstream="u",
        admitted_at="2026-11-24T00:00:00.000000Z",
        price_version="0" * 64,
        currency="USD",
        request_digest="",
        build="0",
        hold_id="h",
        held="1",
        meters={},
        upstream_usage=NO_UPSTREAM_USAGE,
        count_source="none",
        end_cause="completed",
        first_token_at=None,
        ended_at="2026-11-24T00:00:00.000000Z",
        amount="0",
        output_digest=None,
    )
    return msgspec.structs.replace(record, **changes)


def a_draft(**changes: object) -> EventDraft:
    return draft_of(new_id(), a_record(**changes))


def test_events_form_a_chain_without_a_gap(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=PLENTY)
    for pending in [outbox.append(a_draft()) for _ in range(50)]:
        pending.done.result(timeout=10)
    outbox.close()

    bodies = [record.body for record in OutboxReader(tmp_path / "a.outbox").read_after(0, limit=99)]

    events = [decode_event(body) for body in bodies]
    assert [event.sequence for event in events] == [str(n) for n in range(1, 51)]
    assert [event.previoushash for event in events[1:]] == [hash_event(b) for b in bodies[:-1]]


def test_a_second_life_is_a_new_source_in_the_same_log(tmp_path: Path) -> None:
    for source in ("urn:a:1", "urn:a:2"):
        outbox = Outbox(tmp_path / "a.outbox", source=source, bytes_max=PLENTY)
        outbox.append(a_draft()).done.result(timeout=10)
        outbox.close()

    reader = OutboxReader(tmp_path / "a.outbox")
    records = reader.read_after(0, limit=10)

    assert [record.position for record in records] == [1, 2]
    assert [decode_event(record.body).sequence for record in records] == ["1", "1"]


def test_two_gateways_cannot_write_the_same_outbox(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=PLENTY)

    with pytest.raises(EventLogUnavailable, match="another gateway"):
        Outbox(tmp_path / "a.outbox", source="urn:b", bytes_max=PLENTY)

    outbox.close()


def test_a_full_disk_is_reported_and_what_waits_is_written_when_there_is_room(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=64 * 1024)
    drafts = [a_draft(request_id="x" * 8000) for _ in range(12)]

    waiting = [outbox.append(draft) for draft in drafts]

    wait_until(lambda: refuses(outbox))
    assert not all(pending.done.done() for pending in waiting)
    outbox.set_bytes_max(PLENTY)
    for pending in waiting:
        pending.done.result(timeout=10)
    outbox.check()
    outbox.close()
    assert len(OutboxReader(tmp_path / "a.outbox").read_after(0, limit=99)) == len(drafts)


def test_an_event_that_waits_can_be_amended_and_one_that_is_written_cannot(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=64 * 1024)
    written = outbox.append(a_draft())
    written.done.result(timeout=10)
    big = a_draft(request_id="x" * 100_000)
    waiting = outbox.append(big)
    wait_until(lambda: refuses(outbox))

    small = draft_of(big.id, a_record(end_cause="event_log_failed"))
    amended = outbox.amend(waiting, small)

    assert amended
    waiting.done.result(timeout=10)
    assert not outbox.amend(written, draft_of(written.draft.id, a_record(amount="1")))
    outbox.close()
    last = OutboxReader(tmp_path / "a.outbox").read_after(1, limit=1)[0]
    assert decode_event(last.body).data.end_cause == "event_log_failed"


def test_an_event_is_on_the_disk_as_the_last_amendment_that_was_taken_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "a.outbox", source="urn:a", bytes_max=PLENTY)
    finish = Commit[object].finish
    taken: list[int] = []

    def give_way_and_finish(commit: Commit[object], failure: Exception | None = None) -> None:
        time.sleep(0.001)
        finish(commit, failure)

    monkeypatch.setattr(Commit, "finish", give_way_and_finish)
    for _ in range(20):
        pending, count = outbox.append(a_draft(amount="0")), 0
        while outbox.amend(pending, draft_of(pending.draft.id, a_record(amount=str(count + 1)))):
            count += 1
        taken.append(count)
        pending.done.result(timeout=10)

    outbox.close()
    records = OutboxReader(tmp_path / "a.outbox").read_after(0, limit=20)
    assert [int(decode_event(record.body).data.amount) for record in records] == taken


def test_an_event_reads_back_to_what_it_was() -> None:
    record = a_record(
        upstream_usage=msgspec.Raw(b'{"prompt_tokens":3}'), meters={"input.text": "3"}
    )
    draft = draft_of(new_id(), record)

    body = write_event(draft, source="urn:a", sequence=1, previous_hash="0" * 64)

    assert encode_event(decode_event(body)) == body
    assert decode_event(body).data.meters == {"input.text": "3"}


def test_a_record_is_its_opening_and_its_ending() -> None:
    record = a_record(meters={"input.text": "3"}, lease_id="l", saved="0.1", project_id="p")
    fields = msgspec.structs.asdict(record)
    opened = OpenedRecord(**{name: fields[name] for name in OpenedRecord.__struct_fields__})
    ending = RecordEnding(**{name: fields[name] for name in RecordEnding.__struct_fields__})

    joined = join_record(msgspec.json.encode(opened), ending)

    assert joined == msgspec.json.encode(record)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EventLogUnavailable, match="cannot be written"):
        Outbox(tmp_path / "file" / "a.outbox", source="urn:a", bytes_max=PLENTY)


def refuses(outbox: Outbox) -> bool:
    try:
        outbox.check()
    except EventLogUnavailable:
        return True
    return False


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
