"""Speaking: a voice of Piper's (VITS) through piper-tts, on the CPU, encoded by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from steelyard.engine.model_source import ModelNotFound
from steelyard.engine.tokenless_facts import tokenless_facts

if TYPE_CHECKING:
    from piper import PiperVoice

PATHS: Final = ("/v1/audio/speech",)
CHARACTERS_MAX: Final = 4096
# Container and codec of FFmpeg's, and the rate where it takes only that one.
ENCODINGS: Final[dict[str, tuple[str, str, int | None]]] = {
    "mp3": ("mp3", "libmp3lame", None),
    "opus": ("ogg", "libopus", 48_000),
    "flac": ("flac", "flac", None),
    "wav": ("wav", "pcm_s16le", None),
}
CONTENT_TYPES: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


@dataclass(frozen=True, slots=True)
class SpeechWish:
    """What is to be spoken."""

    text: str
    format: str
    speed: float


class VoiceModel:
    """A voice in memory."""

    def __init__(self, voice: PiperVoice, *, name: str) -> None:
        self.name = name
        self.max_model_len = CHARACTERS_MAX
        self.rate: int = voice.config.sample_rate
        self.facts = tokenless_facts(PATHS) | {"rate": self.rate}
        self._voice = voice

    def speak(self, wish: SpeechWish, tell: Callable[[bytes], None]) -> None:
        """Speak sentence by sentence, and tell the sound at the end, encoded; whoever does not wait
        any more ends it between two sentences."""
        from piper import SynthesisConfig

        chosen = SynthesisConfig(length_scale=1 / wish.speed)
        samples = bytearray()
        for chunk in self._voice.synthesize(wish.text, chosen):
            samples += chunk.audio_int16_bytes
            tell(b"")
        tell(bytes(samples) if wish.format == "pcm" else encode(samples, self.rate, wish.format))


def encode(samples: bytes | bytearray, rate: int, wanted: str) -> bytes:
    """Samples of one channel as a file."""
    import av
    import numpy as np

    container, codec, only_rate = ENCODINGS[wanted]
    written = io.BytesIO()
    with av.open(written, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=only_rate or rate, layout="mono")
        wave = np.frombuffer(bytes(samples), np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=only_rate or rate
        )
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(piece)
        size = stream.codec_context.frame_size or 4096
        while (piece := fifo.read(size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return written.getvalue()


def load_voice(path: Path, *, name: str) -> VoiceModel:
    """Bring a voice into memory, or say what is missing."""
    try:
        from piper import PiperVoice
    except ImportError as error:
        raise ModelNotFound(
            "piper-tts is not installed; run: pip install 'steelyard[voice]'"
        ) from error
    return VoiceModel(PiperVoice.load(path), name=name)
