"""The bodies that models take which read and do not write, and what they answer."""

from typing import Any, Final, Literal

import msgspec

from steelyard.engine.encoder import Classes
from steelyard.engine.refusals import InvalidRequest, PromptOverBound, UnsupportedParameter

# Above this a class that may be true beside others is said to be.
FLAGGED_FROM: Final = 0.5
Document = dict[str, Any]


class TextsBody(msgspec.Struct, kw_only=True):
    """The body of /v1/classifications, /v1/moderations and /v1/embeddings."""

    model: str | None = None
    input: str | list[str]
    max_prompt_tokens: int | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class ImageUrl(msgspec.Struct):
    """Where a picture is: in the URL itself."""

    url: str


class Picture(msgspec.Struct):
    """A picture to classify."""

    type: Literal["image_url"]
    image_url: ImageUrl


class PicturesBody(msgspec.Struct):
    """The body of /v1/classifications, as far as it has pictures."""

    model: str | None = None
    input: str | list[str | Picture] = ""

    @property
    def urls(self) -> list[str]:
        """The pictures; refuses texts among them."""
        given = self.input if isinstance(self.input, list) else []
        pictures = [one.image_url.url for one in given if isinstance(one, Picture)]
        if pictures and len(pictures) < len(given):
            raise InvalidRequest("send texts, or pictures", param="input")
        return pictures


class RankedText(msgspec.Struct):
    """A document to rank."""

    text: str


class RerankBody(msgspec.Struct, kw_only=True):
    """The body of /v1/rerank."""

    model: str | None = None
    query: str
    documents: list[str | RankedText]
    top_n: int | None = None
    return_documents: bool | None = None
    max_prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class EncoderTokenizeBody(msgspec.Struct, kw_only=True):
    """The body of /tokenize for these models: the texts of any of the bodies above."""

    model: str | None = None
    input: str | list[str] = []
    query: str | None = None
    documents: list[str | RankedText] = []

    @property
    def texts(self) -> list[str]:
        queries = [] if self.query is None else [self.query]
        documents = [one if isinstance(one, str) else one.text for one in self.documents]
        return [*as_list(self.input), *queries, *documents]


def as_list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def read_texts(body: TextsBody) -> list[str]:
    """The texts of a body; refuses none, and forms of answer that are not implemented."""
    if body.encoding_format not in {None, "float", "base64"}:
        raise UnsupportedParameter("encoding_format is float or base64", param="encoding_format")
    if body.dimensions is not None:
        raise UnsupportedParameter("dimensions are those of the model", param="dimensions")
    texts = as_list(body.input)
    if not texts:
        raise InvalidRequest("input must have some text", param="input")
    return texts


def check_bound(token_count: int, bound: int | None) -> None:
    if bound is not None and token_count > bound:
        raise PromptOverBound(
            f"the texts have {token_count} tokens, more than max_prompt_tokens={bound}",
            param="max_prompt_tokens",
            prompt_tokens=token_count,
            max_prompt_tokens=bound,
        )


def classification(index: int, scores: list[float], classes: Classes) -> Document:
    """What one text is."""
    best = max(range(len(scores)), key=scores.__getitem__)
    named = dict(zip(classes.labels, scores, strict=True))
    return {"index": index, "label": classes.labels[best], "score": scores[best], "scores": named}


def moderation(scores: list[float], classes: Classes) -> Document:
    """What one text is flagged for, in OpenAI's shape."""
    named = dict(zip(classes.labels, scores, strict=True))
    categories = {label: score >= FLAGGED_FROM for label, score in named.items()}
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": named,
        "category_applied_input_types": {label: ["text"] for label in named},
    }


def usage(token_count: int, *, items: int | None = None) -> Document:
    block: Document = {"prompt_tokens": token_count, "total_tokens": token_count}
    return block if items is None else {**block, "items": items}
