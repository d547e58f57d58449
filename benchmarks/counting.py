"""How fast tokens are counted, and what a prompt of a million tokens costs the event loop.

Mixed English and Chinese that no vocabulary has seen in this order; each pass is over new text, so
that no cache of a pass before helps. The reference library and the fast path count in turn. One
thread.

Run: make bench-count
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from tests.counting.vocabularies import fast, found, reference

from steelyard.counting.fast_path import FastTokenizer
from steelyard.counting.libraries import read_ranks
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.metering.token_bound import (
    TokenizerFacts,
    input_tokens_lower_bound,
    input_tokens_upper_bound,
)

# Llama 3's file of ranks and Tekken are counted by the reference library alone.
BYTE_LEVEL = ("o200k", "cl100k", "qwen", "deepseek-v3", "llama-3", "tekken")
SENTENCEPIECE = ("llama-2", "mistral-v1")
CHUNK_CHARACTERS = 4_000
PASSES = 5
MILLION = 1_000_000
console = Console(stderr=True, highlight=False)


def main() -> None:
    print(json.dumps(measure()))


def measure() -> dict[str, object]:
    """The figures of all vocabularies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = MixedText(folder)
        figures: dict[str, dict[str, float | None]] = {}
        for vocabulary in (*BYTE_LEVEL, *SENTENCEPIECE):
            figures[vocabulary] = _measure(vocabulary, texts, folder)
            console.print(f"{vocabulary:12} MB/s {figures[vocabulary]}")
        loop = _measure_loop(texts)
        console.print(f"a prompt of a million tokens: {loop}")
    # What is really counted with: the fast path where there is one.
    in_use = [figures[name]["fast"] or figures[name]["reference"] for name in BYTE_LEVEL]
    return {
        "count_mb_per_s": min(figure for figure in in_use if figure is not None),
        "mb_per_s": figures,
        "million_token_prompt_loop_ms": loop,
    }


class MixedText:
    """Words of both languages, common ones often: Zipf's law over the pieces of real vocabularies."""

    def __init__(self, folder: Path) -> None:
        self._rng = random.Random(20_261_125)
        pieces = _readable_pieces(found("qwen", folder).vocabulary)
        self._chinese = [p for p in pieces if all("\u4e00" <= c <= "\u9fa5" for c in p)]
        self._english = [p for p in pieces if p.isascii() and p.startswith(" ") and p[1:].isalpha()]

    def chunks(self, *, size_bytes: int) -> list[str]:
        """About so many bytes, half of them Chinese, in chunks of a message's length."""
        chunks: list[str] = []
        total = 0
        while total < size_bytes:
            chunk = "".join(self._sentence() for _ in range(40))[:CHUNK_CHARACTERS]
            chunks.append(chunk)
            total += len(chunk.encode())
        return chunks

    def _sentence(self) -> str:
        if self._rng.random() < 0.4:
            return self._words(self._chinese, count=18) + "，"
        return self._words(self._english, count=22) + "."

    def _words(self, pieces: list[str], *, count: int) -> str:
        weights = range(count)
        # The index falls off as one over the rank, which is how words are spread in a text.
        return "".join(pieces[int(len(pieces) ** self._rng.random()) - 1] for _ in weights)


def _measure(name: str, texts: MixedText, folder: Path) -> dict[str, float | None]:
    authority, quick = reference(name, folder), fast(name, folder)
    slow_figures, fast_figures = [], []
    for _ in range(PASSES):
        chunks = texts.chunks(size_bytes=400_000)
        fast_figures.append(_rate(quick.count, chunks))
        slow_figures.append(_rate(authority.count, chunks))
        assert [quick.count(c) for c in chunks] == [authority.count(c) for c in chunks]
    is_fast = isinstance(quick, FastTokenizer)
    return {
        "reference": round(statistics.median(slow_figures), 1),
        "fast": round(statistics.median(fast_figures), 1) if is_fast else None,
    }


def _rate(count: Callable[[str], int], chunks: list[str]) -> float:
    """Millions of UTF-8 bytes a second."""
    size = sum(len(chunk.encode()) for chunk in chunks)
    started = time.perf_counter()
    for chunk in chunks:
        count(chunk)
    return size / 1e6 / (time.perf_counter() - started)


def _measure_loop(texts: MixedText) -> dict[str, float]:
    """Milliseconds on the event loop from the body to the verdict, and the tokens refused.

    The facts are those of a vocabulary whose longest piece has 128 bytes, so that a refusal takes
    the largest body.
    """
    content = "".join(texts.chunks(size_bytes=5 * MILLION))
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    facts = TokenizerFacts("", True, 128, 8, 4, 0)
    times: list[float] = []
    for _ in range(9):
        started = time.perf_counter()
        asked = parse_chat(body)
        at_most = input_tokens_upper_bound(asked.size, facts=facts)
        at_least = input_tokens_lower_bound(asked.size, facts=facts)
        times.append((time.perf_counter() - started) * 1e3)
        assert at_most is not None
        assert at_most >= MILLION
        assert at_least > 4096, "a prompt that long is refused without a count"
    return {"body_mb": round(len(body) / 1e6, 1), "ms_median": round(statistics.median(times), 1)}


def _readable_pieces(vocabulary: bytes) -> list[str]:
    pieces: list[str] = []
    for piece in read_ranks(vocabulary):
        try:
            pieces.append(piece.decode())
        except UnicodeDecodeError:
            continue
    return [piece for piece in pieces if len(piece) > 1]


if __name__ == "__main__":
    main()
