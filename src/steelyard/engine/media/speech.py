"""Speech recognition: Whisper through faster-whisper (CTranslate2), on the CPU.

What is counted: the seconds that were decoded, and the ids of the transcript's text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from steelyard.engine.model_source import ModelNotFound
from steelyard.engine.refusals import (
    AudioOverBound,
    AudioTruncated,
    AudioUnsupported,
    UnsupportedParameter,
)

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

PATHS: Final = ("/v1/audio/transcriptions",)
RATE: Final = 16_000
# A decoder may give the whole of a last packet that the file wants a part of.
PACKET_SECONDS: Final = 0.1
# How much less than its own header says a FLAC file may have.
MISSING_SECONDS: Final = 0.5
_CONTEXT_TOKENS: Final = 448


@dataclass(frozen=True, slots=True)
class SpeechBounds:
    """What a caller has paid for; none where it says nothing."""

    seconds_max: int | None = None
    tokens_max: int | None = None
    characters_max: int | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked."""

    sound: bytes
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    bounds: SpeechBounds = field(default_factory=SpeechBounds)


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of the transcript; `seconds` is the length of all of the sound."""

    start: float
    end: float
    text: str
    token_count: int
    seconds: float
    language: str


class SpeechModel:
    """A Whisper model in memory."""

    def __init__(self, model: WhisperModel, *, name: str, folder: Path) -> None:
        self.name = name
        self.max_model_len = _CONTEXT_TOKENS
        self._model = model
        definition = (folder / "tokenizer.json").read_bytes()
        self.facts: dict[str, Any] = {
            "tokenizer_sha256": hashlib.sha256(definition).hexdigest(),
            "byte_level": True,
            "bytes_per_token_max": 1,
            "template_tokens_base": 0,
            "template_tokens_per_message": 0,
            "special_tokens_added": 0,
            "has_chat_template": False,
            "paths": PATHS,
        }

    def check(self, wish: Wish) -> None:
        """Refuse what the model cannot do, before it is anybody's turn."""
        languages = self._model.supported_languages
        if wish.language is not None and wish.language not in languages:
            raise UnsupportedParameter(
                f"{self.name} understands {', '.join(languages[:20])} only", param="language"
            )

    def transcribe(self, wish: Wish, tell: Callable[[Heard], None]) -> None:
        """Tell the transcript as it is found; ends where a bound would be passed."""
        samples = decode(wish.sound, seconds_max=wish.bounds.seconds_max)
        seconds = len(samples) / RATE
        # Without fallbacks to higher temperatures the same sound gives the same text.
        segments, found = self._model.transcribe(
            samples,
            language=wish.language,
            initial_prompt=wish.prompt,
            temperature=wish.temperature or 0.0,
            condition_on_previous_text=False,
        )
        tokens = characters = 0
        bounds, language = wish.bounds, found.language
        # Silence is heard as well.
        last = Heard(seconds, seconds, "", 0, seconds, language)
        for segment in segments:
            count = sum(1 for token in segment.tokens if token < self._end_of_text)
            tokens, characters = tokens + count, characters + len(segment.text)
            if _is_past(tokens, bounds.tokens_max) or _is_past(characters, bounds.characters_max):
                break
            end = min(segment.end, seconds)
            tell(Heard(min(segment.start, end), end, segment.text, count, seconds, language))
        tell(last)

    @property
    def _end_of_text(self) -> int:
        found = self._model.hf_tokenizer.token_to_id("<|endoftext|>")
        assert found is not None, "Whisper's tokenizers have an end of the text"
        return found


def load_speech(folder: Path, *, name: str, threads: int) -> SpeechModel:
    """Bring a model in CTranslate2's form into memory."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise ModelNotFound(
            "speech models need faster-whisper; run: pip install 'steelyard[speech]'"
        ) from error
    if not (folder / "model.bin").is_file():
        raise ModelNotFound(f"{folder} is no Whisper model for CTranslate2: it holds no model.bin")
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
    return SpeechModel(model, name=name, folder=folder)


def decode(sound: bytes, *, seconds_max: int | None) -> Any:
    """The samples of a recording; never more of them than the bound allows."""
    import av
    import numpy as np
    from av.error import FFmpegError

    try:
        with av.open(io.BytesIO(sound), "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioUnsupported
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            pieces: list[Any] = []
            count = 0
            for frame in _whole_frames(container):
                frame.pts = None
                for piece in resampler.resample(frame):
                    pieces.append(piece.to_ndarray().reshape(-1))
                    count += len(pieces[-1])
                _check_bound(count, seconds_max)
            promised = _promised_seconds(container)
            pieces += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
    except FFmpegError as error:
        raise AudioUnsupported(f"the recording cannot be decoded: {error}") from error
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    if len(samples) == 0 or len(samples) / RATE < promised - MISSING_SECONDS:
        raise AudioTruncated
    if seconds_max is not None:
        # The part of a packet too much that a decoder gave is cut off here.
        samples = samples[: seconds_max * RATE]
    return samples.astype(np.float32) / 32_768.0


def _whole_frames(container: Any) -> Iterator[Any]:
    """What can be decoded; a frame that was cut in two ends it."""
    from av.error import InvalidDataError

    with contextlib.suppress(InvalidDataError):
        yield from container.decode(audio=0)


def _check_bound(count: int, seconds_max: int | None) -> None:
    if seconds_max is not None and count > (seconds_max + PACKET_SECONDS) * RATE:
        raise AudioOverBound(f"the recording is longer than {seconds_max} s")


def _promised_seconds(container: Any) -> float:
    """What a header promises that can be relied on; other formats were checked before."""
    stream = container.streams.audio[0]
    if container.format.name != "flac" or stream.duration is None:
        return 0.0
    return float(stream.duration * stream.time_base)


def _is_past(count: int, most: int | None) -> bool:
    return most is not None and count > most


class Transcript:
    """Implements Telling for a transcript."""

    def __init__(self, *, is_verbose: bool) -> None:
        self._is_verbose = is_verbose
        self._heard: list[Heard] = []
        self._told = ""

    def event(self, step: Heard) -> dict[str, Any]:
        delta = step.text if self._told else step.text.lstrip()
        self._heard.append(step)
        self._told += delta
        usage = self._usage(step.end)
        return {"type": "transcript.text.delta", "delta": delta, "usage": usage}

    def last_events(self) -> list[dict[str, Any]]:
        text, usage = self._told, self._usage(self._seconds)
        return [{"type": "transcript.text.done", "text": text, "usage": usage}]

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"text": self._told, "usage": self._usage(self._seconds)}
        if self._is_verbose:
            document |= {
                "task": "transcribe",
                "language": self._heard[-1].language,
                "duration": self._seconds,
                "segments": [
                    {"id": at, "start": one.start, "end": one.end, "text": one.text}
                    for at, one in enumerate(self._heard)
                    if one.text
                ],
            }
        return document

    @property
    def _seconds(self) -> float:
        return self._heard[-1].seconds

    def _usage(self, seconds: float) -> dict[str, Any]:
        return {
            "type": "duration",
            "seconds": math.ceil(seconds),
            "transcript_tokens": sum(one.token_count for one in self._heard),
            "transcript_characters": len(self._told),
        }
