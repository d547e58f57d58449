"""Whisper, as the engine serves it: real speech, over the network, with what it counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_process import EngineProcess, start_engine_process
from tests.recordings import record

from steelyard.engine.media.speech import RATE, decode
from steelyard.engine.refusals import AudioOverBound, AudioTruncated, AudioUnsupported

MEETING = (Path(__file__).parents[2] / "examples" / "meeting.flac").read_bytes()
SECONDS = 12


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[EngineProcess]:
    flags = ["--model", str(tiny_folder), "--model", "whisper-tiny.en"]
    with start_engine_process(*flags, "--upload-bytes-max", "1000000") as process:
        yield process


def ask(engine: EngineProcess, sound: bytes = MEETING, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{engine.url}/v1/audio/transcriptions",
        data={"model": "whisper-tiny.en", **fields},
        files={"file": ("meeting.flac", sound, "audio/flac")},
        timeout=120,
    )


@pytest.mark.slow
def test_speech_is_written_down_and_its_seconds_are_counted(engine: EngineProcess) -> None:
    answer = ask(engine).json()

    text = answer["text"]
    assert text.startswith("Good morning")
    assert "by Friday" in text
    assert "invoice to the customer" in text
    assert answer["usage"]["seconds"] == SECONDS
    assert answer["usage"]["transcript_characters"] == len(text)
    assert len(text.split()) <= answer["usage"]["transcript_tokens"] <= len(text)


@pytest.mark.slow
def test_a_stream_says_the_same_and_counts_as_it_goes(engine: EngineProcess) -> None:
    whole, streamed = ask(engine).json(), ask(engine, stream="true")

    lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines[:-1]]

    assert lines[-1] == "[DONE]"
    assert "".join(event.get("delta", "") for event in events) == whole["text"]
    assert (events[-1]["text"], events[-1]["usage"]) == (whole["text"], whole["usage"])
    heard = [event["usage"]["seconds"] for event in events]
    assert heard == sorted(heard)
    assert heard[0] < heard[-1] == SECONDS


@pytest.mark.slow
def test_verbose_json_says_when_what_was_said(engine: EngineProcess) -> None:
    answer = ask(engine, response_format="verbose_json").json()

    segments = answer["segments"]
    assert "".join(segment["text"] for segment in segments).strip() == answer["text"]
    assert all(0 <= one["start"] < one["end"] <= answer["duration"] for one in segments)
    assert answer["language"] == "en"


@pytest.mark.slow
def test_a_transcript_ends_at_its_bound(engine: EngineProcess) -> None:
    whole = ask(engine).json()
    most = whole["usage"]["transcript_characters"] - 10

    cut = ask(engine, transcript_characters_max=str(most)).json()

    assert whole["text"].startswith(cut["text"])
    assert 0 < cut["usage"]["transcript_characters"] <= most
    assert cut["usage"]["seconds"] == SECONDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "sound", "status", "code"),
    [
        ({"audio_seconds_max": "5"}, MEETING, 400, "audio_over_bound"),
        ({}, MEETING[: len(MEETING) // 2], 400, "audio_truncated"),
        ({}, b"hello, I am a text" * 10, 400, "audio_unsupported"),
        ({"language": "zh"}, MEETING, 400, "unsupported_parameter"),
        ({"temperature": "hot"}, MEETING, 400, "invalid_request"),
        ({"model": "nonsense"}, MEETING, 404, "model_not_found"),
        ({}, bytes(1_100_000), 413, "body_too_large"),
    ],
)
def test_what_cannot_be_is_refused(
    fields: dict[str, str], sound: bytes, status: int, code: str, engine: EngineProcess
) -> None:
    answer = ask(engine, sound, **fields)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.slow
def test_the_model_says_at_which_path_it_is_served(engine: EngineProcess) -> None:
    listed = httpx.get(f"{engine.url}/v1/models").json()["data"]

    (whisper,) = [one for one in listed if one["id"] == "whisper-tiny.en"]
    assert whisper["steelyard"]["paths"] == ["/v1/audio/transcriptions"]


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_model(engine: EngineProcess) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{engine.url}/v1/audio/transcriptions",
            data={"model": "whisper-tiny.en"},
            files={"file": ("meeting.flac", MEETING)},
            timeout=0.3,
        )

    assert ask(engine, record("wav", seconds=0.5)).status_code == 200


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg_vorbis", "ogg_opus"])
def test_every_kind_of_recording_is_decoded(kind: str) -> None:
    samples = decode(record(kind, seconds=2), seconds_max=3)

    assert 2 <= len(samples) / RATE <= 2.15


def test_decoding_stops_at_the_bound() -> None:
    with pytest.raises(AudioOverBound):
        decode(record("flac", seconds=5), seconds_max=4)
    with pytest.raises(AudioTruncated):
        decode(record("flac", seconds=5)[:-30_000], seconds_max=5)
    with pytest.raises(AudioUnsupported):
        decode(b"%PDF-1.7 no sound at all" * 20, seconds_max=5)
