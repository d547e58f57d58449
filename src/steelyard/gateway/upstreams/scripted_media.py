"""What a scripted upstream answers to work that is not a chat; one word is one token."""

from collections.abc import Iterator, Sequence
from typing import Any

Document = dict[str, Any]


def transcript(words: Sequence[str], *, seconds: float, usage: bool = True) -> Document:
    """A whole transcript, with one segment for each word."""
    each = seconds / max(1, len(words))
    segments = [
        {"id": at, "start": at * each, "end": (at + 1) * each, "text": word}
        for at, word in enumerate(words)
    ]
    document: Document = {"text": "".join(words), "segments": segments, "duration": seconds}
    if usage:
        document["usage"] = _transcript_usage(words, seconds)
    return document


def transcript_events(
    words: Sequence[str], *, seconds: float, is_counting: bool, usage: bool = True
) -> Iterator[Document]:
    """The events of a streamed transcript, one a word, and the last."""
    for count in range(1, len(words) + 1):
        event: Document = {"type": "transcript.text.delta", "delta": words[count - 1]}
        if is_counting and usage:
            heard = seconds * count / len(words)
            event["usage"] = _transcript_usage(words[:count], heard)
        yield event
    done: Document = {"type": "transcript.text.done", "text": "".join(words)}
    yield done | ({"usage": _transcript_usage(words, seconds)} if usage else {})


def _transcript_usage(words: Sequence[str], seconds: float) -> Document:
    return {
        "type": "duration",
        "seconds": seconds,
        "transcript_tokens": len(words),
        "transcript_characters": len("".join(words)),
    }
