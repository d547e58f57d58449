"""A transcript as its client wants it: JSON, plain text, or subtitles (SubRip, WebVTT)."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from steelyard.gateway.workloads.asked import JSON_TYPE


class Segment(msgspec.Struct):
    """A piece of a transcript, and when it was said, in seconds."""

    start: float
    end: float
    text: str


def write_srt(segments: Sequence[Segment]) -> str:
    """https://en.wikipedia.org/wiki/SubRip"""
    return "".join(
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{_line(one.text)}\n\n"
        for number, one in enumerate(segments, start=1)
    )


def write_vtt(segments: Sequence[Segment]) -> str:
    """https://www.w3.org/TR/webvtt1/"""
    cues = (
        f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{_line(one.text)}\n\n"
        for one in segments
    )
    return "WEBVTT\n\n" + "".join(cues)


SUBTITLES: Final[Mapping[str, Callable[[Sequence[Segment]], str]]] = MappingProxyType(
    {"srt": write_srt, "vtt": write_vtt}
)
# What each format is sent as.
CONTENT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "json": JSON_TYPE,
        "verbose_json": JSON_TYPE,
        "text": "text/plain; charset=utf-8",
        "srt": "application/x-subrip; charset=utf-8",
        "vtt": "text/vtt; charset=utf-8",
    }
)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _line(text: str) -> str:
    """One paragraph: an empty line would end the cue, and an arrow would be read as its times."""
    return " ".join(text.split()).replace("-->", "->")
