"""The HTTP routes of models that read and do not write. Imports torch only through a loaded model."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from steelyard.engine.encoder_wire import (
    Document,
    EncoderTokenizeBody,
    PicturesBody,
    RerankBody,
    TextsBody,
    check_bound,
    classification,
    moderation,
    read_texts,
    usage,
)
from steelyard.engine.media.routes import find_model
from steelyard.engine.refusals import (
    EngineOverloaded,
    InvalidRequest,
    ServedModelNotFound,
    UnsupportedParameter,
)
from steelyard.engine.wire import decode_body
from steelyard.ids import new_id

if TYPE_CHECKING:
    from steelyard.engine.encoder import Encoded, Encoder, EncoderKind
    from steelyard.engine.image_classifier import ImageClassifier

# One runs, the others wait: more threads would only share the same cores.
_RUNNING_MAX: Final = 1
_WAITING_MAX: Final = 64
T = TypeVar("T")


class EncoderRoutes:
    """Answers for all models of this kind; what is asked at a path says which kind it takes."""

    def __init__(
        self, encoders: dict[str, Encoder], image_classifiers: dict[str, ImageClassifier]
    ) -> None:
        self._encoders = encoders
        self._image_classifiers = image_classifiers
        self._limiter = CapacityLimiter(_RUNNING_MAX)

    def find(self, name: str | None, kind: EncoderKind | None) -> Encoder:
        """The model of this name and kind, or the first of its kind; refuses any other."""
        fitting = [one for one in self._encoders.values() if kind in {None, one.kind}]
        for encoder in fitting:
            if name in {None, encoder.name}:
                return encoder
        served = ", ".join(repr(one.name) for one in fitting) or "none that do"
        raise ServedModelNotFound(
            f"the model {name!r} does not do this here; this engine serves {served}",
            param="model",
        )

    async def tokenize(self, body: bytes) -> Document | None:
        """The count of texts, if the body is for a model of this kind."""
        asked = decode_body(body, EncoderTokenizeBody)
        if asked.model not in self._encoders:
            return None
        encoder = self._encoders[asked.model]
        encoded = await self._run(lambda: encoder.encode(asked.texts))
        return {"count": encoded.token_count, "max_model_len": encoder.max_model_len}

    async def classify(self, body: bytes) -> Document:
        pictures = decode_body(body, PicturesBody)
        if pictures.urls:
            return await self._classify_pictures(pictures)
        asked = decode_body(body, TextsBody)
        encoder = self.find(asked.model, "classifier")
        encoded, scores = await self._read(encoder, read_texts(asked), asked, encoder.classify)
        classes = encoder.classes
        entries = [classification(index, row, classes) for index, row in enumerate(scores)]
        spent = usage(encoded.token_count, items=len(entries))
        return {"object": "list", "model": encoder.name, "data": entries, "usage": spent}

    async def _classify_pictures(self, asked: PicturesBody) -> Document:
        model = find_model(self._image_classifiers, asked.model)
        scores = await self._run(lambda: model.classify(asked.urls))
        classes = model.classes
        entries = [classification(index, row, classes) for index, row in enumerate(scores)]
        spent = usage(0, items=len(entries))
        return {"object": "list", "model": model.name, "data": entries, "usage": spent}

    async def moderate(self, body: bytes) -> Document:
        asked = decode_body(body, TextsBody)
        encoder = self.find(asked.model, "classifier")
        if not encoder.classes.are_independent:
            raise UnsupportedParameter(
                f"{encoder.name} gives each text one label, and moderates nothing", param="model"
            )
        encoded, scores = await self._read(encoder, read_texts(asked), asked, encoder.classify)
        results = [moderation(row, encoder.classes) for row in scores]
        spent = usage(encoded.token_count, items=len(results))
        name = f"modr-{new_id()}"
        return {"id": name, "model": encoder.name, "results": results, "usage": spent}

    async def embed(self, body: bytes) -> Document:
        asked = decode_body(body, TextsBody)
        encoder = self.find(asked.model, "embedder")
        encoded, vectors = await self._read(encoder, read_texts(asked), asked, encoder.embed)
        write = _base64 if asked.encoding_format == "base64" else list
        entries = [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(vectors)
        ]
        spent = usage(encoded.token_count)
        return {"object": "list", "model": encoder.name, "data": entries, "usage": spent}

    async def rerank(self, body: bytes) -> Document:
        """Documents by the cosine between their vectors and the query's."""
        asked = decode_body(body, RerankBody)
        encoder = self.find(asked.model, "embedder")
        if not asked.documents:
            raise InvalidRequest("documents must have some text", param="documents")
        texts = [asked.query, *asked.texts]
        encoded, vectors = await self._read(encoder, texts, asked, encoder.embed)
        query, *others = vectors
        relevance = [sum(a * b for a, b in zip(query, one, strict=True)) for one in others]
        order = sorted(range(len(others)), key=lambda index: -relevance[index])[: asked.top_n]
        results: list[Document] = []
        for index in order:
            entry: Document = {"index": index, "relevance_score": relevance[index]}
            if asked.return_documents:
                entry["document"] = {"text": texts[1 + index]}
            results.append(entry)
        spent = usage(encoded.token_count)
        name = f"rerank-{new_id()}"
        return {"id": name, "model": encoder.name, "results": results, "usage": spent}

    async def _read(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        asked: TextsBody | RerankBody,
        read: Callable[[Encoded], T],
    ) -> tuple[Encoded, T]:
        encoded = await self._run(lambda: encoder.encode(texts))
        check_bound(encoded.token_count, asked.max_prompt_tokens)
        return encoded, await self._run(lambda: read(encoded))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._limiter.statistics().tasks_waiting >= _WAITING_MAX:
            raise EngineOverloaded
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


def _base64(vector: Sequence[Any]) -> str:
    """Little-endian 32-bit floats, as OpenAI's clients ask for them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
