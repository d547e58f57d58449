"""Loads a model folder: checks it first, so that damage is named and not stumbled over."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from steelyard.engine.gguf_conversion import convert_gguf
from steelyard.engine.loaded_model import LoadedModel, SamplingDefaults, TokenizerCalls
from steelyard.engine.model_manifest import verify_manifest
from steelyard.engine.model_source import (
    ModelDamaged,
    ModelKind,
    ModelNotFound,
    ModelSource,
    download_from_hub,
)
from steelyard.engine.packed_weights import pack_weights
from steelyard.engine.refusals import EngineRefusal
from steelyard.engine.tokenizer_facts import (
    Message,
    TokenizerFacts,
    hash_tokenizer,
    is_byte_level,
    measure_bytes_per_token,
    measure_template,
)
from steelyard.errors import Failure

_CONTEXT_WHEN_UNSAID: Final = 2048


class DeviceUnavailable(Failure):
    """The device or number format asked for is not to be had here."""

    code = "device_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingChoices:
    """How to load; None and "auto" leave the choice to us."""

    models_dir: Path
    name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None


def load_model(
    source: ModelSource, choices: LoadingChoices, *, progress: Callable[[str], None]
) -> LoadedModel:
    """Bring the model into memory, or say which file is at fault."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = folder_of(source, choices.models_dir, progress=progress)
    check_folder(folder)
    device, dtype = choose_device(choices)
    tokenizer = read_model(folder, lambda: _load_tokenizer(folder))
    model = read_model(folder, lambda: _load_weights(folder, dtype=dtype)).to(device).eval()
    pack_weights(model)
    return LoadedModel(
        model,
        tokenizer,
        name=choices.name or source.name,
        folder=folder,
        max_model_len=_context_length(model.config, choices.max_model_len),
        facts=_measure_tokenizer(tokenizer, model.generation_config, folder=folder),
        defaults=_sampling_defaults(model.generation_config),
    )


def folder_of(source: ModelSource, models_dir: Path, *, progress: Callable[[str], None]) -> Path:
    match source.kind:
        case ModelKind.FOLDER | ModelKind.SPEECH | ModelKind.DRAWING | ModelKind.VOICE:
            folder = Path(source.location)
        case ModelKind.GGUF:
            folder = convert_gguf(Path(source.location), models_dir, progress=progress)
        case ModelKind.HUB:
            folder = download_from_hub(source.location)
        case ModelKind.MADE:
            from steelyard.engine.classifier_making import made_classifier

            folder = made_classifier(source.location, models_dir, progress=progress)
    return folder


def check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{folder} is not a model folder: it holds no config.json")
    verify_manifest(folder)
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise _damaged(path, error) from error
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelDamaged:
    return ModelDamaged(
        f"{path} is damaged ({error}); delete it and download or convert the model again"
    )


def read_model(folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Failure:
        raise
    except Exception as error:
        # transformers raises nearly every kind of exception on a bad folder.
        first_line = (str(error).splitlines() or [""])[0]
        raise ModelDamaged(
            f"the model in {folder} cannot be loaded ({type(error).__name__}: {first_line}); "
            "it is incomplete or damaged: download or convert it again"
        ) from error


def _load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _load_weights(folder: Path, *, dtype: torch.dtype) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    # transformers only warns, and fills what is missing with random numbers.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelDamaged(
            f"the weights in {folder} lack {len(missing)} tensors, such as {missing[0]}; "
            "download or convert the model again"
        )
    return model


def choose_device(choices: LoadingChoices) -> tuple[torch.device, torch.dtype]:
    name = choices.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceUnavailable(f"no CUDA device is visible; use --device cpu instead of {name}")
    default = "bfloat16" if name.startswith("cuda") else "float32"
    dtype = getattr(torch, default if choices.dtype == "auto" else choices.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DeviceUnavailable(
            f"{choices.dtype!r} is no number format; use float32, bfloat16 or float16"
        )
    try:
        return torch.device(name), dtype
    except RuntimeError as error:
        raise DeviceUnavailable(f"{name!r} is no device; use cpu, cuda or auto") from error


def _context_length(config: Any, asked: int | None) -> int:
    text_config = config.get_text_config(decoder=True)
    length = getattr(text_config, "max_position_embeddings", None) or _CONTEXT_WHEN_UNSAID
    return length if asked is None else min(length, asked)


def _sampling_defaults(config: Any) -> SamplingDefaults:
    def said(name: str, otherwise: Any) -> Any:
        value = getattr(config, name, None)
        return otherwise if value is None else value

    return SamplingDefaults(
        temperature=float(said("temperature", 1.0)),
        top_p=float(said("top_p", 1.0)),
        top_k=int(said("top_k", 0)),
        repetition_penalty=float(said("repetition_penalty", 1.0)),
    )


def _measure_tokenizer(tokenizer: Any, generation_config: Any, *, folder: Path) -> TokenizerFacts:
    calls = TokenizerCalls(tokenizer)

    def count_tokens(messages: list[Message]) -> int | None:
        try:
            return len(calls.encode_messages(messages))
        except EngineRefusal:
            return None

    is_fast = bool(getattr(tokenizer, "is_fast", False))
    byte_level = is_fast and is_byte_level(json.loads(tokenizer.backend_tokenizer.to_str()))
    base, per_message = measure_template(count_tokens)
    return TokenizerFacts(
        tokenizer_sha256=hash_tokenizer(tokenizer, folder),
        byte_level=byte_level,
        bytes_per_token_max=measure_bytes_per_token(tokenizer, byte_level=byte_level),
        template_tokens_base=base,
        template_tokens_per_message=per_message,
        special_tokens_added=len(calls.encode("", add_special_tokens=True)),
        eos_token_ids=_eos_token_ids(tokenizer, generation_config),
    )


def _eos_token_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    configured = generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    return tuple(sorted(i for i in ids | {tokenizer.eos_token_id} if i is not None))
