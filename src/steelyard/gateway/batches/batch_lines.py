"""The lines of a batch: read, checked, and made into requests that look like any other."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypedDict, Unpack

import anyio
import anyio.to_thread
import msgspec

from steelyard.gateway.batches.records import LineError
from steelyard.gateway.refusals import InvalidJson, InvalidRequest
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.gateway.workloads.classification import parse_classification
from steelyard.gateway.workloads.completion import parse_completion
from steelyard.gateway.workloads.embedding import parse_embedding
from steelyard.gateway.workloads.moderation import parse_moderation
from steelyard.gateway.workloads.rerank import parse_rerank

LINES_MAX: Final = 100_000
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
ERRORS_MAX: Final = 50
AHEAD_LINES_MAX: Final = 64
AHEAD_BYTES_MAX: Final = 1024 * 1024
ENDPOINTS: Final[Mapping[str, Callable[[bytes], Asked]]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/v1/embeddings": parse_embedding,
    "/v1/classifications": parse_classification,
    "/v1/moderations": parse_moderation,
    "/v1/rerank": parse_rerank,
}


class BatchLine(msgspec.Struct):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class AskedInBatch(TypedDict):
    """What a request of a batch knows beyond its body."""

    batch_id: str
    keep: Callable[[str, bytes], Awaitable[None]]
    new_attempt_id: Callable[[], str]


_decoder = msgspec.json.Decoder(BatchLine)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with something in them, from number 1 on; a longer one than allowed is cut."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX + 1):
            if line.strip():
                number += 1
                yield number, line


class OpenLines:
    """The lines that have no result, read in a thread, some ahead of those that are asked."""

    def __init__(self, path: Path, *, is_done: Callable[[int], bool]) -> None:
        self._lines = ((n, line) for n, line in numbered_lines(path) if not is_done(n))
        self._ahead: deque[tuple[int, bytes]] = deque()
        self._reading = anyio.Lock(fast_acquire=True)

    async def take(self) -> tuple[int, bytes] | None:
        """The next line; None behind the last one."""
        async with self._reading:
            if not self._ahead:
                self._ahead.extend(await anyio.to_thread.run_sync(self._read))
            return self._ahead.popleft() if self._ahead else None

    def _read(self) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        size = 0
        while len(found) < AHEAD_LINES_MAX and size < AHEAD_BYTES_MAX:
            following = next(self._lines, None)
            if following is None:
                break
            found.append(following)
            size += len(following[1])
        return found


def check_lines(path: Path, *, endpoint: str) -> tuple[int, list[LineError]]:
    """How many lines there are, and the first things that are wrong with them."""
    errors: list[LineError] = []
    seen: set[int] = set()
    count = 0
    for number, line in numbered_lines(path):
        count = number
        if number > LINES_MAX:
            message = f"a batch has at most {LINES_MAX} lines"
            return count, [*errors, LineError("too_many_lines", message, number)]
        error = _check_line(number, line, endpoint=endpoint, seen=seen)
        if error is not None:
            errors.append(error)
            if len(errors) == ERRORS_MAX:
                break
    if not count:
        errors.append(LineError("empty_file", "the file has no line", 1))
    return count, errors


def _check_line(number: int, line: bytes, *, endpoint: str, seen: set[int]) -> LineError | None:
    if len(line) > LINE_BYTES_MAX:
        return LineError("line_too_long", f"a line has at most {LINE_BYTES_MAX} bytes", number)
    try:
        read = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return LineError("invalid_json_line", f"the line is no request: {error}", number)
    if read.method != "POST":
        return LineError("invalid_method", f"the method is POST, not {read.method[:20]!r}", number)
    if read.url != endpoint:
        return LineError("mismatched_url", f"the batch is for {endpoint}", number)
    # A number for each name, so that a large batch stays small in memory.
    name = hash(read.custom_id)
    if name in seen:
        return LineError("duplicate_custom_id", f"{read.custom_id[:100]!r} came before", number)
    seen.add(name)
    return None


def read_line(line: bytes) -> BatchLine:
    """A line that was checked; raises InvalidJson."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise InvalidJson(f"the line is no request: {error}") from error


def asked_by(line: BatchLine, **changes: Unpack[AskedInBatch]) -> Asked:
    """What a line asks; raises InvalidRequest."""
    asked = ENDPOINTS[line.url](bytes(line.body))
    if asked.is_streamed:
        raise InvalidRequest("a line of a batch is not streamed", parameter="stream")
    return msgspec.structs.replace(asked, is_repeatable=True, **changes)
