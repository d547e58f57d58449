"""Pictures, as the engine draws them: what was asked is to be seen, and steps are counted as taken."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engine_process import EngineProcess, start_engine_process
from PIL import Image

from steelyard.engine.media.drawing import DrawingStep, PictureWish, load_drawing
from steelyard.engine.media.shapes_training import RGB

STEPS = 8


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[EngineProcess]:
    with start_engine_process("--model", str(tiny_folder), "--model", "toy-shapes") as process:
        yield process


def ask(engine: EngineProcess, **fields: Any) -> httpx.Response:
    body = {"model": "toy-shapes", "prompt": "a large red disc on white", "steps": STEPS, "seed": 3}
    return httpx.post(f"{engine.url}/v1/images/generations", json=body | fields, timeout=120)


def pixels(b64_json: str) -> "np.ndarray":
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB")) / 255


def wish(prompt: str, **given: Any) -> PictureWish:
    asked: dict[str, Any] = {"count": 1, "steps": 20, "size": (32, 32), "seed": 5, "guidance": None}
    return PictureWish(prompt=prompt, **(asked | given))


@pytest.mark.parametrize(
    ("colour", "shape", "back"),
    [("red", "disc", "white"), ("blue", "square", "black"), ("green", "triangle", "white")],
)
def test_colour_and_background_are_those_that_were_asked(
    colour: str, shape: str, back: str
) -> None:
    told: list[DrawingStep] = []
    model = load_drawing(Path(), name="toy-shapes")

    model.draw(wish(f"a large {colour} {shape} on {back}"), told.append)

    picture = np.asarray(Image.open(io.BytesIO(told[-1].pictures[0]))) / 255
    middle, corner = picture[14:18, 14:18].mean((0, 1)), picture[:3, :3].mean((0, 1))
    nearest = min(RGB, key=lambda name: float(np.abs(middle - np.array(RGB[name])).sum()))
    assert nearest == colour
    assert np.abs(corner - np.array(RGB[back])).max() < 0.25
    assert [step.step for step in told] == list(range(1, 21))


def test_a_large_shape_covers_more_than_a_small_one() -> None:
    model = load_drawing(Path(), name="toy-shapes")
    covered: list[float] = []

    for size in ("small", "large"):
        told: list[DrawingStep] = []
        model.draw(wish(f"a {size} red square on white"), told.append)
        picture = np.asarray(Image.open(io.BytesIO(told[-1].pictures[0]))) / 255
        covered.append(float((picture[:, :, 1] < 0.5).mean()))

    assert covered[0] * 2 < covered[1]


@pytest.mark.slow
def test_a_picture_comes_with_what_it_took(engine: EngineProcess) -> None:
    answer = ask(engine, n=2, size="64x32").json()

    first, second = (pixels(one["b64_json"]) for one in answer["data"])
    assert first.shape == second.shape == (32, 64, 3)
    assert answer["usage"] == {
        "type": "image",
        "input_tokens": 6,
        "images": 2,
        "steps": STEPS,
        "width": 64,
        "height": 32,
        "pixels": 2 * 64 * 32,
    }


@pytest.mark.slow
def test_the_same_seed_draws_the_same_and_another_does_not(engine: EngineProcess) -> None:
    drawn = [ask(engine, seed=seed).json()["data"][0]["b64_json"] for seed in (1, 1, 2)]

    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_a_stream_has_an_event_for_every_step(engine: EngineProcess) -> None:
    streamed = ask(engine, stream=True)

    lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    *steps, last = [json.loads(line) for line in lines[:-1]]

    assert lines[-1] == "[DONE]"
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    assert [event["usage"]["steps"] for event in steps] == list(range(1, STEPS + 1))
    assert last["b64_json"] == ask(engine).json()["data"][0]["b64_json"]
    assert last["usage"]["images"] == 1


@pytest.mark.slow
def test_a_client_that_leaves_stops_the_drawing(engine: EngineProcess) -> None:
    body = {"model": "toy-shapes", "prompt": "a star", "size": "128x128", "steps": 250}
    with httpx.stream(
        "POST",
        f"{engine.url}/v1/images/generations",
        json=body | {"stream": True},
        timeout=120,
    ) as drawing:
        next(drawing.iter_lines())

    # 250 steps of this size take longer than the client waits.
    assert httpx.post(
        f"{engine.url}/v1/images/generations",
        json={"model": "toy-shapes", "prompt": "a disc", "steps": 1},
        timeout=60,
    ).is_success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"size": "100000x100000"}, 400, "image_too_large"),
        ({"size": "64x64", "pixels_max": 4095}, 400, "image_too_large"),
        ({"size": "65x64"}, 400, "invalid_request"),
        ({"steps": 0}, 400, "invalid_request"),
        ({"prompt": None}, 400, "invalid_request"),
        ({"quality": "hd"}, 400, "invalid_request"),
        ({"model": "nonsense"}, 404, "model_not_found"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    fields: dict[str, Any], status: int, code: str, engine: EngineProcess
) -> None:
    answer = ask(engine, **fields)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
