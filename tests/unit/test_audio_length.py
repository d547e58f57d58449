"""The length of a recording by its headers is the length that a decoder finds, or a longer one."""

import pytest

from steelyard.metering.audio_length import AudioTruncated, AudioUnsupported, read_audio_length
from tests.recordings import CODECS, decoded_seconds, record

# An encoder may fill up its last frame; MP3 has a frame more that holds the lengths.
SLACK_S = 0.15
# A decoder may give the whole of a last packet that the file wants a part of.
PACKET_S = 0.05


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("seconds", [0.3, 2.5, 31.0])
def test_a_header_tells_as_much_as_a_decoder_finds_and_little_more(
    kind: str, seconds: float
) -> None:
    sound = record(kind, seconds=seconds)

    length = read_audio_length(sound)

    assert decoded_seconds(sound) - PACKET_S <= length.seconds <= seconds + SLACK_S
    assert kind.startswith(length.kind)


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "flac"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_recording_that_was_cut_off_is_refused(kind: str, share: float) -> None:
    sound = record(kind, seconds=3)

    with pytest.raises(AudioTruncated):
        read_audio_length(sound[: int(len(sound) * share)])


def test_a_flac_file_that_was_cut_off_is_still_held_for_in_full() -> None:
    sound = record("flac", seconds=3)

    assert read_audio_length(sound[: len(sound) // 2]).seconds == 3


@pytest.mark.parametrize(
    "sound",
    [
        b"hello, this is a text",
        b"%PDF-1.7 and so on",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"OggS" + bytes(200),
        b"fLaC" + bytes(200),
        b"RIFF\x10\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd",
    ],
)
def test_what_is_no_sound_is_refused(sound: bytes) -> None:
    with pytest.raises(AudioUnsupported):
        read_audio_length(sound)


def test_a_wav_that_lies_about_its_bytes_per_second_is_measured_by_its_samples() -> None:
    sound = bytearray(record("wav", seconds=2))
    at = sound.index(b"fmt ") + 8 + 8

    sound[at : at + 4] = (2**31).to_bytes(4, "little")

    assert read_audio_length(bytes(sound)).seconds == 2


def test_tags_around_an_mp3_are_no_sound() -> None:
    plain = record("mp3", seconds=2)
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 8, 0]) + bytes(1024)

    tagged = tag + plain + b"TAG" + bytes(125)

    assert read_audio_length(tagged).seconds == read_audio_length(plain).seconds
