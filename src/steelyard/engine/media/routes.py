"""The HTTP routes of speech and drawing models. Imports their libraries only through a loaded model."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from steelyard.clock import unix_seconds
from steelyard.engine.media.responses import WorkResponse
from steelyard.engine.media.stepping import Workshop
from steelyard.engine.refusals import InvalidRequest, ServedModelNotFound
from steelyard.engine.wire import decode_body

if TYPE_CHECKING:
    from steelyard.engine.media.drawing import ImageModel
    from steelyard.engine.media.speech import SpeechModel
    from steelyard.engine.media.voice import VoiceModel

PART_BYTES_MAX: Final = 65_536
_SIZE: Final = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)


class MediaModel(Protocol):
    """What is told of a model that is no text from text."""

    name: str
    max_model_len: int
    facts: dict[str, Any]


ModelT = TypeVar("ModelT", bound=MediaModel)


@dataclass(slots=True)
class MediaRoom:
    """The models of this kind, each with a workshop of its own."""

    speech: dict[str, SpeechModel] = field(default_factory=dict[str, "SpeechModel"])
    drawing: dict[str, ImageModel] = field(default_factory=dict[str, "ImageModel"])
    voices: dict[str, VoiceModel] = field(default_factory=dict[str, "VoiceModel"])
    workshops: dict[str, Workshop] = field(default_factory=dict[str, Workshop])

    def workshop(self, model: str) -> Workshop:
        return self.workshops.setdefault(model, Workshop())

    @property
    def models(self) -> list[MediaModel]:
        return [*self.speech.values(), *self.drawing.values(), *self.voices.values()]


async def transcribe(room: MediaRoom, body: bytes, request: Request, request_id: str) -> Response:
    """Write down what is said in a recording."""
    from steelyard.engine.media.speech import SpeechBounds, Transcript, Wish

    form = await _read_form(body, request)
    model = find_model(room.speech, _text(form, "model"))
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("send the recording as the part 'file' of a form", param="file")
    wanted = _text(form, "response_format") or "json"
    if wanted not in {"json", "verbose_json"}:
        raise InvalidRequest("response_format is json or verbose_json", param="response_format")
    wish = Wish(
        sound=await file.read(),
        language=_text(form, "language"),
        prompt=_text(form, "prompt"),
        temperature=_number(form, "temperature"),
        bounds=SpeechBounds(
            seconds_max=_count(form, "audio_seconds_max"),
            tokens_max=_count(form, "transcript_tokens_max"),
            characters_max=_count(form, "transcript_characters_max"),
        ),
    )
    model.check(wish)
    return WorkResponse(
        room.workshop(model.name),
        partial(model.transcribe, wish),
        Transcript(is_verbose=wanted == "verbose_json"),
        is_streamed=_text(form, "stream") in {"true", "1", "True"},
        request_id=request_id,
    )


class ImageBody(msgspec.Struct, forbid_unknown_fields=True):
    """What may be asked of a model that draws."""

    prompt: str
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None
    size: str | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=250)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=30)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    user: str | None = None
    pixels_max: int | None = None


def draw(room: MediaRoom, body: bytes, request_id: str) -> Response:
    """Draw pictures, all of a request together."""
    from steelyard.engine.media.drawing import STEPS_DEFAULT, Drawing, PictureWish

    asked = decode_body(body, ImageBody)
    model = find_model(room.drawing, asked.model)
    wish = PictureWish(
        prompt=asked.prompt,
        count=asked.n or 1,
        steps=asked.steps or STEPS_DEFAULT,
        size=_read_size(asked.size),
        # Without a seed every drawing is another one.
        seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        guidance=asked.guidance_scale,
        pixels_max=asked.pixels_max,
    )
    return WorkResponse(
        room.workshop(model.name),
        partial(model.draw, wish),
        Drawing(wish, model, created=unix_seconds()),
        is_streamed=bool(asked.stream),
        request_id=request_id,
    )


class SpeechBody(msgspec.Struct):
    """What may be asked of a voice."""

    input: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    model: str | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4)] = 1.0


async def speak(room: MediaRoom, body: bytes) -> Response:
    """Speak a text; who leaves ends it after the sentence that it is at."""
    from steelyard.engine.media.voice import CONTENT_TYPES, SpeechWish

    asked = decode_body(body, SpeechBody)
    model = find_model(room.voices, asked.model)
    workshop = room.workshop(model.name)
    workshop.check_room()
    wish = SpeechWish(asked.input, asked.response_format, asked.speed)
    sound = b""
    async with workshop.at_work(partial(model.speak, wish)) as steps:
        async for piece in steps:
            sound = piece
    return Response(sound, media_type=CONTENT_TYPES[asked.response_format])


def _read_size(text: str | None) -> tuple[int, int] | None:
    if text is None or text == "auto":
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidRequest("size is WIDTHxHEIGHT, in pixels, or auto", param="size")
    return int(found[1]), int(found[2])


def find_model(models: dict[str, ModelT], name: str | None) -> ModelT:
    """The model of this name, or the first; refuses any other."""
    if name is None and models:
        return next(iter(models.values()))
    if name is None or name not in models:
        served = ", ".join(map(repr, models)) or "none that do"
        message = f"the model {name!r} does not do this here; this engine serves {served}"
        raise ServedModelNotFound(message, param="model")
    return models[name]


async def _read_form(body: bytes, request: Request) -> FormData:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    again = Request(request.scope, receive)
    try:
        return await again.form(max_files=1, max_part_size=PART_BYTES_MAX)
    except HTTPException as error:
        raise InvalidRequest(f"the form cannot be read: {error.detail}") from error


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) and value else None


def _number(form: FormData, name: str) -> float | None:
    text = _text(form, name)
    try:
        number = None if text is None else float(text)
    except ValueError as error:
        raise InvalidRequest(f"{name} must be a number", param=name) from error
    if number is not None and not 0 <= number <= 1:
        raise InvalidRequest(f"{name} must be from 0 to 1", param=name)
    return number


def _count(form: FormData, name: str) -> int | None:
    text = _text(form, name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidRequest(f"{name} must be a whole number", param=name)
    return int(text)
