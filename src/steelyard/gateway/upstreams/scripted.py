"""An upstream that plays a script: answers, delays and faults, with no model behind it."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from steelyard.gateway.event_stream import EventStreamReader
from steelyard.gateway.upstreams.base import (
    ListedModel,
    LoggedAttempt,
    LoggedAttempts,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import (
    CHAT,
    COMPLETIONS,
    ENGINE,
    IMAGES,
    TRANSCRIPTIONS,
    Habits,
)
from steelyard.gateway.upstreams.scripted_lists import LIST_PATHS, list_document
from steelyard.gateway.upstreams.scripted_media import (
    image_events,
    images,
    transcript,
    transcript_events,
)
from steelyard.gateway.workloads.asked import JSON_TYPE
from steelyard.gateway.workloads.form import read_form
from steelyard.metering.token_bound import TokenizerFacts
from steelyard.metering.usage_event import CountSource

FACTS = TokenizerFacts(
    sha256="0" * 64,
    is_byte_level=True,
    bytes_per_token_max=16,
    template_tokens_base=10,
    template_tokens_per_message=5,
    special_tokens_added=1,
)


@dataclass(slots=True)
class Script:
    """What the upstream does with the next request; one word is one token.

    `fails_after_words` breaks the answer off, `hangs_after_words` leaves it open for ever, and
    `reports_usage` says whether counts are sent at all. One that is away lists no models either; one
    that `drops_requests` does.
    """

    words: Sequence[str] = ("hello", "world")
    prompt_tokens: int = 7
    status: int = 200
    is_away: bool = False
    drops_requests: bool = False
    fails_after_words: int | None = None
    hangs_after_words: int | None = None
    finish_reason: str = "stop"
    reports_usage: bool = True
    usage: dict[str, Any] | None = None
    # How long a sound is, as the upstream finds.
    seconds: float = 3.0
    # How many steps a picture takes.
    steps: int = 4
    # What is sent instead, byte for byte, in writes of so many bytes.
    raw: bytes | None = None
    raw_write_bytes: int = 65_536


@dataclass(slots=True)
class ScriptedUpstream:
    """Implements Upstream; remembers the bodies that it was sent."""

    script: Script = field(default_factory=Script)
    model: str = "scripted"
    name: str = "scripted"
    count_source: CountSource = "provider"
    habits: Habits = ENGINE
    context_tokens_max: int = 8192
    paths: frozenset[str] | None = frozenset(
        {CHAT, COMPLETIONS, TRANSCRIPTIONS, IMAGES, *LIST_PATHS}
    )
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    cancelled_count: int = 0
    logged: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    running: set[str] = field(default_factory=set[str])

    async def models(self) -> list[ListedModel]:
        self._check_presence()
        context = self.context_tokens_max
        return [ListedModel(self.model, context, FACTS, paths=self.paths)]

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        del path, body
        self._check_presence()
        return self.script.prompt_tokens

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        self._check_presence()
        known = {
            request_id: LoggedAttempt(msgspec.json.encode(self.logged[request_id]), "provider")
            for request_id in request_ids
            if request_id in self.logged
        }
        return LoggedAttempts(known, [one for one in request_ids if one in self.running])

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        del request_id, tenant
        self._begin(body, content_type)
        if self.script.status != 200:
            return self._refusal()
        if self.script.raw is not None:
            return UpstreamAnswer(200, self.script.raw)
        if path in LIST_PATHS:
            return await self._answer_list(path)
        for position in range(len(self.script.words) + 1):
            await self._act_at(position)
        return UpstreamAnswer(200, msgspec.json.encode(self._document(path)))

    def _document(self, path: str) -> dict[str, Any]:
        if path == TRANSCRIPTIONS:
            script = self.script
            return transcript(script.words, seconds=script.seconds, usage=script.reports_usage)
        if path == IMAGES:
            return images(
                self.script.prompt_tokens,
                count=self.bodies[-1].get("n") or 1,
                steps=self.script.steps,
                usage=self.script.reports_usage,
            )
        message = {"role": "assistant", "content": " ".join(self.script.words)}
        choice = {"index": 0, "message": message, "finish_reason": self.script.finish_reason}
        document: dict[str, Any] = {"id": "scripted", "model": self.model, "choices": [choice]}
        if self.script.reports_usage:
            document["usage"] = self._usage(len(self.script.words))
        return document

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AsyncGenerator["ScriptedStream"]:
        del request_id, tenant
        self._begin(body, content_type)
        try:
            yield ScriptedStream(self, path)
        except anyio.get_cancelled_exc_class():
            self.cancelled_count += 1
            raise

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, whatever was asked."""
        script, is_counting = self.script, self.habits.has_running_usage
        told: Iterable[dict[str, Any]] = ()
        if path == TRANSCRIPTIONS:
            told = transcript_events(
                script.words,
                seconds=script.seconds,
                is_counting=is_counting,
                usage=script.reports_usage,
            )
        elif path == IMAGES:
            told = image_events(
                script.prompt_tokens,
                count=self.bodies[-1].get("n") or 1,
                steps=script.steps,
                is_counting=is_counting,
                usage=script.reports_usage,
            )
        for position, event in enumerate(told):
            await self._act_at(position)
            yield event
        if path in {TRANSCRIPTIONS, IMAGES}:
            return
        async for chunk in self.chunks():
            yield chunk

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream, one a word, then the end and the usage."""
        for position, word in enumerate(self.script.words):
            await self._act_at(position)
            yield self._chunk([{"index": 0, "delta": {"content": word}}], position + 1)
        await self._act_at(len(self.script.words))
        count = len(self.script.words)
        end: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self.script.finish_reason}
        yield self._chunk([end], count)
        if self.script.reports_usage:
            yield self._chunk([], count)

    def refusal(self) -> UpstreamAnswer:
        return self._refusal()

    async def _answer_list(self, path: str) -> UpstreamAnswer:
        await self._act_at(0)
        document = list_document(path, self.bodies[-1], model=self.model)
        if self.script.reports_usage:
            document["usage"] = self._usage(0)
        return UpstreamAnswer(200, msgspec.json.encode(document))

    def _begin(self, body: bytes, content_type: str) -> None:
        self._check_presence()
        if content_type == JSON_TYPE:
            self.bodies.append(msgspec.json.decode(body))
        else:
            form = read_form(body, content_type)
            sent = {name: part.content for name, part in form.files.items()}
            self.bodies.append({**{name: form.value(name) for name in form.fields}, **sent})
        if self.script.drops_requests:
            raise UpstreamUnavailable("the scripted upstream dropped the request")

    def _check_presence(self) -> None:
        if self.script.is_away:
            raise UpstreamUnavailable("the scripted upstream is away")

    async def _act_at(self, position: int) -> None:
        if position == self.script.fails_after_words:
            raise UpstreamFailed("the scripted upstream broke off")
        if position == self.script.hangs_after_words:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    def _chunk(self, choices: list[dict[str, Any]], count: int) -> dict[str, Any]:
        chunk: dict[str, Any] = {"id": "scripted", "model": self.model, "choices": choices}
        if self.script.reports_usage:
            chunk["usage"] = self._usage(count)
        return chunk

    def _usage(self, count: int) -> dict[str, Any]:
        if self.script.usage is not None:
            return self.script.usage
        prompt = self.script.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": count,
            "total_tokens": prompt + count,
        }

    def _refusal(self) -> UpstreamAnswer:
        error = {"message": "scripted refusal", "type": "scripted", "code": "scripted_refusal"}
        return UpstreamAnswer(self.script.status, msgspec.json.encode({"error": error}), "3")


class ScriptedStream:
    """Implements UpstreamStream."""

    def __init__(self, upstream: ScriptedUpstream, path: str) -> None:
        self._upstream = upstream
        self._path = path

    @property
    def status(self) -> int:
        return self._upstream.script.status

    async def refusal(self) -> UpstreamAnswer:
        return self._upstream.refusal()

    async def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        raw = self._upstream.script.raw
        if raw is not None:
            for payloads in _read_in_pieces(raw, self._upstream.script.raw_write_bytes):
                await anyio.lowlevel.checkpoint()
                yield payloads
            return
        async for chunk in self._upstream.events(self._path):
            yield [msgspec.json.encode(chunk)]
        yield [b"[DONE]"]


def _read_in_pieces(raw: bytes, write_bytes: int) -> Iterator[Sequence[bytes]]:
    reader = EventStreamReader()
    for at in range(0, len(raw), write_bytes):
        payloads = reader.feed(raw[at : at + write_bytes])
        if payloads:
            yield payloads
    payloads = reader.end()
    if payloads:
        yield payloads
