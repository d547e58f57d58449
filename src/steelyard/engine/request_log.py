"""An append-only file with one JSON line for each sequence that ended: counts, never contents."""

import hashlib
import struct
from pathlib import Path

import msgspec

from steelyard.clock import Clock
from steelyard.engine.sequence import End, Sequence
from steelyard.errors import Failure


class RequestLogUnwritable(Failure):
    """The request log cannot be written."""

    code = "request_log_unwritable"


def digest_token_ids(token_ids: list[int]) -> str:
    """SHA-256 over the ids, each as four bytes, low byte first."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


class RequestLog:
    """Writes a line at the end of each sequence."""

    def __init__(self, path: Path, *, model: str, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise RequestLogUnwritable(
                f"cannot append to the request log {path}: {error}"
            ) from error

    def append(self, sequence: Sequence, *, end: End) -> None:
        """Record one ended sequence; the line reaches the operating system before this returns."""
        line = {
            "at": self._clock.now().isoformat(timespec="microseconds"),
            "request_id": sequence.request.request_id,
            "model": self._model,
            "prompt_tokens": sequence.prompt_tokens_prefilled,
            "completion_tokens": sequence.completion_tokens,
            "token_ids_sha256": digest_token_ids(sequence.token_ids),
            "end": end.value,
        }
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Write no more."""
        self._file.close()
