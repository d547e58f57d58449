"""What a scripted upstream answers to work that is not a chat; one word is one token."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

Document = dict[str, Any]
SIDE: Final = 64
# A PNG of one white pixel.
PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsOo8YQAAAABJRU5ErkJggg=="
)


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


def images(prompt_tokens: int, *, count: int, steps: int, usage: bool = True) -> Document:
    """Pictures of 64x64 that are one pixel large: nobody looks at them."""
    document: Document = {"created": 1, "data": [{"b64_json": PIXEL}] * count}
    if usage:
        document["usage"] = _image_usage(prompt_tokens, count=count, steps=steps, images=count)
    return document


def image_events(
    prompt_tokens: int, *, count: int, steps: int, is_counting: bool = True, usage: bool = True
) -> Iterator[Document]:
    """An event a step, and then the pictures."""
    for step in range(1, steps):
        event: Document = {"type": "image_generation.step", "step": step, "steps": steps}
        if is_counting and usage:
            event["usage"] = _image_usage(prompt_tokens, count=count, steps=step, images=0)
        yield event
    for number in range(1, count + 1):
        done: Document = {"type": "image_generation.completed", "b64_json": PIXEL}
        if usage and number == count:
            done["usage"] = _image_usage(prompt_tokens, count=count, steps=steps, images=count)
        yield done


def _image_usage(prompt_tokens: int, *, count: int, steps: int, images: int) -> Document:
    return {
        "type": "image",
        "input_tokens": prompt_tokens,
        "images": images,
        "steps": steps,
        "width": SIDE,
        "height": SIDE,
        "pixels": SIDE * SIDE * count,
    }


def _transcript_usage(words: Sequence[str], seconds: float) -> Document:
    return {
        "type": "duration",
        "seconds": seconds,
        "transcript_tokens": len(words),
        "transcript_characters": len("".join(words)),
    }
