"""`steelyard scripted-upstream`: a server that plays a script, for tests, load and rehearsals.

It speaks every protocol that the gateway speaks to upstreams, and remembers what it was asked.
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec
import uvicorn
import uvloop

from steelyard.entrypoints.scripted_upstream.answers import chunks, list_answer, whole_answer
from steelyard.entrypoints.scripted_upstream.asgi import Receive, Scope, Send
from steelyard.entrypoints.scripted_upstream.script import ScriptedAnswer, ScriptPlayer
from steelyard.gateway.event_stream import write_event
from steelyard.gateway.upstreams.habits import IMAGES, MESSAGES, RESPONSES, TRANSCRIPTIONS
from steelyard.gateway.upstreams.scripted_lists import LIST_PATHS
from steelyard.gateway.upstreams.scripted_media import (
    image_events,
    images,
    transcript,
    transcript_events,
)
from steelyard.gateway.workloads.answer import Answer, PricedUsage
from steelyard.gateway.workloads.asked import JSON_TYPE
from steelyard.gateway.workloads.chat_as_messages import ChatAsMessages
from steelyard.gateway.workloads.chat_as_response import ChatAsResponse
from steelyard.gateway.workloads.form import FORM_TYPE, read_form
from steelyard.listening import listen
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import NO_USAGE
from steelyard.money import Currency, Money

REQUESTS_REMEMBERED_MAX: Final = 1_000
_AZURE: Final = re.compile(r"/openai/deployments/([^/]+)(/.*)")
_FACTS: Final = {
    "tokenizer_sha256": "0" * 64,
    "byte_level": True,
    "bytes_per_token_max": 16,
    "template_tokens_base": 10,
    "template_tokens_per_message": 5,
}
Document = dict[str, Any]


class _Unpriced(PricedUsage, frozen=True):
    """Counts without a price: this server charges nothing."""

    def price_fields(self) -> dict[str, str]:
        return {}


class ScriptedServer:
    """An ASGI application that plays a script."""

    def __init__(self, player: ScriptPlayer) -> None:
        self._player = player
        self._requests: list[Document] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path == "/scripted/requests":
            await _send_json(send, {"requests": self._requests})
        elif scope["method"] == "GET":
            await _send_json(send, self._models())
        else:
            await self._play(path, scope, await _read(receive), send)

    def _models(self) -> Document:
        script = self._player.script
        facts = {"steelyard": _FACTS | {"paths": script.paths}} if script.has_facts else {}
        listed = [
            {"id": name, "object": "model", "max_model_len": script.context_tokens_max, **facts}
            for name in script.models
        ]
        return {"object": "list", "data": listed}

    async def _play(self, path: str, scope: Scope, body: bytes, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = _asked(body, headers.get("content-type", JSON_TYPE))
        azure = _AZURE.fullmatch(path)
        if azure:
            asked["model"], path = azure[1], f"/v1{azure[2]}"
        if not path.startswith("/v1") and path != "/tokenize":
            path = f"/v1{path}"
        self._remember(scope, headers, asked)
        answer = self._player.answer_for(
            path=path, model=str(asked.get("model")), body=body.decode(errors="replace")
        )
        if answer.delay_s:
            await anyio.sleep(answer.delay_s)
        if answer.status != 200:
            await _refuse(answer, send)
        elif path.endswith(("/tokenize", "/count_tokens")):
            counts = {"count": answer.prompt_tokens, "input_tokens": answer.prompt_tokens}
            await _send_json(send, counts)
        elif answer.body is not None:
            await _send_pieces(send, _raw(answer), content_type=answer.content_type)
        elif asked.get("stream"):
            await _send_pieces(send, _stream(answer, path, asked), content_type=answer.content_type)
        else:
            await _send_json(send, await _whole(answer, path, asked))

    def _remember(self, scope: Scope, headers: dict[str, str], body: Document) -> None:
        query = scope["query_string"].decode()
        seen = {"path": scope["path"], "query": query, "headers": headers, "body": body}
        self._requests = [*self._requests[-REQUESTS_REMEMBERED_MAX:], seen]


def run_scripted_upstream(player: ScriptPlayer, *, host: str, port: int) -> None:
    """Serve until told to stop."""
    listener = listen(host, port, setting="--port")
    config = uvicorn.Config(
        ScriptedServer(player),
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        # What hangs for ever must not keep it from stopping.
        timeout_graceful_shutdown=2,
    )
    uvloop.run(uvicorn.Server(config).serve(sockets=[listener]))


def _asked(body: bytes, content_type: str) -> Document:
    """What was asked; of a form its fields, and of each file how long it is."""
    if not content_type.startswith(FORM_TYPE):
        return msgspec.json.decode(body)
    form = read_form(body, content_type)
    sizes = {name: len(file.content) for name, file in form.files.items()}
    return {**{name: form.value(name) for name in form.fields}, **sizes}


async def _whole(answer: ScriptedAnswer, path: str, asked: Document) -> Document:
    model = str(asked.get("model"))
    if answer.hangs_after_words is not None:
        await anyio.sleep_forever()
    if path in LIST_PATHS:
        return list_answer(answer, path=path, model=model, asked=asked)
    if path == TRANSCRIPTIONS:
        has_usage = answer.usage != "missing"
        return transcript(answer.words, seconds=answer.seconds, usage=has_usage)
    if path == IMAGES:
        has_usage, count = answer.usage != "missing", asked.get("n") or 1
        return images(answer.prompt_tokens, count=count, steps=answer.steps, usage=has_usage)
    chat = whole_answer(answer, path=path, model=model, choices=asked.get("n") or 1)
    told = _translator(path, asked)
    if told is None:
        return chat
    meter = AnswerMeter()
    told.read_whole(msgspec.json.encode(chat), meter)
    document: Document = msgspec.json.decode(told.write_whole(_counted(meter)))
    return {**document, "usage": document["usage"] if meter.reported else None}


async def _stream(answer: ScriptedAnswer, path: str, asked: Document) -> AsyncIterator[bytes]:
    for piece in _cut_all(_events(answer, path, asked), answer):
        match piece:
            case bytes():
                yield piece
            case "hang":
                await anyio.sleep_forever()
            case _:
                await anyio.sleep(answer.word_delay_s)


def _cut_all(events: Iterator[bytes | str], answer: ScriptedAnswer) -> Iterator[bytes | str]:
    """Events with the line ends that are wanted, in writes that are as short as is wanted."""
    for event in events:
        if isinstance(event, str):
            yield event
            continue
        written = event.replace(b"\n", answer.line_end.encode())
        step = answer.write_bytes or len(written)
        yield from (written[at : at + step] for at in range(0, len(written), step))


def _events(answer: ScriptedAnswer, path: str, asked: Document) -> Iterator[bytes | str]:
    """The events of a stream; `hang` and `pause` are for the caller to act out."""
    told, meter = _translator(path, asked), AnswerMeter()
    options: Document = asked.get("stream_options") or {}
    is_counting = bool(options.get("continuous_usage_stats"))
    model = str(asked.get("model"))
    if path == TRANSCRIPTIONS:
        parts = transcript_events(answer.words, seconds=answer.seconds, is_counting=True)
    elif path == IMAGES:
        count = asked.get("n") or 1
        parts = image_events(answer.prompt_tokens, count=count, steps=answer.steps)
    else:
        parts = chunks(answer, path=path, model=model, is_counting=is_counting)
    for position, chunk in enumerate(parts):
        if position == answer.breaks_after_words:
            return
        if position == answer.errors_after_words:
            yield write_event(msgspec.json.encode({"error": {"message": answer.error}}))
            return
        if position == answer.hangs_after_words:
            yield "hang"
        if answer.has_comments:
            yield b": keep-alive\n\n"
        if answer.word_delay_s:
            yield "pause"
        payload = msgspec.json.encode(chunk)
        yield from told.read_event(payload, meter) if told else (write_event(payload),)
    if told is not None:
        yield from told.write_end(_counted(meter), wants_usage=True)
    elif answer.has_done:
        yield write_event(b"[DONE]")


def _translator(path: str, asked: Document) -> Answer | None:
    body = msgspec.json.encode(asked)
    match path:
        case _ if path == MESSAGES:
            return ChatAsMessages(body)
        case _ if path == RESPONSES:
            return ChatAsResponse(body)
        case _:
            return None


def _counted(meter: AnswerMeter) -> PricedUsage:
    return _Unpriced(meter.reported or NO_USAGE, Money(0, Currency("XXX")), "")


async def _raw(answer: ScriptedAnswer) -> AsyncIterator[bytes]:
    assert answer.body is not None, "only for an answer that is given byte by byte"
    written = answer.body.encode()
    step = answer.write_bytes or max(1, len(written))
    for at in range(0, len(written), step):
        yield written[at : at + step]


async def _read(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _refuse(answer: ScriptedAnswer, send: Send) -> None:
    error = {"message": answer.error, "type": "scripted", "code": "scripted_refusal"}
    headers = {"retry-after": answer.retry_after} if answer.retry_after else {}
    await _send_json(send, {"error": error}, status=answer.status, headers=headers)


async def _send_json(
    send: Send, document: Document, *, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    body = msgspec.json.encode(document)
    names = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    names += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": names})
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(send: Send, pieces: AsyncIterator[bytes], *, content_type: str) -> None:
    names = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": names})
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await anyio.lowlevel.checkpoint()
    await send({"type": "http.response.body", "body": b""})
