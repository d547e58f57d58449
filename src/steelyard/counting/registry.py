"""The tokenizer registry: a folder with one folder for each model, its files pinned by hash."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from steelyard.counting.fast_path import add_fast_path
from steelyard.counting.libraries import open_tokenizer
from steelyard.counting.pin import Registered, hash_bytes
from steelyard.counting.tokenizer_files import TokenizerFiles
from steelyard.errors import Failure, Refusal
from steelyard.ids import new_id
from steelyard.metering.tokenizer import Tokenizer

MANIFEST: Final = "manifest.json"
VOCABULARY: Final = "vocabulary"
CHAT_TEMPLATE: Final = "chat_template.jinja"


class TokenizerNotRegistered(Refusal):
    """No tokenizer is registered for this model."""

    code = "tokenizer_not_registered"


class TokenizerTaken(Refusal):
    """Another tokenizer is registered for this model."""

    code = "tokenizer_taken"


class TokenizerDamaged(Failure):
    """A registered tokenizer is not what was pinned any more."""

    code = "tokenizer_damaged"


@dataclass(frozen=True, slots=True)
class OpenedTokenizer:
    """A registered tokenizer, ready to count."""

    registered: Registered
    tokenizer: Tokenizer
    chat_template: str | None


class TokenizerRegistry:
    """Reads and writes the folder. What is in it never changes: it is added or removed whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Registered]:
        """Every registered tokenizer, by the name of its model."""
        return sorted(self._manifests(), key=lambda registered: registered.model)

    def find(self, model: str) -> Registered | None:
        path = self._folder_of(model) / MANIFEST
        return _read_manifest(path) if path.is_file() else None

    def get(self, model: str) -> Registered:
        """Raises TokenizerNotRegistered."""
        registered = self.find(model)
        if registered is None:
            known = ", ".join(other.model for other in self.all()) or "none yet"
            raise TokenizerNotRegistered(
                f"no tokenizer is registered for the model {model!r}; there is: {known}"
            )
        return registered

    def add(self, registered: Registered, files: TokenizerFiles) -> None:
        """Copy the files in. The same again is nothing new; another one has to be removed first."""
        known = self.find(registered.model)
        if known is not None and known.pin != registered.pin:
            raise TokenizerTaken(
                f"the model {registered.model!r} has another tokenizer, {known.pin.sha256[:12]}; "
                f"remove it first with 'steelyard tokenizer remove {registered.model}'"
            )
        if known is not None:
            return
        draft = self.folder / f".draft-{new_id()}"
        draft.mkdir(parents=True)
        (draft / VOCABULARY).write_bytes(files.vocabulary)
        if files.chat_template is not None:
            (draft / CHAT_TEMPLATE).write_bytes(files.chat_template.encode())
        (draft / MANIFEST).write_bytes(
            msgspec.json.format(msgspec.json.encode(registered), indent=2)
        )
        # A rename appears whole or not at all: nobody reads half a tokenizer.
        draft.rename(self._folder_of(registered.model))

    def remove(self, model: str) -> Registered:
        """Forget a model's tokenizer; raises TokenizerNotRegistered."""
        registered = self.get(model)
        gone = self.folder / f".gone-{new_id()}"
        self._folder_of(model).rename(gone)
        shutil.rmtree(gone)
        return registered

    def open(self, model: str, *, is_fast: bool = True) -> OpenedTokenizer:
        """Read the files, check every hash, and open them; raises TokenizerDamaged."""
        registered = self.get(model)
        vocabulary, chat_template = self.read(registered)
        tokenizer = open_tokenizer(vocabulary, registered.pin)
        if is_fast:
            tokenizer = add_fast_path(tokenizer, vocabulary, registered.pin)
        return OpenedTokenizer(registered, tokenizer, chat_template)

    def read(self, registered: Registered) -> tuple[bytes, str | None]:
        """The pinned bytes; raises TokenizerDamaged where they are not what was pinned."""
        folder, pin = self._folder_of(registered.model), registered.pin
        try:
            vocabulary = (folder / VOCABULARY).read_bytes()
            template = folder / CHAT_TEMPLATE
            chat_template = template.read_bytes().decode() if template.is_file() else None
        except OSError as error:
            raise TokenizerDamaged(f"{folder} cannot be read: {error.strerror}") from error
        found = hash_bytes(chat_template.encode()) if chat_template is not None else None
        for what, is_right in (
            ("vocabulary", hash_bytes(vocabulary) == pin.vocabulary_sha256),
            ("chat template", found == pin.chat_template_sha256),
        ):
            if not is_right:
                raise TokenizerDamaged(
                    f"the {what} of {registered.model!r} is not what was pinned; "
                    "remove the tokenizer and add it again"
                )
        return vocabulary, chat_template

    def _manifests(self) -> Iterator[Registered]:
        for path in self.folder.glob(f"[!.]*/{MANIFEST}"):
            yield _read_manifest(path)

    def _folder_of(self, model: str) -> Path:
        # A name may have slashes, and must not lead out of the folder.
        name = quote(model, safe="")
        return self.folder / (name.replace(".", "%2E", 1) if name.startswith(".") else name)


def _read_manifest(path: Path) -> Registered:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Registered)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise TokenizerDamaged(f"{path} cannot be read: {error}") from error
