"""The upstream of the gateway's benchmark: OpenAI's protocol with canned answers, as fast as can be.

An answer has about 1 KB and 72 tokens. A stream has 32 chunks, a usage block and `[DONE]`, each in
a packet of its own, back to back. Of the model `paced` it has so many chunks as `max_tokens` says,
20 a second, each with the moment at which it was due, on the clock that all processes share.

Run: python -m benchmarks.gateway_upstream --port 9000
"""

import argparse
import asyncio
import json
import os
import re
import time
from typing import Any, cast

import httptools
import uvloop

CHUNKS = 32
CHUNK_EVERY_S = 0.05
PROMPT_TOKENS, COMPLETION_TOKENS = 181, 72
PACED = re.compile(rb'"model":\s*"paced"')
TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
STREAM = re.compile(rb'"stream":\s*true')
USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}
ID = "chatcmpl-0000000000000000"


def _chunk(delta: dict[str, Any], **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return _event(json.dumps(_named("chat.completion.chunk", choices=[choice], **fields)))


def _named(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": ID, "object": kind, "created": 1_790_000_000, "model": "canned", **fields}


def _event(payload: str) -> bytes:
    event = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _whole(body: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    return head.format(len(body)).encode() + body


MESSAGE = {"role": "assistant", "content": "All that is weighed is weighed twice. " * 17}
ANSWER = _whole(
    json.dumps(
        _named(
            "chat.completion",
            choices=[{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
            usage=USAGE,
        )
    ).encode()
)
MODELS = _whole(
    json.dumps(
        {
            "object": "list",
            "data": [{"id": name, "object": "model"} for name in ("canned", "paced")],
        }
    ).encode()
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
PIECES = [
    _chunk({"role": "assistant", "content": ""}, usage=None),
    *(_chunk({"content": f" word{i:02}"}, usage=None) for i in range(CHUNKS - 1)),
]
# The length of a chunk goes before it: a moment always has 17 characters.
PACED_CHUNK = _chunk({"content": "@" + "0" * 17 + " "}, usage=None).replace(b"0" * 17, b"%017.6f")
END = [
    _event(json.dumps(_named("chat.completion.chunk", choices=[], usage=USAGE))),
    _event("[DONE]") + b"0\r\n\r\n",
]


class CannedUpstream(asyncio.Protocol):
    """One connection; it answers each request when it has it whole."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket = self._transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._path.endswith(b"/models") or self._path == b"/health":
            self._transport.write(MODELS)
        elif STREAM.search(self._body) is None:
            self._transport.write(ANSWER)
        elif PACED.search(self._body) is None:
            self._stream_at_once()
        else:
            found = TOKENS.search(self._body)
            self._transport.write(STREAM_HEAD)
            count = int(found[1]) if found else CHUNKS
            self._stream_paced(0, count, due=time.monotonic())

    def _stream_at_once(self) -> None:
        """A packet for each chunk, which the transport would put into one."""
        pieces = [STREAM_HEAD + PIECES[0], *PIECES[1:], *END]
        for number, piece in enumerate(pieces):
            try:
                sent = os.write(self._socket, piece)
            except BlockingIOError:
                sent = 0
            if sent < len(piece):
                self._transport.write(piece[sent:] + b"".join(pieces[number + 1 :]))
                return

    def _stream_paced(self, number: int, count: int, *, due: float) -> None:
        if self._transport.is_closing():
            return
        if number == count:
            self._transport.write(b"".join(END))
            return
        self._transport.write(PACED_CHUNK % due)
        next_due = due + CHUNK_EVERY_S
        wait_s = max(0.0, next_due - time.monotonic())
        self._loop.call_later(wait_s, lambda: self._stream_paced(number + 1, count, due=next_due))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(CannedUpstream, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
