"""The stream reader finds the same events however the bytes are cut."""

from hypothesis import given
from hypothesis import strategies as st

from steelyard.gateway.event_stream import EventStreamReader, write_event

LINES = st.sampled_from(
    [
        "data: one",
        "data:two",
        "data: 三",
        "data:",
        ": comment",
        "event: x",
        "id: 1",
        "",
        "",
        "data: [DONE]",
    ]
)


def _slow_reference(text: str) -> list[bytes]:
    """Line by line, as the specification words it."""
    payloads: list[bytes] = []
    data: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n")[:-1]:
        if line == "":
            if data:
                payloads.append("\n".join(data).encode())
            data = []
        elif line.startswith("data:"):
            value = line[5:]
            data.append(value[1:] if value.startswith(" ") else value)
    return payloads


@given(st.lists(LINES, max_size=20), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(1, 7)))
def test_any_cut_of_the_bytes_gives_the_same_events(
    lines: list[str], end: str, cuts: list[int]
) -> None:
    text = "".join(line + end for line in lines)
    whole = text.encode()
    reader = EventStreamReader()

    found: list[bytes] = []
    start = 0
    for cut in [*cuts, len(whole)]:
        found += reader.feed(whole[start : start + cut])
        start += cut
    found += reader.feed(whole[start:])

    assert found == _slow_reference(text)


def test_what_is_written_is_read() -> None:
    reader = EventStreamReader()

    assert reader.feed(write_event(b'{"a":1}') + write_event(b"[DONE]")) == [b'{"a":1}', b"[DONE]"]
