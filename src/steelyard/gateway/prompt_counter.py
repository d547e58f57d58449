"""Counts a prompt whose upstream does not, with the model's registered tokenizer.

It only says whether a long prompt is within its limit. What is held stays the bound by its bytes,
which no mistake of a tokenizer can make too small.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.errors import Failure
from steelyard.gateway.recounter import Recounter
from steelyard.ids import new_id
from steelyard.metering.recount import RecountJob

log = structlog.get_logger()

PROMPT_FIELDS: Final = (
    "messages",
    "prompt",
    "suffix",
    "tools",
    "stop",
    "functions",
    "response_format",
)


@dataclass(slots=True)
class PromptCounter:
    """One prompt at a time, never on the event loop."""

    recounter: Recounter
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def count(self, model: str, fields: Mapping[str, Any]) -> int | None:
        """The tokens of a prompt; None where nobody can count it."""
        prompt = write_prompt(fields)
        async with self._lock:
            return await anyio.to_thread.run_sync(self._count, model, prompt)

    def close(self) -> None:
        self.recounter.close()

    def _count(self, model: str, prompt: bytes) -> int | None:
        if model not in self.recounter.models():
            return None
        # There is no answer yet: a stream of nothing.
        job = RecountJob(
            id=new_id(),
            upstream="",
            model=model,
            prompt=prompt,
            answer=b"",
            is_streamed=True,
            reported_input=0,
            reported_output=0,
        )
        try:
            return self.recounter.recount(job).recounted_input
        except Failure as failure:
            log.error("prompt.not_counted", model=model, reason=str(failure))
            return None


def write_prompt(fields: Mapping[str, Any]) -> bytes:
    """What of a request its tokenizer sees."""
    return msgspec.json.encode({name: fields[name] for name in PROMPT_FIELDS if name in fields})
