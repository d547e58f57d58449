"""What the segments of an outbox survive: torn writes, failing disks, pruning; and what they do not."""

import random
from pathlib import Path

import msgspec
import pytest

from steelyard.eventlog.attempt_records import (
    OpenedAttempt,
    PendingEvent,
    PendingOpening,
)
from steelyard.eventlog.disk import FailingDisk
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.outbox_reader import OutboxPruned, OutboxReader
from steelyard.eventlog.segment import OutboxDamaged, segment_names
from steelyard.ids import new_id
from steelyard.metering.usage_event import decode_event
from tests.drafts import draft_of
from tests.unit.test_outbox import NOW, PLENTY, a_draft, a_record, refuses, wait_until

LATER = NOW.replace(year=2100)


def an_attempt(attempt_id: str | None = None) -> OpenedAttempt:
    return OpenedAttempt(
        id=attempt_id or new_id(),
        source="urn:a",
        payer_id="o",
        currency="USD",
        held=5,
        placed_at="2026-11-24T00:00:00.000000Z",
        bound_input=1,
        bound_output=1,
        opened=msgspec.Raw(b"{}"),
    )


def open_outbox(
    folder: Path, *, bytes_max: int = PLENTY, disk: FailingDisk | None = None
) -> Outbox:
    return Outbox(folder / "a.outbox", source=f"urn:a:{new_id()}", bytes_max=bytes_max, disk=disk)


def written(*pending: PendingEvent | PendingOpening) -> None:
    for each in pending:
        each.done.result(timeout=10)


def ids_in(folder: Path, *, after: int = 0, limit: int = 10_000) -> list[str]:
    reader = OutboxReader(folder / "a.outbox")
    return [decode_event(record.body).id for record in reader.read_after(after, limit=limit)]


def only_segment(folder: Path) -> Path:
    (name,) = segment_names(folder / "a.outbox")
    return name.path_in(folder / "a.outbox")


def test_an_attempt_that_was_opened_and_not_closed_is_told_to_the_next_life(
    tmp_path: Path,
) -> None:
    outbox = open_outbox(tmp_path)
    closed, left = new_id(), new_id()
    written(outbox.open(an_attempt(closed)), outbox.open(an_attempt(left)))
    written(outbox.append(draft_of(closed, a_record())))
    outbox.close()

    outbox = open_outbox(tmp_path)
    found = outbox.left_open()

    assert [attempt.id for attempt in found] == [left]
    assert outbox.open_among([closed, left]) == {left}
    assert outbox.events_among([closed, left]) == {closed}
    outbox.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_end_is_cut_off_and_everything_before_it_stays(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    outbox = open_outbox(tmp_path)
    drafts = [a_draft() for _ in range(3)]
    for draft in drafts:
        written(outbox.append(draft))
    outbox.close()
    segment = only_segment(tmp_path)
    whole = segment.read_bytes()
    torn = bytearray(whole[-chance.randrange(40, 900) :])
    torn[chance.randrange(len(torn))] ^= 1 << chance.randrange(8)
    segment.write_bytes(whole + torn[: chance.randrange(1, len(torn))])

    outbox = open_outbox(tmp_path)
    after = a_draft()
    written(outbox.append(after))
    outbox.close()

    assert ids_in(tmp_path) == [draft.id for draft in (*drafts, after)]
    assert segment.read_bytes() == whole


def test_a_batch_that_is_bad_before_a_good_one_is_damage_and_stops_the_gateway(
    tmp_path: Path,
) -> None:
    outbox = open_outbox(tmp_path)
    for _ in range(3):
        written(outbox.append(a_draft()))
    outbox.close()
    segment = only_segment(tmp_path)
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)

    with pytest.raises(OutboxDamaged, match="bad batch at byte 0"):
        open_outbox(tmp_path)
    with pytest.raises(OutboxDamaged, match="is bad at byte 0"):
        ids_in(tmp_path)


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, bytes_max=64 * 1024)
    for _ in range(30):
        written(outbox.append(a_draft()))
    outbox.close()
    names = segment_names(tmp_path / "a.outbox")
    names[1].path_in(tmp_path / "a.outbox").unlink()

    with pytest.raises(OutboxDamaged, match="lacks the events"):
        open_outbox(tmp_path)


