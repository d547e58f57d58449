"""The description of the HTTP API that programs read, as it is served."""

from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec
import yaml

OPENAPI_PATH: Final = "/openapi.json"


def read_openapi() -> dict[str, Any]:
    """As it is written beside this file, without the pieces that it is put together from."""
    written = files("steelyard.entrypoints.openai_api").joinpath("openapi.yaml").read_bytes()
    document: dict[str, Any] = yaml.safe_load(written)
    del document["x-shared"]
    return document


@cache
def openapi_document() -> bytes:
    """As JSON; the same bytes each time."""
    return msgspec.json.encode(read_openapi())
