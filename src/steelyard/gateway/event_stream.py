"""Server-sent events, read from bytes that may be cut anywhere (WHATWG HTML, section 9.2).

Two things we do otherwise, for the sake of servers that err: an event without its empty line counts
when the stream ends, and one without data is nothing.
"""

from typing import Final

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
DATA: Final = b"data: "
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event without end."""


class EventStreamReader:
    """Takes bytes as they come and gives the data of each event that is complete."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._has_read_a_line = False
        self._ended_with_return = False

    def feed(self, received: bytes) -> list[bytes]:
        """The payloads that these bytes complete; comments and other fields are dropped."""
        if self._ended_with_return and received:
            # A line feed here is the second half of a line end that has been seen already.
            self._ended_with_return = False
            received = received.removeprefix(b"\n")
        if b"\r" in received:
            self._ended_with_return = received.endswith(b"\r")
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in received:
            self._keep(received)
            return []
        if received.endswith(b"\n\n") and not self._size and not self._data:
            plain = _plain_events(received)
            if plain is not None:
                self._has_read_a_line = True
                return plain
        first, *lines = received.split(b"\n")
        self._line.append(first)
        lines.insert(0, b"".join(self._line))
        self._line.clear()
        rest = lines.pop()
        payloads: list[bytes] = []
        for line in lines:
            self._read_line(line, payloads)
        self._size = sum(map(len, self._data))
        self._keep(rest)
        return payloads

    def end(self) -> list[bytes]:
        """The payload of an event that the end of the stream cut short of its empty line."""
        return self.feed(b"\n\n")

    def _keep(self, piece: bytes) -> None:
        self._line.append(piece)
        self._size += len(piece)
        if self._size > EVENT_BYTES_MAX:
            raise EventTooLong

    def _read_line(self, line: bytes, payloads: list[bytes]) -> None:
        if not self._has_read_a_line:
            self._has_read_a_line = True
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            self._data.append(b"")
        elif not line and self._data:
            payload = b"\n".join(self._data)
            self._data.clear()
            if payload:
                payloads.append(payload)


def _plain_events(received: bytes) -> list[bytes] | None:
    """The payloads of whole events that have a line of data each and nothing else, as most that
    come have; None if there is another kind among them."""
    if not received.startswith(DATA):
        return None
    payloads = received[len(DATA) : -2].split(b"\n\n" + DATA)
    # Each has the two line ends behind it, and there are no others.
    if received.count(b"\n") != 2 * len(payloads) or b"" in payloads:
        return None
    return payloads


def write_event(payload: bytes) -> bytes:
    """One event; its JSON, which may have come in several lines, is one line of data."""
    return DATA + payload.replace(b"\n", b" ") + b"\n\n"


def write_named_event(name: str, payload: bytes) -> bytes:
    """One event with a name; its JSON, which may have come in several lines, is one line of data."""
    return b"event: " + name.encode() + b"\n" + write_event(payload)


def payload_of(event: bytes) -> bytes:
    """The data of an event that was written here."""
    return event.partition(DATA)[2].removesuffix(b"\n\n")
