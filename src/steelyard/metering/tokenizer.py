"""What a tokenizer is to the rest of the program. Reading one from files is `counting`'s work."""

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from steelyard.errors import Refusal

Family = Literal["sentencepiece", "byte_bpe", "tiktoken"]

FAMILIES: Final[dict[Family, str]] = {
    "sentencepiece": "SentencePiece: Llama 2, Mistral v1 to v7, Gemma",
    "byte_bpe": "byte-level BPE: Llama 3, Qwen, DeepSeek, SmolLM2, Tekken",
    "tiktoken": "an encoding of OpenAI's: cl100k, o200k",
}


class TextNotEncodable(Refusal):
    """The text has half of a surrogate pair, which is no character."""

    code = "text_not_encodable"


class Tokenizer(Protocol):
    """Turns text into token ids, as the model itself does. All raise TextNotEncodable."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without anything put before or after it."""
        ...

    def count(self, text: str) -> int:
        """How many ids `encode` gives; it may know a faster way."""
        ...

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; joined, they are the decoded whole."""
        ...


def check_encodable(text: str) -> None:
    """Some libraries count half of a surrogate pair as a replacement character; we refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextNotEncodable(
            f"the text has half of a surrogate pair at character {error.start}, "
            "which is no character"
        ) from error
