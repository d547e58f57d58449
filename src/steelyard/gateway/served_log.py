"""One line for each attempt that was closed: `request.served`, written with those that end with it.

Commits end many attempts at once. Their lines are one write, after their answers are on their way.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec


class ServedLine(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of an attempt: nothing of the prompt or the answer."""

    request_id: str
    event_id: str
    attempt: int
    payer_id: str
    key_id: str
    endpoint: str
    model: str
    upstream: str
    input_tokens: int
    output_tokens: int
    charged_picos: int
    held_picos: int
    outcome: str
    timestamp: datetime
    event: str = "request.served"
    role: str = "gateway"
    level: str = "info"


_encoder = msgspec.json.Encoder()


def write_to_stderr(lines: bytes) -> None:
    """Where all logs go (`entrypoints/logs.py`)."""
    sys.stderr.write(lines.decode())
    sys.stderr.flush()


@dataclass(slots=True)
class ServedLog:
    """Gathers lines for one pass of the event loop."""

    write: Callable[[bytes], None] = write_to_stderr
    _lines: list[ServedLine] = field(default_factory=list[ServedLine])

    def add(self, line: ServedLine) -> None:
        if not self._lines:
            # What is written to clients now leaves in the next pass, and nobody waits for a line.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what has gathered."""
        if self._lines:
            lines, self._lines = self._lines, []
            self.write(_encoder.encode_lines(lines))
