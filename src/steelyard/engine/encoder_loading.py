"""Loads models that read and do not write, from a folder of transformers'."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from steelyard.engine.encoder import Encoder, EncoderKind
from steelyard.engine.model_loading import LoadingChoices, check_folder, choose_device, read_model
from steelyard.engine.tokenizer_facts import hash_tokenizer, is_byte_level

# A token may stand for a whole word that the vocabulary does not know, however long.
BYTES_PER_TOKEN_MAX: Final = 2**31


def encoder_kind(folder: Path) -> EncoderKind | Literal["image classifier"] | None:
    """What a folder's model does, if it reads and does not write."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        # Whoever loads it says what is wrong.
        return None
    architecture: str = (config.get("architectures") or [""])[0]
    if architecture.endswith("ForImageClassification"):
        return "image classifier"
    if architecture.endswith("ForSequenceClassification"):
        return "classifier"
    return "embedder" if architecture.endswith("Model") else None


def load_encoder(folder: Path, *, kind: EncoderKind, name: str, choices: LoadingChoices) -> Encoder:
    """Bring the model into memory, or say which file is at fault."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_folder(folder)
    device, dtype = choose_device(choices)
    tokenizer = read_model(folder, partial(_tokenizer_of, folder))
    loader: Any = AutoModelForSequenceClassification if kind == "classifier" else AutoModel
    model = read_model(
        folder, lambda: loader.from_pretrained(folder, dtype=dtype, local_files_only=True)
    )
    context: int = model.config.max_position_embeddings
    asked = choices.max_model_len
    return Encoder(
        model.to(device).eval(),
        tokenizer,
        kind=kind,
        name=choices.name or name,
        max_model_len=context if asked is None else min(asked, context),
        facts=_facts(tokenizer, folder) | {"dtype": str(dtype).removeprefix("torch.")},
    )


def _tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _facts(tokenizer: Any, folder: Path) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        "tokenizer_sha256": hash_tokenizer(tokenizer, folder),
        "byte_level": is_byte_level(definition) or _is_bert_wordpiece(definition),
        "bytes_per_token_max": BYTES_PER_TOKEN_MAX,
        "template_tokens_base": 0,
        "template_tokens_per_message": 0,
        "special_tokens_added": len(tokenizer("")["input_ids"]),
    }


def _is_bert_wordpiece(definition: dict[str, Any]) -> bool:
    """Whether every token takes at least one byte of the text: BERT's normalizer may split one
    character into several, but takes accents away again, and a word is at most one token for each
    of its characters."""
    kinds = definition["model"]["type"], (definition.get("normalizer") or {}).get("type")
    return kinds == ("WordPiece", "BertNormalizer")
