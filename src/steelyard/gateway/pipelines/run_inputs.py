"""What a run is given: values as they are, and files that are looked at before anything is held."""

import base64
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from steelyard.gateway.documents.reading import DocumentTooLarge, read_document_text
from steelyard.gateway.pipelines.pipeline import FAN_OUT_MAX, InputKind, Pipeline
from steelyard.gateway.refusals import FileEmpty, FileMissing, InvalidRequest
from steelyard.gateway.workloads.form import FormFile
from steelyard.metering.audio_length import read_audio_length

# A piece is asked in one request, with room for an instruction and an answer.
PIECE_CHARACTERS_MAX: Final = 3_000


class GivenFile(msgspec.Struct, forbid_unknown_fields=True):
    """A file within JSON."""

    base64: str
    name: str = "file"
    content_type: str = ""


def read_inputs(
    pipeline: Pipeline, given: Mapping[str, Any], files: Mapping[str, FormFile]
) -> tuple[dict[str, Any], dict[str, FormFile]]:
    """The values that stages refer to, and the files that they are asked with; raises what is wrong
    with them."""
    kinds = pipeline.inputs
    missing = [one for one in kinds if one not in given and one not in files]
    unknown = [one for one in (*given, *files) if one not in kinds]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0][:100]!r} too many"
        takes = ", ".join(kinds)
        raise InvalidRequest(f"the input {what}; {pipeline.name} takes {takes}", parameter="input")
    values: dict[str, Any] = {}
    kept: dict[str, FormFile] = {}
    for name, kind in kinds.items():
        file = files.get(name)
        if kind == "value":
            if file is not None:
                raise InvalidRequest(f"the input {name!r} is no file", parameter="input")
            values[name] = given[name]
        else:
            file = file or _file_of(name, given[name], kind)
            values[name] = _look_at(name, file, kind)
            if kind == "audio":
                kept[name] = file
    return values, kept


def _file_of(name: str, value: Any, kind: InputKind) -> FormFile:
    """A file within JSON; the text of a document may stand there as it is."""
    if kind == "document" and isinstance(value, str):
        return FormFile(f"{name}.txt", "text/plain", value.encode())
    try:
        read = msgspec.convert(value, GivenFile)
        content = base64.b64decode(read.base64, validate=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise FileMissing(
            f"send {name!r} as a file of a form, or as an object with its base64: {error}",
            parameter="input",
        ) from error
    return FormFile(read.name, read.content_type, content)


def _look_at(name: str, file: FormFile, kind: InputKind) -> dict[str, Any]:
    """What stages can refer to."""
    if not file.content:
        raise FileEmpty(f"the file {file.name[:100]!r} is empty", parameter="input")
    if kind == "audio":
        seconds = math.ceil(read_audio_length(file.content).seconds)
        return {"file": name, "name": file.name, "seconds": seconds}
    text = read_document_text(file.content)
    pieces = cut(text, PIECE_CHARACTERS_MAX)
    if len(pieces) > FAN_OUT_MAX:
        raise DocumentTooLarge(f"a document of a run has at most {FAN_OUT_MAX} pieces")
    return {"name": file.name, "text": text, "pieces": pieces}


def cut(text: str, characters_max: int) -> list[str]:
    """Pieces that are the text when they are joined, cut behind a paragraph, a line or a word where
    there is one in their second half."""
    pieces: list[str] = []
    start = 0
    while len(text) - start > characters_max:
        end = start + characters_max
        for mark in ("\n\n", "\n", " "):
            found = text.rfind(mark, start + characters_max // 2, end)
            if found >= 0:
                end = found + len(mark)
                break
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]
