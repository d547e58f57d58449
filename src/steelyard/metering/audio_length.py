"""How long a recording is, read from its headers: nothing is decoded.

Each reader finds the length that a decoder would find, or a longer one, and refuses what was cut
off. WAV: RIFF chunks. FLAC: RFC 9639. MP3: ISO/IEC 11172-3, frame by frame. Ogg: RFC 3533.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from steelyard.errors import Refusal

AudioKind = Literal["wav", "flac", "mp3", "ogg"]

PLAIN_WAV_KINDS: Final = frozenset({1, 3, 6, 7, 0xFFFE})
# A WAV that was written to a pipe does not know its length.
UNKNOWN_SIZES: Final = frozenset({0, 0xFFFFFFFF})
_WAV_FORMAT: Final = struct.Struct("<HHIIHH")
_OGG_PAGE: Final = struct.Struct("<4sBBqIIIB")
_BIT_RATES_1: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BIT_RATES_2: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLE_RATES: Final = (44_100, 48_000, 32_000)
_OPUS_RATE: Final = 48_000
_END_OF_STREAM: Final = 4
# How far a reader looks for the next frame behind bytes that are none.
_GAP_BYTES_MAX: Final = 65_536


class AudioUnsupported(Refusal):
    """The file is no sound that is understood here: WAV, FLAC, MP3, or Ogg with Vorbis or Opus."""

    code = "audio_unsupported"


class AudioTruncated(Refusal):
    """The recording was cut off: its headers promise more than there is."""

    code = "audio_truncated"


@dataclass(frozen=True, slots=True)
class AudioLength:
    """What a recording is, and how long."""

    kind: AudioKind
    seconds: Fraction


def read_audio_length(sound: bytes) -> AudioLength:
    """The length of a recording; raises AudioUnsupported or AudioTruncated."""
    kind = _kind_of(sound)
    if kind is None:
        raise AudioUnsupported
    readers: dict[AudioKind, Callable[[bytes], Fraction]] = {
        "wav": _read_wav,
        "flac": _read_flac,
        "mp3": _read_mp3,
        "ogg": _read_ogg,
    }
    try:
        seconds = readers[kind](sound)
    except (struct.error, IndexError) as error:
        raise AudioTruncated from error
    if seconds <= 0:
        raise AudioTruncated("the recording has no sound in it")
    return AudioLength(kind, seconds)


def _kind_of(sound: bytes) -> AudioKind | None:
    if sound[:4] in {b"RIFF", b"RF64"} and sound[8:12] == b"WAVE":
        return "wav"
    if sound[:4] == b"fLaC":
        return "flac"
    if sound[:4] == b"OggS":
        return "ogg"
    if sound[:3] == b"ID3" or _mp3_frame(sound, 0) is not None:
        return "mp3"
    return None


def _read_wav(sound: bytes) -> Fraction:
    bytes_per_second = 0
    at = 12
    while True:
        name, size = sound[at : at + 4], struct.unpack_from("<I", sound, at + 4)[0]
        at += 8
        if name == b"fmt ":
            kind, _, rate, _, frame_bytes, _ = _WAV_FORMAT.unpack_from(sound, at)
            if kind not in PLAIN_WAV_KINDS or not rate or not frame_bytes:
                raise AudioUnsupported("a WAV file may have PCM, float, A-law or µ-law only")
            bytes_per_second = rate * frame_bytes
        elif name == b"data":
            if not bytes_per_second:
                raise AudioUnsupported("the WAV file does not say its format before its sound")
            left = len(sound) - at
            if size not in UNKNOWN_SIZES and size > left:
                raise AudioTruncated
            return Fraction(left if size in UNKNOWN_SIZES else size, bytes_per_second)
        at += size + size % 2


def _read_flac(sound: bytes) -> Fraction:
    packed = int.from_bytes(sound[18:26], "big")
    if len(sound) < 42:
        raise AudioTruncated
    if sound[4] & 0x7F:
        raise AudioUnsupported("the FLAC file does not begin with its STREAMINFO")
    rate, samples = packed >> 44, packed & (2**36 - 1)
    if not rate or not samples:
        raise AudioUnsupported("the FLAC file does not say how long it is")
    return Fraction(samples, rate)


def _read_mp3(sound: bytes) -> Fraction:
    at = 0
    if sound[:3] == b"ID3":
        at = 10 + _seven_bit_number(sound[6:10])
    seconds = Fraction(0)
    by_rate: dict[int, int] = {}
    while (frame := _next_frame(sound, at)) is not None:
        if frame.end > len(sound):
            raise AudioTruncated
        by_rate[frame.rate] = by_rate.get(frame.rate, 0) + frame.samples
        at = frame.end
    for rate, samples in by_rate.items():
        seconds += Fraction(samples, rate)
    if not by_rate:
        raise AudioTruncated("the MP3 file has no whole frame of sound")
    return seconds


@dataclass(frozen=True, slots=True)
class _Frame:
    end: int
    samples: int
    rate: int


def _next_frame(sound: bytes, at: int) -> _Frame | None:
    """The frame here, or the next one behind some bytes that are none; tags end the sound."""
    frame = _mp3_frame(sound, at)
    if frame is not None or sound[at : at + 3] == b"TAG" or sound[at : at + 8] == b"APETAGEX":
        return frame
    limit = min(len(sound), at + _GAP_BYTES_MAX)
    while (at := sound.find(b"\xff", at + 1, limit)) >= 0:
        frame = _mp3_frame(sound, at)
        # Bytes may look like a frame by chance, but not like two.
        if frame is not None and _mp3_frame(sound, frame.end) is not None:
            return frame
    return None


def _mp3_frame(sound: bytes, at: int) -> _Frame | None:
    """The frame whose header is here; layer III only."""
    header = int.from_bytes(sound[at : at + 4], "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    bits, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    is_frame = len(sound) >= at + 4 and header >> 21 == 0x7FF and version != 1 and layer == 1
    if not is_frame or bits in {0, 15} or rate_index == 3:
        return None
    is_first = version == 3
    rate = _SAMPLE_RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    bit_rate = (_BIT_RATES_1 if is_first else _BIT_RATES_2)[bits] * 1_000
    samples = 1_152 if is_first else 576
    size = samples // 8 * bit_rate // rate + padding
    return _Frame(at + size, samples, rate)


def _seven_bit_number(packed: bytes) -> int:
    number = 0
    for byte in packed:
        number = number << 7 | (byte & 0x7F)
    return number


@dataclass(slots=True)
class _LogicalStream:
    rate: int
    skipped: int
    granule: int = 0
    is_ended: bool = False


def _read_ogg(sound: bytes) -> Fraction:
    streams: dict[int, _LogicalStream] = {}
    for kind, granule, serial, packet in _ogg_pages(sound):
        if serial not in streams:
            streams[serial] = _begin_stream(packet)
        stream = streams[serial]
        stream.granule = max(stream.granule, granule)
        stream.is_ended = stream.is_ended or bool(kind & _END_OF_STREAM)
    if not all(stream.is_ended for stream in streams.values()):
        raise AudioTruncated
    lengths = (Fraction(s.granule - s.skipped, s.rate) for s in streams.values())
    return sum(lengths, Fraction(0))


def _ogg_pages(sound: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Of each page its flags, its position, its stream, and its content."""
    at = 0
    while at < len(sound):
        mark, _, kind, granule, serial, _, _, count = _OGG_PAGE.unpack_from(sound, at)
        if mark != b"OggS":
            raise AudioUnsupported("the Ogg file is damaged")
        begin = at + _OGG_PAGE.size + count
        end = begin + sum(sound[at + _OGG_PAGE.size : begin])
        if end > len(sound):
            raise AudioTruncated
        yield kind, granule, serial, sound[begin:end]
        at = end


def _begin_stream(packet: bytes) -> _LogicalStream:
    if packet[:7] == b"\x01vorbis":
        rate = struct.unpack_from("<I", packet, 12)[0]
        if rate:
            return _LogicalStream(rate, 0)
    if packet[:8] == b"OpusHead":
        return _LogicalStream(_OPUS_RATE, struct.unpack_from("<H", packet, 10)[0])
    raise AudioUnsupported
