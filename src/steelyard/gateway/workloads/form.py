"""Forms with a file: multipart/form-data (RFC 7578), read whole and written again for an upstream."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from steelyard.gateway.refusals import FileEmpty, FileMissing, InvalidForm, UnsupportedMediaType

FORM_TYPE: Final = "multipart/form-data"
PARTS_MAX: Final = 100
# Any bytes may stand in a file, so the mark between parts is a hash of them all.
_MARK: Final = "steelyard-"


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file as it was sent."""

    name: str
    content_type: str
    content: bytes


@dataclass(slots=True)
class Form:
    """The fields of a form; a field that comes several times has several values."""

    fields: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    files: dict[str, FormFile] = field(default_factory=dict[str, FormFile])

    def value(self, name: str) -> str | None:
        """The last value of a field."""
        values = self.fields.get(name)
        return values[-1] if values else None

    def is_true(self, name: str) -> bool:
        value = self.value(name)
        if value is None or value.lower() in {"false", "0", ""}:
            return False
        if value.lower() in {"true", "1"}:
            return True
        raise InvalidForm(f"{name} must be true or false, got {value[:20]!r}", parameter=name)

    def file(self, name: str = "file") -> FormFile:
        """A file with something in it; raises FileMissing or FileEmpty."""
        found = self.files.get(name)
        if found is None:
            raise FileMissing(f"send the file as the part {name!r} of the form", parameter=name)
        if not found.content:
            raise FileEmpty(f"the file {found.name[:100]!r} is empty", parameter=name)
        return found


@dataclass(slots=True)
class _Reader:
    """Collects the parts of a form as the parser finds them."""

    form: Form = field(default_factory=Form)
    _headers: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _name: bytes = b""
    _value: bytes = b""
    _content: bytearray = field(default_factory=bytearray)
    _count: int = 0
    is_over: bool = False

    def begin(self) -> None:
        self._count += 1
        if self._count > PARTS_MAX:
            raise InvalidForm(f"a form has at most {PARTS_MAX} parts")
        self._headers.clear()
        self._content = bytearray()

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def end_part(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise InvalidForm("a part of the form has no name")
        if b"filename" in options:
            kind = self._headers.get("content-type", b"").decode("latin-1")
            file_name = options[b"filename"].decode(errors="replace")
            self.form.files[name] = FormFile(file_name, kind, bytes(self._content))
            return
        try:
            value = self._content.decode()
        except UnicodeDecodeError as error:
            raise InvalidForm(f"{name[:100]} is not UTF-8", parameter=name) from error
        self.form.fields.setdefault(name.removesuffix("[]"), []).append(value)

    def end(self) -> None:
        self.is_over = True


def read_form(body: bytes, content_type: str | None) -> Form:
    """The parts of a form; raises UnsupportedMediaType or InvalidForm."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != FORM_TYPE.encode() or not boundary:
        raise UnsupportedMediaType(
            f"send a form ({FORM_TYPE}), not {(content_type or 'nothing')[:100]}"
        )
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_header_field": reader.add_header_name,
                "on_header_value": reader.add_header_value,
                "on_header_end": reader.end_header,
                "on_part_data": reader.add_content,
                "on_part_end": reader.end_part,
                "on_end": reader.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidForm(f"the form cannot be read: {error}") from error
    if not reader.is_over:
        raise InvalidForm("the form ends before its last part does")
    return reader.form


@dataclass(frozen=True, slots=True)
class FormWriter:
    """Writes fields and one file as a form."""

    file: FormFile
    boundary: str

    @classmethod
    def of(cls, file: FormFile) -> "FormWriter":
        return cls(file, _MARK + hashlib.sha256(file.content).hexdigest())

    @property
    def content_type(self) -> str:
        return f"{FORM_TYPE}; boundary={self.boundary}"

    def write(self, fields: Mapping[str, Any]) -> bytes:
        """A field that is a list is written once for each of its values."""
        mark = f"--{self.boundary}\r\n".encode()
        pieces: list[bytes] = []
        for name, value in fields.items():
            if isinstance(value, list):
                values = cast("list[object]", value)
                pieces += [mark + _write_field(f"{name}[]", one) for one in values]
            else:
                pieces.append(mark + _write_field(name, value))
        name = _quotable(self.file.name)
        kind = self.file.content_type or "application/octet-stream"
        head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
        pieces += [mark, head.encode(), f"Content-Type: {_quotable(kind)}\r\n\r\n".encode()]
        pieces += [self.file.content, b"\r\n", f"--{self.boundary}--\r\n".encode()]
        return b"".join(pieces)


def _write_field(name: str, value: object) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def _quotable(text: str) -> str:
    """Without what would end the header that it stands in."""
    return "".join(" " if sign in '"\\\r\n' else sign for sign in text)
