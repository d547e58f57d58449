"""An append-only file with two JSON lines for each sequence, at its beginning and its end.

Counts, never contents. A beginning without an end from a run of the engine that is over means that
the engine was killed in the middle: billing asks for this after a crash.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.ids import new_id

if TYPE_CHECKING:
    # Not at run time: the log must be readable before torch is imported.
    from steelyard.engine.sequence import End, Sequence

# What can be asked for by id; older lines stay in the file.
_REQUESTS_INDEXED: Final = 100_000
_BYTES_READ_AT_START: Final = 64 * 1024 * 1024


class RequestLogUnwritable(Failure):
    """The request log cannot be written."""

    code = "request_log_unwritable"


def digest_token_ids(token_ids: list[int]) -> str:
    """SHA-256 over the ids, each as four bytes, low byte first."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


class RequestLog:
    """Writes what begins and ends, and finds a request again by its id."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._run_id = new_id()
        self._lock = threading.Lock()
        self._offsets: OrderedDict[str, list[int]] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._read_what_is_there()
        except OSError as error:
            raise RequestLogUnwritable(
                f"cannot append to the request log {path}: {error}"
            ) from error

    def record_opened(self, sequence: Sequence, *, model: str) -> None:
        """Record that a sequence begins, before any token of it is known."""
        request = sequence.request
        self._write(
            {
                "at": self._now(),
                "request_id": request.request_id,
                "index": request.index,
                "event": "opened",
                "run_id": self._run_id,
                "model": model,
                "prompt_tokens": sequence.prompt_tokens,
            }
        )

    def record_ended(self, sequence: Sequence, *, model: str, end: End, device: str) -> None:
        """Record one ended sequence; the line reaches the operating system before this returns."""
        request = sequence.request
        self._write(
            {
                "at": self._now(),
                "request_id": request.request_id,
                "index": request.index,
                "event": "ended",
                "run_id": self._run_id,
                "model": model,
                "prompt_tokens": sequence.prompt_tokens_prefilled,
                "cached_tokens": sequence.cached_tokens or 0,
                "completion_tokens": sequence.completion_tokens,
                "token_ids_sha256": digest_token_ids(sequence.token_ids),
                "end": end.value,
                "engine_us": sequence.time.engine_us,
                "device_us": sequence.time.device_us,
                "device": device,
            }
        )

    def find(self, request_id: str) -> dict[str, Any] | None:
        """What is known of the last request with this id."""
        found = self.find_all([request_id])
        return found[0] if found else None

    def find_all(self, request_ids: Collection[str]) -> list[dict[str, Any]]:
        """The same of many; those that are not known are left out."""
        with self._lock:
            places = {i: list(self._offsets[i]) for i in request_ids if i in self._offsets}
        if not places:
            return []
        with self._path.open("rb") as opened:
            return [
                self._found(request_id, [_line_at(opened, offset) for offset in offsets])
                for request_id, offsets in places.items()
            ]

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _found(self, request_id: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        answers: dict[int, dict[str, Any]] = {}
        for line in lines:
            answers[line["index"]] = self._answer(line)
        ended = [answer for answer in answers.values() if answer["state"] == "ended"]
        states = [answer["state"] for answer in answers.values()]
        return {
            "request_id": request_id,
            "model": lines[0]["model"],
            "state": next((s for s in ("lost", "running") if s in states), "ended"),
            # Several answers to one prompt share it, and it counts once.
            "prompt_tokens": max((answer["prompt_tokens"] for answer in ended), default=0),
            "completion_tokens": sum(answer["completion_tokens"] for answer in ended),
            "answers": [answers[index] for index in sorted(answers)],
        }

    def _answer(self, line: dict[str, Any]) -> dict[str, Any]:
        if line["event"] == "opened":
            state = "running" if line["run_id"] == self._run_id else "lost"
        else:
            state = "ended"
        kept = {key: value for key, value in line.items() if key not in _NOT_SHOWN}
        return {"state": state, **kept}

    def _now(self) -> str:
        return self._clock.now().isoformat(timespec="microseconds")

    def _write(self, line: dict[str, Any]) -> None:
        with self._lock:
            offset = self._file.seek(0, 2)
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
            self._index(line, offset)

    def _index(self, line: dict[str, Any], offset: int) -> None:
        request_id = line["request_id"]
        if line["event"] == "opened" and line["index"] == 0:
            # The same id asked again is a new request.
            self._offsets.pop(request_id, None)
        self._offsets.setdefault(request_id, []).append(offset)
        if len(self._offsets) > _REQUESTS_INDEXED:
            self._offsets.popitem(last=False)

    def _read_what_is_there(self) -> None:
        size = self._file.seek(0, 2)
        offset = self._file.seek(max(0, size - _BYTES_READ_AT_START))
        if offset > 0:
            offset += len(self._file.readline())
        for raw in self._file:
            if not raw.endswith(b"\n"):
                # The engine was killed while it wrote; the next line must not grow onto this one.
                self._file.write(b"\n")
                break
            line = _decode(raw)
            if line is not None:
                self._index(line, offset)
            offset += len(raw)


_NOT_SHOWN: Final = {"request_id", "event", "run_id", "model"}


def _decode(raw: bytes) -> dict[str, Any] | None:
    try:
        line = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    return line if {"request_id", "index", "event", "run_id", "model"} <= line.keys() else None


def _line_at(opened: Any, offset: int) -> dict[str, Any]:
    opened.seek(offset)
    return msgspec.json.decode(opened.readline(), type=dict[str, Any])
