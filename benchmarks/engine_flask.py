"""The way that people start: a Flask route that calls `model.generate` for each request."""

import argparse
import json
from collections.abc import Iterator
from threading import Thread
from typing import Any

import torch
from flask import Flask, Response, request
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    build_app(options.model).run(port=options.port, threaded=True)


def build_app(folder: str) -> Flask:
    """One model, one route, one thread of `generate` for each request."""
    app = Flask(__name__)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )

    @app.get("/health")
    def health() -> str:  # pyright: ignore[reportUnusedFunction]
        return "ready"

    @app.post("/v1/chat/completions")
    def chat() -> Response:  # pyright: ignore[reportUnusedFunction]
        body = request.get_json()
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        tokens = body["max_tokens"]
        wanted = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        Thread(target=model.generate, kwargs={**inputs, **wanted, "streamer": streamer}).start()
        return Response(_events(streamer, tokens), mimetype="text/event-stream")

    return app


def _events(streamer: TextIteratorStreamer, tokens: int) -> Iterator[str]:
    for piece in streamer:
        if piece:
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
    # min and max are the same number, so this is how many there were.
    usage = {"choices": [], "usage": {"completion_tokens": tokens}}
    yield f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n"


if __name__ == "__main__":
    main()
