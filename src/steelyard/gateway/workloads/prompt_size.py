"""How large a prompt can be, before anybody tokenizes it: text by its bytes, the rest by a bound.

Nothing that an upstream may put before the model is left out: what we do not know counts with every
byte that it has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from steelyard.gateway.workloads.asked import count_utf8_bytes, read_typed

# The largest picture that the common models see has about as many tokens as this.
IMAGE_TOKENS_MAX: Final = 1_600
# The thinnest sound has some hundred bytes for each token.
SOUND_BYTES_PER_TOKEN: Final = 100
# A page of a document is a picture and its text.
DOCUMENT_BYTES_PER_TOKEN: Final = 10
# What templates and providers write around tools, on top of the tools themselves.
TOOL_TOKENS: Final = 1_024
TOOL_FIELDS: Final = ("tools", "functions", "response_format", "documents", "text", "output_config")

IMAGE_PARTS: Final = frozenset({"image", "image_url", "input_image"})
SOUND_PARTS: Final = frozenset({"input_audio", "audio", "audio_url"})
DOCUMENT_PARTS: Final = frozenset({"file", "input_file", "document"})
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})

RawFields = dict[str, msgspec.Raw]
Content = str | list[str | RawFields] | RawFields | None
_parts_decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(Content)
_text_decoder = msgspec.json.Decoder(str | None)
_type_decoder = msgspec.json.Decoder(str)


@dataclass(slots=True)
class Measure:
    """What has been measured so far."""

    text_bytes: int = 0
    extra_tokens: int = 0
    content_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.content_bytes and not self.extra_tokens

    def add_text(self, text: str, *, parameter: str) -> int:
        size = count_utf8_bytes(text, parameter=parameter)
        self.text_bytes += size
        self.content_bytes += size
        return size

    def add_unknown(self, raw: msgspec.Raw) -> None:
        """JSON as it stands: never shorter than the text that it encodes."""
        self.text_bytes += len(raw)

    def add_content(self, raw: msgspec.Raw, *, parameter: str) -> str:
        """A message's content: a text, or parts of it; returns the text."""
        content = read_typed(raw, _parts_decoder)
        if content is None:
            return ""
        if isinstance(content, str):
            self.add_text(content, parameter=parameter)
            return content
        parts = [content] if isinstance(content, dict) else content
        return "".join(self._add_part(part, parameter=parameter) for part in parts)

    def add_tools(self, fields: Mapping[str, msgspec.Raw]) -> None:
        """Tools and schemas, which templates write out in their own way."""
        for name in TOOL_FIELDS:
            raw = fields.get(name)
            if raw is not None and bytes(raw) not in {b"null", b"[]", b"{}"}:
                self.add_unknown(raw)
                self.extra_tokens += TOOL_TOKENS

    def _add_part(self, part: str | RawFields, *, parameter: str) -> str:
        if isinstance(part, str):
            self.add_text(part, parameter=parameter)
            return part
        kind = _kind_of(part)
        if kind in TEXT_PARTS and "text" in part:
            text = read_typed(part["text"], _text_decoder) or ""
            self.add_text(text, parameter=parameter)
            return text
        size = sum(len(raw) for raw in part.values())
        if kind in IMAGE_PARTS:
            self.extra_tokens += IMAGE_TOKENS_MAX
        elif kind in SOUND_PARTS:
            self.extra_tokens += math.ceil(size / SOUND_BYTES_PER_TOKEN)
        elif kind in DOCUMENT_PARTS:
            self.extra_tokens += IMAGE_TOKENS_MAX + math.ceil(size / DOCUMENT_BYTES_PER_TOKEN)
        elif kind == "tool_result" and "content" in part:
            self.text_bytes += size - len(part["content"])
            return self.add_content(part["content"], parameter=parameter)
        else:
            self.text_bytes += size
            self.content_bytes += size
        return ""


def _kind_of(part: RawFields) -> str:
    raw = part.get("type")
    try:
        return _type_decoder.decode(raw) if raw is not None else ""
    except msgspec.ValidationError:
        return ""
