"""An upstream as a process of its own: plays answers word by word and keeps a log of what it made.

It logs each word before it hands it over, so its log is never behind what a client has got. Run:
python -m tests.e2e.scripted_upstream --port 8081 --log produced.jsonl
"""

import argparse
import asyncio
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

MODEL = "scripted"
FACTS = {
    "tokenizer_sha256": "0" * 64,
    "byte_level": True,
    "bytes_per_token_max": 16,
    "template_tokens_base": 10,
    "template_tokens_per_message": 5,
}


@dataclass
class Made:
    """What became of one request; no end yet means that it is still at work."""

    prompt_tokens: int
    completion_tokens: int = 0
    end: str | None = None


@dataclass
class MadeLog:
    """A file with a line for each step of each request; it survives the death of the process."""

    path: Path
    made: dict[str, Made] = field(default_factory=dict[str, Made])

    def __post_init__(self) -> None:
        self.made = read_made(self.path)
        self._file = self.path.open("ab", buffering=0)
        for request_id, made in self.made.items():
            if made.end is None:
                made.end = "killed"
                self.write(request_id)

    def write(self, request_id: str) -> None:
        line = json.dumps({"id": request_id, **vars(self.made[request_id])}).encode()
        self._file.write(line + b"\n")


def read_made(path: Path) -> dict[str, Made]:
    """What the log says last of each request; a line that was torn by a kill is none."""
    made: dict[str, Made] = {}
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            if line.endswith(b"}"):
                step = json.loads(line)
                request_id = step.pop("id")
                made[request_id] = Made(**step)
    return made


def words_of(request_id: str, *, tokens_max: int) -> int:
    return random.Random(request_id).randint(1, min(tokens_max, 15))


class Upstream:
    """The handlers of its few routes."""

    def __init__(self, log: MadeLog) -> None:
        self._log = log

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.get("/health", self.health),
                web.get("/v1/models", self.models),
                web.post("/requests", self.requests),
                web.post("/tokenize", self.tokenize),
                web.post("/v1/chat/completions", self.chat),
            ]
        )
        return application

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ready"})

    async def models(self, _request: web.Request) -> web.Response:
        model = {"id": MODEL, "max_model_len": 8192, "steelyard": FACTS}
        return web.json_response({"object": "list", "data": [model]})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": _prompt_tokens(await request.json())})

    async def requests(self, request: web.Request) -> web.Response:
        asked = (await request.json())["request_ids"]
        known = {
            request_id: self._log.made[request_id]
            for request_id in asked
            if request_id in self._log.made
        }
        told = [
            {"request_id": i, "state": "ended" if made.end else "running", **vars(made)}
            for i, made in known.items()
        ]
        return web.json_response({"requests": told})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        request_id = request.headers["X-Request-Id"]
        made = self._log.made[request_id] = Made(_prompt_tokens(asked))
        self._log.write(request_id)
        count = words_of(request_id, tokens_max=asked["max_tokens"])
        try:
            if asked.get("stream"):
                return await self._stream(request, request_id, count)
            for _ in range(count):
                await self._make_word(request_id)
        finally:
            made.end = made.end or "stop"
            self._log.write(request_id)
        message = {"role": "assistant", "content": "word " * count}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document = {"id": request_id, "model": MODEL, "choices": [choice], "usage": _usage(made)}
        return web.json_response(document)

    async def _stream(
        self, request: web.Request, request_id: str, count: int
    ) -> web.StreamResponse:
        made = self._log.made[request_id]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            for _ in range(count):
                await self._make_word(request_id)
                choice: dict[str, Any] = {"index": 0, "delta": {"content": "word "}}
                await response.write(_event({"choices": [choice], "usage": _usage(made)}))
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            await response.write(_event({"choices": [end], "usage": _usage(made)}))
            await response.write(_event({"choices": [], "usage": _usage(made)}))
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            made.end = "abandoned"
        return response

    async def _make_word(self, request_id: str) -> None:
        await asyncio.sleep(0.01)
        self._log.made[request_id].completion_tokens += 1
        self._log.write(request_id)


def _prompt_tokens(asked: dict[str, Any]) -> int:
    return 5 + len(asked["messages"][0]["content"]) % 7


def _usage(made: Made) -> dict[str, int]:
    return {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.completion_tokens,
        "total_tokens": made.prompt_tokens + made.completion_tokens,
    }


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "scripted", "model": MODEL, **chunk}).encode() + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    upstream = Upstream(MadeLog(options.log))
    web.run_app(upstream.application(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
