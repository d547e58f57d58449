"""Models that read and do not write: they give a text its classes, or its place among other texts.

Read whole, in one pass, a few texts at a time. What is counted is the token ids that were fed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import torch

from steelyard.engine.loaded_model import TokenizerCalls
from steelyard.engine.refusals import ContextLengthExceeded

EncoderKind = Literal["classifier", "embedder"]
PATHS: Final[dict[EncoderKind, tuple[str, ...]]] = {
    "classifier": ("/v1/classifications", "/v1/moderations"),
    "embedder": ("/v1/embeddings", "/v1/rerank"),
}
TEXTS_AT_ONCE: Final = 16
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of texts, and how many there are of them."""

    rows: Sequence[Sequence[int]]

    @property
    def token_count(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class Classes:
    """The labels of a classifier; independent ones may all be true of a text, others add up to 1."""

    labels: tuple[str, ...]
    are_independent: bool


class Encoder:
    """A model of this kind in memory, and its tokenizer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        kind: EncoderKind,
        name: str,
        max_model_len: int,
        facts: dict[str, Any],
    ) -> None:
        self.kind = kind
        self.name = name
        self.max_model_len = max_model_len
        self.facts = facts | {"paths": PATHS[kind], "has_chat_template": False}
        self._model = model
        self._tokenizer = TokenizerCalls(tokenizer)
        self._pad_id: int = tokenizer.pad_token_id or 0

    @property
    def classes(self) -> Classes:
        assert self.kind == "classifier", f"{self.name} knows no classes"
        config = self._model.config
        labels = tuple(config.id2label[index] for index in range(config.num_labels))
        return Classes(labels, config.problem_type == "multi_label_classification")

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text; refuses one that is longer than the model's context."""
        rows = [self._tokenizer.encode(text, add_special_tokens=True) for text in texts]
        for index, row in enumerate(rows):
            if len(row) > self.max_model_len:
                raise ContextLengthExceeded(
                    f"text {index} has {len(row)} tokens; this model reads {self.max_model_len}",
                    param="input",
                )
        return Encoded(rows)

    def classify(self, encoded: Encoded) -> list[list[float]]:
        """For each text the score of each label."""
        score = torch.sigmoid if self.classes.are_independent else _softmax

        def read(output: Any, _mask: torch.Tensor) -> list[list[float]]:
            return score(output.logits.float()).tolist()

        return self._run(encoded, read)

    def embed(self, encoded: Encoded) -> list[list[float]]:
        """For each text a vector of length 1: the mean over its tokens."""
        return self._run(encoded, _mean_of_tokens)

    @torch.inference_mode()
    def _run(self, encoded: Encoded, read: Callable[[Any, torch.Tensor], list[T]]) -> list[T]:
        """Feed all texts, those of similar length together."""
        order = sorted(range(len(encoded.rows)), key=lambda index: len(encoded.rows[index]))
        found: dict[int, T] = {}
        for start in range(0, len(order), TEXTS_AT_ONCE):
            chosen = order[start : start + TEXTS_AT_ONCE]
            ids, mask = self._padded([encoded.rows[index] for index in chosen])
            output = self._model(input_ids=ids, attention_mask=mask)
            found.update(zip(chosen, read(output, mask), strict=True))
        return [found[index] for index in range(len(order))]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, rows))
        ids = [[*row, *[self._pad_id] * (longest - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1)


def _mean_of_tokens(output: Any, mask: torch.Tensor) -> list[list[float]]:
    weights = mask.unsqueeze(-1).float()
    summed = (output.last_hidden_state.float() * weights).sum(dim=1)
    mean = summed / weights.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1).tolist()
