"""Classification: POST /v1/classifications takes a text or a list of texts, or of pictures, and gives
each its label. Each is one item.
"""

import base64
from typing import Final, Literal

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, ImageTooLarge, InvalidRequest
from steelyard.gateway.upstreams.habits import CLASSIFICATIONS
from steelyard.gateway.workloads.asked import (
    Asked,
    count_utf8_bytes,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.list_asked import asked_for_list
from steelyard.metering.picture_size import read_picture_size
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = CLASSIFICATIONS
ITEMS_MAX: Final = 2_048
# Pixels of a picture, across or down.
SIDE_MAX: Final = 4096
# What a tokenizer of this kind of model puts around each text.
SPECIAL_TOKENS: Final = 2


class ImageUrl(msgspec.Struct):
    """Where a picture is."""

    url: str


class Picture(msgspec.Struct):
    """A picture, within its URL."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ClassificationFields(msgspec.Struct):
    model: str | None = None
    input: str | list[str | Picture] | None = None


_decoder = msgspec.json.Decoder(ClassificationFields)


def parse_classification(body: bytes) -> Asked:
    """Read a request for labels; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    items = [typed.input] if isinstance(typed.input, str) else typed.input or []
    texts = [item for item in items if isinstance(item, str)]
    pictures = [item for item in items if isinstance(item, Picture)]
    if texts and pictures:
        raise InvalidRequest("send texts, or pictures", parameter="input")
    size = _measure_pictures(pictures) if pictures else measure_texts(texts, parameter="input")
    return asked_for_list(
        body,
        fields,
        path=ENDPOINT,
        model=typed.model,
        size=size,
        prompt_fields=("input",),
        answer_field="data",
        item_count=len(items),
    )


def _measure_pictures(pictures: list[Picture]) -> PromptSize:
    """Pictures are no text: each is an item. Raises InvalidRequest, PictureUnsupported or
    ImageTooLarge."""
    check_item_count(len(pictures), parameter="input")
    for picture in pictures:
        head, _, body = picture.image_url.url.partition(";base64,")
        if not head.startswith("data:image/"):
            raise InvalidRequest("a picture comes within a data: URL", parameter="input")
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise InvalidRequest(f"a picture is no base64: {error}", parameter="input") from error
        size = read_picture_size(content)
        if max(size.width, size.height) > SIDE_MAX:
            raise ImageTooLarge(
                f"the picture has {size.width}x{size.height} pixels; at most {SIDE_MAX} each way"
            )
    return PromptSize(0, 0, 0)


def measure_texts(texts: list[str], *, parameter: str) -> PromptSize:
    """The size of texts that are read one by one; raises EmptyPrompt or InvalidRequest."""
    check_item_count(len(texts), parameter=parameter)
    sizes = [count_utf8_bytes(text, parameter=parameter) for text in texts]
    if not all(sizes):
        raise EmptyPrompt(f"{parameter} has a text without a character", parameter=parameter)
    return PromptSize(sum(sizes), sum(sizes), 0, SPECIAL_TOKENS * len(sizes))


def check_item_count(count: int, *, parameter: str) -> None:
    if not count:
        raise EmptyPrompt(f"{parameter} must have some text", parameter=parameter)
    if count > ITEMS_MAX:
        message = f"{parameter} has {count} entries; at most {ITEMS_MAX} are taken at once"
        raise InvalidRequest(message, parameter=parameter)
