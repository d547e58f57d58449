"""What the stream reader does beside what its property says."""

import pytest

from steelyard.gateway.event_stream import (
    EVENT_BYTES_MAX,
    EventStreamReader,
    EventTooLong,
    write_event,
    write_named_event,
)


def test_what_is_written_is_read() -> None:
    reader = EventStreamReader()

    assert reader.feed(write_event(b'{"a":1}') + write_event(b"[DONE]")) == [b'{"a":1}', b"[DONE]"]


def test_what_came_in_several_lines_leaves_in_one() -> None:
    reader = EventStreamReader()
    (payload,) = reader.feed(b'data: {"a":\ndata: 1}\n\n')

    for written in (write_event(payload), write_named_event("a", payload)):
        assert EventStreamReader().feed(written) == [b'{"a": 1}']


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: " + b"y" * 65536 + b"\n"])
def test_an_event_without_end_is_not_kept(piece: bytes) -> None:
    reader = EventStreamReader()
    reader.feed(b"data: ")

    with pytest.raises(EventTooLong):
        for _ in range(EVENT_BYTES_MAX // 65536 + 2):
            reader.feed(piece)
