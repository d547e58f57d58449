"""The manifest beside converted weights: sizes and digests, written once, checked at every load."""

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from steelyard.engine.model_source import ModelDamaged

MANIFEST_NAME: Final = "steelyard-model.json"


class FileDigest(msgspec.Struct, frozen=True):
    """What a file must be."""

    size: int
    sha256: str


class ModelManifest(msgspec.Struct, frozen=True):
    """Where a converted model came from, and each of its files."""

    source_name: str
    source_sha256: str
    files: dict[str, FileDigest]
    version: int = 1


def digest_file(path: Path) -> FileDigest:
    """Read a file once and say its size and SHA-256."""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return FileDigest(size=path.stat().st_size, sha256=digest)


def write_manifest(folder: Path, *, source_name: str, source_sha256: str) -> None:
    """Digest every file of the folder, and make all of it durable."""
    files = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    manifest = ModelManifest(source_name=source_name, source_sha256=source_sha256, files=files)
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_NAME).write_bytes(encoded)
    for path in folder.iterdir():
        _fsync(path)
    _fsync(folder)


def verify_manifest(folder: Path) -> None:
    """Compare a folder with its manifest; a folder without one is taken as it is."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=ModelManifest)
    except msgspec.MsgspecError as error:
        raise ModelDamaged(_advice(path, "is not readable")) from error
    for name, expected in manifest.files.items():
        _verify_file(folder / name, expected)


def _verify_file(path: Path, expected: FileDigest) -> None:
    if not path.is_file():
        raise ModelDamaged(_advice(path, "is missing"))
    size = path.stat().st_size
    if size != expected.size:
        raise ModelDamaged(_advice(path, f"has {size} bytes instead of {expected.size}"))
    if digest_file(path) != expected:
        raise ModelDamaged(_advice(path, "has changed since it was converted"))


def _advice(path: Path, what: str) -> str:
    return f"{path} {what}; delete the folder {path.parent} and start again to convert it anew"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
