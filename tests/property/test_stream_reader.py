"""The stream reader against a slow reference: whatever the bytes and wherever they are cut."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from steelyard.gateway.event_stream import EventStreamReader

LINE_END = re.compile(b"\r\n|\n|\r")
PIECES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data: ",
        b"data: {}\n\n",
        b"data: \n\n",
        b"data:  two spaces",
        "data: Grüße 你好 🙂".encode(),
        b": comment",
        b"event: ping",
        b"id: 7",
        b"retry: 100",
        b"\xef\xbb\xbf",
        b"nonsense",
        b"\n",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"\r\n\r\n",
    ]
)
STREAMS = st.one_of(
    st.lists(PIECES, max_size=30).map(b"".join),
    st.lists(st.sampled_from([b"data: x", b"\r", b"\n", b"d", b":", b" "]), max_size=40).map(
        b"".join
    ),
    st.binary(max_size=200),
)


def read_slowly(stream: bytes) -> list[bytes]:
    """The rules of the standard, one line after the other, over the whole stream at once."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    payloads: list[bytes] = []
    data: list[bytes] = []
    # The end of the stream ends the last line and the last event.
    for line in [*LINE_END.split(stream), b""]:
        if line == b"":
            payload = b"\n".join(data)
            data = []
            if payload:
                payloads.append(payload)
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
    return payloads


@given(stream=STREAMS, data=st.data())
def test_the_reader_agrees_with_the_standard_wherever_the_bytes_are_cut(
    stream: bytes, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    places = [0, *cuts, len(stream)]

    reader = EventStreamReader()
    found: list[bytes] = []
    for start, stop in pairwise(places):
        found += reader.feed(stream[start:stop])
    found += reader.end()

    assert found == read_slowly(stream)
