"""Turns a .gguf file into a safetensors folder once, so that later starts take a second."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from steelyard.engine.model_manifest import MANIFEST_NAME, digest_file, write_manifest
from steelyard.engine.model_source import ModelDamaged
from steelyard.errors import Failure

Progress = Callable[[str], None]
_TEMPORARY: Final = ".converting"


class ModelsDirUnwritable(Failure):
    """The models folder cannot be written."""

    code = "models_dir_unwritable"


def convert_gguf(gguf: Path, models_dir: Path, *, progress: Progress) -> Path:
    """Return the folder that holds this file's exact dequantised weights, converting if needed."""
    source_sha256 = digest_file(gguf).sha256
    # The digest is in the name, so another file of the same name gets its own folder.
    folder = models_dir / f"{gguf.stem}-{source_sha256[:12]}"
    if (folder / MANIFEST_NAME).is_file():
        return folder
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(models_dir / f"{folder.name}.lock"):
            if not (folder / MANIFEST_NAME).is_file():
                _convert(gguf, folder, source_sha256=source_sha256, progress=progress)
    except OSError as error:
        raise ModelsDirUnwritable(
            f"cannot write the converted model to {models_dir} ({error}); free some space or "
            "give another folder with --models-dir"
        ) from error
    return folder


def _convert(gguf: Path, folder: Path, *, source_sha256: str, progress: Progress) -> None:
    temporary = folder.with_name(folder.name + _TEMPORARY)
    # Either may be left over from a start that was killed, or lack its manifest.
    for leftover in (temporary, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    progress(f"converting {gguf.name} once, step 1 of 3: reading the tokenizer")
    _load(gguf, what="tokenizer").save_pretrained(temporary)
    progress("step 2 of 3: dequantising the weights, about half a minute")
    quantised = _load(gguf, what="weights")
    progress("step 3 of 3: writing safetensors")
    _plain_copy(quantised).save_pretrained(temporary)
    write_manifest(temporary, source_name=gguf.name, source_sha256=source_sha256)
    temporary.rename(folder)
    progress(f"converted into {folder}")


def _load(gguf: Path, *, what: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(gguf.parent), gguf.name
    try:
        if what == "tokenizer":
            return AutoTokenizer.from_pretrained(folder, gguf_file=name)
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    except Exception as error:
        # The gguf reader raises whatever numpy does on a truncated file.
        raise ModelDamaged(
            f"the {what} in {gguf} cannot be read ({type(error).__name__}: {error}); it is "
            "damaged or of a kind transformers does not know: download it again"
        ) from error


def _plain_copy(quantised: Any) -> Any:
    """The same weights in a model that never heard of GGUF: the loaded one refuses to be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(quantised.config)(**settings)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = quantised.generation_config
    return plain
