"""Image generation: POST /v1/images/generations
(https://platform.openai.com/docs/api-reference/images/create)."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from steelyard.gateway.event_stream import write_event
from steelyard.gateway.refusals import EmptyPrompt, ImageTooLarge, InvalidRequest
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.upstreams.habits import IMAGES
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.gateway.workloads.asked import (
    Asked,
    Way,
    count_utf8_bytes,
    digest_request,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.openai_answer import DONE
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.token_bound import PromptSize
from steelyard.metering.usage import (
    INPUT_TEXT,
    OUTPUT_IMAGE_COUNT,
    OUTPUT_IMAGE_HEIGHT,
    OUTPUT_IMAGE_PIXELS,
    OUTPUT_IMAGE_STEPS,
    OUTPUT_IMAGE_WIDTH,
)

ENDPOINT: Final = IMAGES
IMAGES_MAX: Final = 10
SIDE_MAX: Final = 4_096
STEPS_MAX: Final = 250
STEPS_DEFAULT: Final = 20
# What is held for where the model chooses the size.
SIDE_DEFAULT: Final = 1_024
# A text encoder's own marks of beginning and end.
SPECIAL_TOKENS: Final = 2
_SIZE: Final = re.compile(r"([0-9]{1,18})x([0-9]{1,18})", re.ASCII)


class ImageFields(msgspec.Struct):
    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    steps: int | None = None
    stream: bool | None = None
    response_format: str | None = None


class _Picture(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None


_decoder = msgspec.json.Decoder(ImageFields)
_pictures_decoder = msgspec.json.Decoder(list[_Picture])
_text_decoder = msgspec.json.Decoder(str)


def parse_image(body: bytes) -> Asked:
    """Read a request for pictures; raises InvalidRequest or one of its kinds, or ImageTooLarge."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    prompt_bytes = count_utf8_bytes(typed.prompt, parameter="prompt")
    if not typed.prompt.strip():
        raise EmptyPrompt("prompt must have some text", parameter="prompt")
    if typed.response_format == "url":
        raise InvalidRequest("pictures come as b64_json only", parameter="response_format")
    count = _within(typed.n, 1, most=IMAGES_MAX, parameter="n")
    steps = _within(typed.steps, STEPS_DEFAULT, most=STEPS_MAX, parameter="steps")
    width, height = read_size(typed.size)
    pixels = count * width * height
    way = Way(
        path=IMAGES,
        fields=lambda: fields,
        open_answer=lambda: ImageAnswer(width, height),
        bounds={"steps": steps, "pixels_max": pixels},
        is_bounded_by_tokens=False,
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=PromptSize(prompt_bytes, 0, 0),
        output_tokens_max=None,
        choice_count=0,
        is_streamed=bool(typed.stream),
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(way,),
        counts_max={
            INPUT_TEXT: prompt_bytes + SPECIAL_TOKENS,
            OUTPUT_IMAGE_COUNT: count,
            OUTPUT_IMAGE_STEPS: steps,
            OUTPUT_IMAGE_WIDTH: width,
            OUTPUT_IMAGE_HEIGHT: height,
            OUTPUT_IMAGE_PIXELS: pixels,
        },
    )


def read_size(size: str | None) -> tuple[int, int]:
    """Width and height, at most; raises InvalidRequest or ImageTooLarge."""
    if size is None or size == "auto":
        return SIDE_DEFAULT, SIDE_DEFAULT
    found = _SIZE.fullmatch(size)
    if found is None or not int(found[1]) or not int(found[2]):
        message = "size is WIDTHxHEIGHT in pixels, as 512x512, or auto"
        raise InvalidRequest(message, parameter="size")
    width, height = int(found[1]), int(found[2])
    if max(width, height) > SIDE_MAX:
        raise ImageTooLarge(f"a picture has at most {SIDE_MAX}x{SIDE_MAX} pixels, not {size}")
    return width, height


def _within(given: int | None, default: int, *, most: int, parameter: str) -> int:
    value = default if given is None else given
    if not 1 <= value <= most:
        message = f"{parameter} must be from 1 to {most}, got {value}"
        raise InvalidRequest(message, parameter=parameter)
    return value


class ImageAnswer:
    """Implements Answer for pictures; the step events of a stream pass, and are charged as taken."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._document: dict[str, msgspec.Raw] = {}
        self._usage: dict[str, Any] = {}
        self._count = 0

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        self._count = _count_pictures(self._document)
        self._report(self._document.pop("usage", None), meter)
        meter.is_complete = True
        return bytes(self._document["data"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        return msgspec.json.encode({**self._document, "usage": self._priced(priced)})

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        if payload == DONE:
            meter.is_complete = self._count > 0
            return ()
        event = read_document(payload)
        refuse_error(event)
        usage = event.pop("usage", None)
        if _read_type(event) != "image_generation.completed":
            if usage is not None:
                self._report(usage, meter)
            return (write_event(msgspec.json.encode(event)),)
        # The last picture leaves with the price on it; those before it may go.
        earlier = self._document
        self._document, self._count = event, self._count + 1
        self._report(usage, meter)
        return (write_event(msgspec.json.encode(earlier)),) if earlier else ()

    def end_of_stream(self, meter: AnswerMeter) -> None:
        # OpenAI's own streams of pictures end without a word.
        meter.is_complete = self._count > 0

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        event = {**self._document, "usage": self._priced(priced)}
        return write_event(msgspec.json.encode(event)), write_event(DONE)

    def _report(self, raw: msgspec.Raw | None, meter: AnswerMeter) -> None:
        """Tell the meter; pictures that are there are counted, whatever the upstream says of them."""
        told: dict[str, Any] | None = msgspec.json.decode(raw) if raw is not None else None
        block = told or self._usage
        if block.get("type") != "image":
            block = {**block, "type": "image"}
            if self._count:
                size = {"width": self._width, "height": self._height}
                block |= {**size, "pixels": self._width * self._height * self._count}
        block["images"] = self._count
        self._usage = block
        report_usage(msgspec.Raw(msgspec.json.encode(block)), meter)

    def _priced(self, priced: PricedUsage) -> dict[str, Any]:
        return {**self._usage, **priced.price_fields()}


def _count_pictures(document: dict[str, msgspec.Raw]) -> int:
    try:
        pictures = _pictures_decoder.decode(document["data"])
    except (KeyError, msgspec.ValidationError) as error:
        raise UpstreamFailed("the model's server sent an answer without pictures") from error
    if not all(picture.b64_json or picture.url for picture in pictures):
        raise UpstreamFailed("the model's server sent a picture without anything in it")
    return len(pictures)


def _read_type(event: dict[str, msgspec.Raw]) -> str:
    try:
        return _text_decoder.decode(event["type"])
    except (KeyError, msgspec.ValidationError) as error:
        raise UpstreamFailed("the model's server sent an event without its type") from error