def test_a_reader_sees_nothing_that_is_not_durable(tmp_path: Path) -> None:
    disk = FailingDisk()
    outbox = open_outbox(tmp_path, disk=disk)
    first = a_draft()
    written(outbox.append(first))

    disk.fails_to_sync = True
    second = outbox.append(a_draft())
    wait_until(lambda: refuses(outbox))

    assert ids_in(tmp_path) == [first.id]
    disk.fails_to_sync = False
    written(second)
    assert ids_in(tmp_path) == [first.id, second.draft.id]
    outbox.close()


@pytest.mark.parametrize("room", [0, 1, 500, 1500, 4000])
def test_a_full_disk_tears_nothing_and_what_waits_is_written_in_order(
    room: int, tmp_path: Path
) -> None:
    disk = FailingDisk()
    outbox = open_outbox(tmp_path, disk=disk)
    drafts = [a_draft() for _ in range(12)]
    written(outbox.append(drafts[0]))

    disk.room = room
    waiting = [outbox.append(draft) for draft in drafts[1:]]
    wait_until(lambda: refuses(outbox))
    disk.room = None
    written(*waiting)
    outbox.close()

    assert ids_in(tmp_path) == [draft.id for draft in drafts]
    open_outbox(tmp_path).close()


def test_what_could_not_be_written_at_the_end_is_counted_and_never_half_there(
    tmp_path: Path,
) -> None:
    disk = FailingDisk()
    outbox = open_outbox(tmp_path, disk=disk)
    disk.room = 10
    lost = outbox.append(a_draft())
    wait_until(lambda: refuses(outbox))

    outbox.close()

    assert outbox.figures().lost == 1
    with pytest.raises(EventLogUnavailable, match="closed before it could write"):
        lost.done.result(timeout=10)
    open_outbox(tmp_path).close()
    assert ids_in(tmp_path) == []


def test_new_attempts_are_refused_before_the_limit_and_open_ones_still_close(
    tmp_path: Path,
) -> None:
    outbox = open_outbox(tmp_path, bytes_max=64 * 1024)
    drafts: list[str] = []
    while not refuses(outbox):
        draft = a_draft()
        written(outbox.append(draft))
        drafts.append(draft.id)

    last = a_draft()
    written(outbox.append(last))

    assert ids_in(tmp_path) == [*drafts, last.id]
    outbox.close()


def test_segments_go_when_the_books_have_them_and_no_attempt_in_them_is_open(
    tmp_path: Path,
) -> None:
    outbox = open_outbox(tmp_path, bytes_max=64 * 1024)
    long_one = an_attempt()
    written(outbox.open(long_one))
    for _ in range(40):
        written(outbox.append(a_draft()))
    kept = len(segment_names(tmp_path / "a.outbox"))

    assert kept > 3
    assert outbox.prune(40, written_before=LATER) == 0
    written(outbox.append(draft_of(long_one.id, a_record())))
    assert outbox.prune(0, written_before=LATER) == 0
    outbox.set_bytes_max(PLENTY)
    assert outbox.prune(41, written_before=NOW.replace(year=2020)) == 0
    assert outbox.prune(41, written_before=LATER) == kept - 1
    outbox.close()
    outbox = open_outbox(tmp_path, bytes_max=64 * 1024)
    after = a_draft()
    written(outbox.append(after))
    outbox.close()
    assert ids_in(tmp_path, after=41) == [after.id]


def test_a_reader_that_asks_for_pruned_events_is_told(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, bytes_max=64 * 1024)
    for _ in range(40):
        written(outbox.append(a_draft()))
    outbox.prune(40, written_before=LATER)
    outbox.close()

    with pytest.raises(OutboxPruned, match="event 1 is asked for"):
        ids_in(tmp_path)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_a_reader_goes_on_where_it_was_in_steps_of_any_size(limit: int, tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, bytes_max=256 * 1024)
    drafts = [a_draft() for _ in range(100)]
    written(*[outbox.append(draft) for draft in drafts[:60]])
    for draft in drafts[60:]:
        written(outbox.open(an_attempt()), outbox.append(draft))
    reader = OutboxReader(tmp_path / "a.outbox")

    found: list[str] = []
    while records := reader.read_after(len(found), limit=limit):
        assert [record.position for record in records] == list(
            range(len(found) + 1, len(found) + len(records) + 1)
        )
        found += [decode_event(record.body).id for record in records]

    assert found == [draft.id for draft in drafts]
    assert len(reader.read_after(50, limit=5)) == 5
    outbox.close()
