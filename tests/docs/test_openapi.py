"""The OpenAPI document says what the gateway does: its paths, its methods, its codes."""

import re
from pathlib import Path
from typing import Any

from steelyard import __version__
from steelyard.entrypoints.openai_api.application import HEALTH
from steelyard.entrypoints.openai_api.error_answer import HTTP_STATUS
from steelyard.entrypoints.openai_api.openapi import OPENAPI_PATH, read_openapi
from steelyard.entrypoints.openai_api.surfaces import COUNTED, SERVED
from steelyard.gateway.batches.batch_lines import ENDPOINTS

REFERENCE = Path(__file__).parents[2] / "docs/reference"
DOCUMENT: dict[str, Any] = read_openapi()
METHODS = {"get", "post", "delete"}


def operations() -> set[tuple[str, str]]:
    return {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path))
        for path, item in DOCUMENT["paths"].items()
        for method in item.keys() & METHODS
    }


def test_every_surface_of_the_gateway_is_in_the_document_and_takes_post() -> None:
    surfaces = {("POST", path) for path in (*SERVED, *COUNTED)}

    assert surfaces <= operations()
    assert {("GET", path) for path in (*HEALTH, OPENAPI_PATH)} <= operations()


def test_the_document_has_the_operations_that_people_are_told_of() -> None:
    table = (REFERENCE / "http-api.md").read_text().split("\n## ")[0]
    told: set[tuple[str, str]] = set()
    for line in table.splitlines():
        if line.startswith("| `"):
            for methods, path in re.findall(r"((?:`?[A-Z]+`?(?: and )?)+) (/[^`]+)`", line):
                where = re.sub(r"\{.*?\}", "{}", path)
                told |= {(method, where) for method in re.findall("[A-Z]+", methods)}

    assert told == operations()


def test_the_document_lists_every_code_that_the_gateway_answers_with() -> None:
    listed = set(DOCUMENT["components"]["schemas"]["ErrorCode"]["examples"])
    section = (REFERENCE / "errors.md").read_text().split("## From the gateway")[1]
    told = set(re.findall(r"^\| `(\w+)` \|", section.split("\n## ")[0], re.MULTILINE))

    assert listed == told
    assert {kind.code for kind in HTTP_STATUS} - {"failed"} <= listed


def test_every_status_that_an_inference_endpoint_can_have_is_in_the_document() -> None:
    statuses = {str(status) for status in HTTP_STATUS.values()}
    # A bug of ours is none that one may count on.
    expected = statuses - {"500"}

    for path in SERVED:
        answered = DOCUMENT["paths"][path]["post"]["responses"].keys()
        assert expected - answered <= ({"415"} if path == "/v1/messages" else set()), path


def test_the_document_names_the_endpoints_of_batches_and_the_version() -> None:
    body = DOCUMENT["paths"]["/v1/batches"]["post"]["requestBody"]["content"]["application/json"]

    assert set(body["schema"]["properties"]["endpoint"]["enum"]) == set(ENDPOINTS)
    assert DOCUMENT["info"]["version"] == __version__
