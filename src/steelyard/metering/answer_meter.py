"""The meter of one answer: what the upstream has reported so far, and what the client has got."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from steelyard.metering.usage import NO_USAGE, Usage

# CPython's hashlib lets other threads run while it sums up more than this.
DIGESTED_BYTES_MAX: Final = 2047


@dataclass(slots=True)
class AnswerMeter:
    """Counts while an answer passes; reading it never blocks the answer."""

    reported: Usage | None = None
    delivered: Usage = NO_USAGE
    raw_usage: bytes | None = None
    first_token_at: datetime | None = None
    finish_reason: str | None = None
    is_complete: bool = False
    # The client has left, and the answer is read to its end all the same.
    is_drained: bool = False
    # The money did not reach for more: the answer was ended at what was held.
    is_growth_denied: bool = False
    # What the client is handed is kept, to be counted again; of all others only sum and digest are.
    is_kept: bool = False
    delivered_bytes: int = 0
    _digest: Any = field(default_factory=sha256)
    _kept: list[bytes] = field(default_factory=list)

    def report(self, usage: Usage, *, raw: bytes) -> None:
        """The upstream says that this is the usage up to now."""
        self.reported = usage
        self.raw_usage = raw

    def deliver(self, pieces: Sequence[bytes], *, reported: Usage | None, at: datetime) -> None:
        """The client has been handed these, and with them all that had been reported up to them."""
        if self.is_drained:
            return
        joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._add_to_digest(joined)
        self.delivered_bytes += len(joined)
        if self.is_kept:
            self._kept.extend(pieces)
        if reported is None or not reported.has_output:
            return
        self.delivered = reported
        if self.first_token_at is None:
            self.first_token_at = at

    def _add_to_digest(self, content: bytes) -> None:
        """With more at a time the interpreter's lock is given away, which takes longer to get back
        than the sum takes."""
        if len(content) <= DIGESTED_BYTES_MAX:
            self._digest.update(content)
            return
        view = memoryview(content)
        for start in range(0, len(content), DIGESTED_BYTES_MAX):
            self._digest.update(view[start : start + DIGESTED_BYTES_MAX])

    @property
    def tokens_used(self) -> int | None:
        """All tokens that the upstream reported; None where it did work and said nothing."""
        if self.reported is not None:
            return self.reported.input_tokens + self.reported.output_tokens
        return None if self.is_complete or self.delivered_bytes else 0

    def delivered_lines(self) -> bytes:
        """What the client was handed: the chunks of a stream one a line, or the choices."""
        assert self.is_kept, "what was handed over was kept"
        return b"\n".join(self._kept)

    def output_digest(self) -> str:
        """SHA-256 over what the client was handed."""
        return self._digest.hexdigest()
