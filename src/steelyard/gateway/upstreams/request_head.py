"""The head of a request to an upstream, with what never changes written once."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

# What a path and its query may have as it is (RFC 3986), and what is escaped already.
_TARGET_SAFE: Final = "/%:@!$&'()*+,;=~-._?"
_USER_AGENT: Final = b"User-Agent: steelyard\r\n"
_KEPT_HEADS_MAX: Final = 256


class RequestHeads:
    """Writes heads for one server; `headers` go with every request."""

    def __init__(self, authority: str, headers: Mapping[str, str]) -> None:
        lines = [header(name, value) for name, value in headers.items()]
        self._always = b"".join(
            [header("Host", authority), b"Accept: */*\r\n", _USER_AGENT, *lines]
        )
        self._kept: dict[tuple[str, str, str | None], bytes] = {}

    def begin(self, method: str, target: str, *, content_type: str | None) -> bytes:
        """All of a head but what is told of one request; those of documents are kept."""
        key = (method, target, content_type)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        # Of a form each has a type of its own, by its boundary.
        head = request_line(method, target) + self._always
        if content_type is not None:
            head += header("Content-Type", content_type)
        if content_type in {None, "application/json"} and len(self._kept) < _KEPT_HEADS_MAX:
            self._kept[key] = head
        return head


def request_line(method: str, target: str) -> bytes:
    """The first line; a target is escaped where it has to be."""
    return f"{method} {quote(target, safe=_TARGET_SAFE)} HTTP/1.1\r\n".encode()


def header(name: str, value: str) -> bytes:
    """One line of a head; a value that would begin another line is refused."""
    if not value.isprintable():
        raise ValueError(f"the header {name} has a character that none may have")
    return f"{name}: {value}\r\n".encode()
