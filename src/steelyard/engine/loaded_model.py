"""A model and its tokenizer in memory, and everything that is known about them."""

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import DynamicCache

from steelyard.engine.fill_in import FillInMarks, find_marks
from steelyard.engine.grammar import Grammar, GrammarMaker
from steelyard.engine.packed_weights import packed_bytes
from steelyard.engine.paged_memory import Paging, StepLayout
from steelyard.engine.refusals import (
    ChatTemplateMissing,
    FillInUnsupported,
    InvalidRequest,
    UnsupportedParameter,
)
from steelyard.engine.token_text import TokenText
from steelyard.engine.tokenizer_facts import Message, TokenizerFacts


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's own generation_config says a request gets when it does not say."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float = 1.0


class LoadedModel:
    """Answers for the weights (`next_logits`) and for the tokenizer (`encode`, `decode`)."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        folder: Path,
        max_model_len: int,
        facts: TokenizerFacts,
        defaults: SamplingDefaults,
    ) -> None:
        self.name = name
        self.folder = folder
        self.max_model_len = max_model_len
        self.facts = facts
        self.defaults = defaults
        self.device: torch.device = model.device
        self.weights_dtype: torch.dtype = model.dtype
        self.dtype: str = str(model.dtype).removeprefix("torch.")
        self.vocabulary_size: int = model.get_input_embeddings().weight.shape[0]
        # Found out by the first engine that runs the model.
        self.paging: Paging | None = None
        self._model = model
        self._tokenizer = TokenizerCalls(tokenizer)
        self.fill_in_marks: FillInMarks | None = find_marks(tokenizer.get_added_vocab())
        self._token_text = TokenText(tokenizer, is_byte_level=facts.byte_level)
        self._make_grammar_maker = lambda: GrammarMaker(
            tokenizer, vocabulary_size=self.vocabulary_size, eos_token_ids=facts.eos_token_ids
        )
        self._grammar_maker: GrammarMaker | None = None
        self._grammar_lock = threading.Lock()
        self._own_attention: str = model.config._attn_implementation
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted

    @property
    def weights_bytes(self) -> int:
        """What the weights take; those that layers share count once."""
        plain = sum(weight.nbytes for weight in self._model.parameters())
        return plain + packed_bytes(self._model)

    def new_cache(self) -> DynamicCache:
        """An empty cache of the layer kinds this model needs."""
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def next_logits(
        self,
        token_ids: torch.Tensor,
        *,
        cache: DynamicCache,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feed [rows, tokens] ids after what is cached; the logits after each row's last id."""
        optional: dict[str, Any] = {}
        if self._takes_positions:
            optional["position_ids"] = position_ids
        if self._takes_logits_to_keep:
            optional["logits_to_keep"] = 1
        output = self._model(
            input_ids=token_ids,
            past_key_values=cache,
            attention_mask=attention_mask,
            use_cache=True,
            **optional,
        )
        return output.logits[:, -1, :]

    @torch.inference_mode()
    def line_logits(
        self,
        token_ids: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        keep: torch.Tensor,
        step_layout: StepLayout,
    ) -> torch.Tensor:
        """Feed all rows of a step as one line; the logits after the tokens at `keep`."""
        output = self._model(
            input_ids=token_ids,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=keep,
            step_layout=step_layout,
        )
        return output.logits[0]

    @property
    def can_be_paged(self) -> bool:
        """Whether it is worth trying: positions, kept logits and attention can be told to it."""
        return (
            self._takes_positions
            and self._takes_logits_to_keep
            and bool(getattr(self._model, "_supports_attention_backend", False))
        )

    def use_attention(self, name: str | None) -> None:
        """Compute attention by the function of this name, or by the model's own choice."""
        self._model.set_attn_implementation(name or self._own_attention)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a bare prompt, with what the tokenizer adds by itself."""
        return self._tokenizer.encode(text, add_special_tokens=True)

    def encode_fill_in(self, prefix: str, suffix: str) -> list[int]:
        """The ids of a beginning and an end, ready for what is between them."""
        if self.fill_in_marks is None:
            raise FillInUnsupported(param="suffix")
        return self.encode_text(self.fill_in_marks.write(prefix, suffix))

    def encode_messages(
        self, messages: list[Message], *, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a conversation in the model's chat template, ready for the answer."""
        return self._tokenizer.encode_messages(messages, tools=tools)

    def make_grammar(self, schema: dict[str, Any]) -> Grammar:
        """What keeps one answer inside a JSON schema."""
        with self._grammar_lock:
            if self._grammar_maker is None:
                # Some tenths of a second, so only for a model that is asked for JSON.
                self._grammar_maker = self._make_grammar_maker()
        return self._grammar_maker.make(schema)

    def read_token(self, token_id: int) -> bytes:
        """The bytes of one token by itself."""
        return self._token_text.read(token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode(token_ids)


class TokenizerCalls:
    """The three calls we make; the same in every thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        # A first call clears truncation and padding; afterwards no call changes the tokenizer,
        # so that threads may share it. The ones written in Python are locked instead.
        self._is_shared = bool(getattr(tokenizer, "is_fast", False))
        self.encode("x", add_special_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._is_shared:
            return self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        with self._lock:
            return self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]

    def encode_messages(
        self, messages: list[Message], *, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise ChatTemplateMissing
        text = self._render(messages, tools)
        if tools and text == self._render(messages, None):
            raise UnsupportedParameter("the model's chat template ignores tools", param="tools")
        # The template has written its own special tokens.
        return self.encode(text, add_special_tokens=False)

    def _render(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        if self._is_shared:
            return self._decode(token_ids)
        with self._lock:
            return self._decode(token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
