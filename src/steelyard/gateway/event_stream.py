"""Server-sent events, read from bytes that may be cut anywhere (WHATWG HTML, section 9.2)."""

EVENT_BYTES_MAX = 4 * 1024 * 1024


class EventTooLong(Exception):
    """An event without end."""


class EventStreamReader:
    """Takes bytes as they come and gives the data of each event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """The payloads that these bytes complete; comments and other fields are dropped."""
        lines = (self._rest + received).replace(b"\r\n", b"\n").split(b"\n")
        # A carriage return at the end may be half of a line end: it waits with the rest.
        self._rest = lines.pop()
        if len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLong
        payloads: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                payloads.append(b"\n".join(self._data))
                self._data = []
        return payloads


def write_event(payload: bytes) -> bytes:
    """One event with one line of data."""
    return b"data: " + payload + b"\n\n"


def write_named_event(name: str, payload: bytes) -> bytes:
    """One event with a name and one line of data."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"
