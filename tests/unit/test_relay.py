"""The relay: what it does where outboxes or the broker do not do their part."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from steelyard.eventlog.log import EventLogUnavailable, LogRecord
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.relay import Relay, read_relayed
from steelyard.eventlog.segment import OutboxDamaged, segment_names
from tests.unit.test_outbox import PLENTY, a_draft


@dataclass
class Sender:
    """Implements EventSender in memory."""

    sent: list[LogRecord] = field(default_factory=list[LogRecord])
    is_away: bool = False

    def send(self, records: Sequence[LogRecord]) -> None:
        if self.is_away:
            raise EventLogUnavailable("the broker is away")
        self.sent += records

    def close(self) -> None:
        """Nothing is open."""


def make_outbox(path: Path, *, events: int) -> None:
    outbox = Outbox(path, source=f"urn:{path.stem}", bytes_max=PLENTY)
    for pending in [outbox.append(a_draft()) for _ in range(events)]:
        pending.done.result(timeout=10)
    outbox.close()


def damage(outbox: Path) -> None:
    segment = segment_names(outbox)[0].path_in(outbox)
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)


def test_an_outbox_that_is_damaged_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_outbox(tmp_path / f"{name}.outbox", events=3)
    damage(tmp_path / "a.outbox")
    sender = Sender()
    relay = Relay(sender, tmp_path, batch_max=10)

    carried = relay.work()

    assert carried == len(sender.sent) == 6
    assert [read_relayed(tmp_path / f"{name}.outbox") for name in ("a", "b", "c")] == [0, 3, 3]
    with pytest.raises(OutboxDamaged):
        relay.work()


def test_what_the_broker_did_not_take_is_sent_again(tmp_path: Path) -> None:
    make_outbox(tmp_path / "a.outbox", events=5)
    sender = Sender(is_away=True)
    relay = Relay(sender, tmp_path, batch_max=2)

    with pytest.raises(EventLogUnavailable, match="the broker is away"):
        relay.work()
    sender.is_away = False
    while relay.work():
        pass

    assert [record.position for record in sender.sent] == [1, 2, 3, 4, 5]
