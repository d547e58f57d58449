"""Counts what a model sees and says: prompts with their chat overhead, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from steelyard.clock import Clock
from steelyard.counting.chat_template import ChatTemplate
from steelyard.counting.openai_chat import count_openai_messages, count_openai_tools
from steelyard.counting.registry import OpenedTokenizer
from steelyard.errors import Refusal

Message = Mapping[str, Any]


class ChatNotCountable(Refusal):
    """Nobody has said how this model writes a conversation: it has no chat template here."""

    code = "chat_not_countable"


class ContentNotCountable(Refusal):
    """A message holds something other than text."""

    code = "content_not_countable"


class _TextPart(msgspec.Struct):
    text: str


@dataclass(frozen=True, slots=True)
class Counted:
    """A count, and whether it is exact (`tokenizer`) or by a rule of thumb (`estimate`)."""

    tokens: int
    source: Literal["tokenizer", "estimate"]


class ModelCounter:
    """One model's tokenizer with the rule for its conversations."""

    def __init__(self, opened: OpenedTokenizer, *, clock: Clock) -> None:
        self.registered = opened.registered
        self._tokenizer = opened.tokenizer
        self._template = (
            ChatTemplate(
                opened.chat_template, words=opened.registered.pin.template_words, clock=clock
            )
            if opened.chat_template is not None
            else None
        )

    def count_text(self, text: str) -> int:
        """Tokens of a text alone."""
        return self._tokenizer.count(text)

    def pieces(self, text: str) -> list[bytes]:
        return self._tokenizer.pieces(self._tokenizer.encode(text))

    def count_prompt(self, prompt: str | Sequence[int]) -> Counted:
        """Tokens of a bare prompt, with what the server adds; token ids count one each."""
        if not isinstance(prompt, str):
            return Counted(len(prompt), "tokenizer")
        added = self.registered.pin.prompt_tokens_added
        return Counted(self._tokenizer.count(prompt) + added, "tokenizer")

    def count_messages(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None
    ) -> Counted:
        """Tokens of a conversation, ready for the answer."""
        plain = [_plain_message(message) for message in messages]
        if self._template is not None:
            # The template has written its own special tokens.
            text = self._template.render(plain, tools=tools)
            return Counted(self._tokenizer.count(text), "tokenizer")
        if self.registered.pin.chat != "openai":
            raise ChatNotCountable
        tokens = count_openai_messages(self._tokenizer, plain)
        # OpenAI documents no rule for what an assistant called before, or for a tool's answer.
        is_plain = all(message.keys() <= {"role", "content", "name"} for message in plain)
        if not tools:
            return Counted(tokens, "tokenizer" if is_plain else "estimate")
        encoding = self.registered.known_as or ""
        tokens += count_openai_tools(self._tokenizer, tools, encoding=encoding)
        return Counted(tokens, "estimate")

    def count_answer(self, text: str, *, is_ended: bool) -> int:
        """Tokens of an answer. Servers of open models count the token that ended it, OpenAI not."""
        has_end_token = is_ended and self.registered.pin.chat != "openai"
        return self._tokenizer.count(text) + has_end_token


def _plain_message(message: Message) -> dict[str, Any]:
    """As our engine reads a message: parts of text joined, `developer` under its old name."""
    role = "system" if message.get("role") == "developer" else message.get("role")
    return {**message, "role": role, "content": _text(message.get("content"))}


def _text(content: Any) -> str:
    try:
        read = msgspec.convert(content, str | list[_TextPart] | None)
    except msgspec.ValidationError as error:
        raise ContentNotCountable from error
    return read if isinstance(read, str) else "".join(part.text for part in read or ())
