"""Recordings for tests, encoded by a real encoder: tones, as long as is asked for."""

import io
from fractions import Fraction

import av
import numpy as np

RATE = 16_000
CODECS = {
    "wav": ("wav", "pcm_s16le", RATE),
    "flac": ("flac", "flac", RATE),
    "mp3": ("mp3", "libmp3lame", RATE),
    "mp3_44k": ("mp3", "libmp3lame", 44_100),
    "ogg_vorbis": ("ogg", "vorbis", RATE),
    "ogg_opus": ("ogg", "libopus", 48_000),
}


def record(kind: str, *, seconds: float) -> bytes:
    """A tone as a file of this kind."""
    container, codec, rate = CODECS[kind]
    count = round(rate * seconds)
    wave = (np.sin(np.arange(count) * (2 * np.pi * 440 / rate)) * 8_000).astype(np.int16)
    return encode(wave, container=container, codec=codec, rate=rate)


def encode(wave: "np.ndarray", *, container: str, codec: str, rate: int) -> bytes:
    """Samples of one channel as a file."""
    written = io.BytesIO()
    with av.open(written, "w", format=container) as output:
        # The one encoder of Vorbis that is always there takes two channels.
        layout = "stereo" if codec == "vorbis" else "mono"
        stream = output.add_stream(
            codec, rate=rate, layout=layout, options={"strict": "experimental"}
        )
        assert isinstance(stream, av.AudioStream), codec
        frame = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(piece)
        size = stream.codec_context.frame_size or 4096
        while (piece := fifo.read(size, partial=True)) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return written.getvalue()


def decoded_seconds(sound: bytes) -> float:
    """How long a decoder finds it to be."""
    with av.open(io.BytesIO(sound), "r") as container:
        samples = rate = 0
        for frame in container.decode(audio=0):
            samples += frame.samples
            rate = frame.sample_rate
    return samples / rate
