"""Requests made up from our own OpenAPI document, right ones and wrong ones, against a running
gateway: every answer is one that the document allows, and none is a bug of ours."""

from collections.abc import Generator
from typing import Any

import pytest
import requests
import schemathesis
import schemathesis.specs.openapi.checks as openapi_checks
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from steelyard.entrypoints.openai_api.openapi import read_openapi
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
paths: [/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/classifications,
        /v1/moderations, /v1/rerank, /v1/responses, /v1/messages, /v1/images/generations,
        /v1/audio/transcriptions]
answers:
  - words: [Paris, ' it is']
"""
SCHEMA = schemathesis.openapi.from_dict(read_openapi())
FOUND: list[Any] = list(SCHEMA.get_all_operations())
OPERATIONS: dict[str, Any] = {found.ok().label: found.ok() for found in FOUND}
# A status that is not in the document, such as 500, is what the second of them finds.
CHECKS: list[Any] = [
    openapi_checks.content_type_conformance,
    openapi_checks.status_code_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
EXAMPLES = 8
# Where nothing can be said, nothing can be said wrongly.
ASKED = [
    (name, mode)
    for name, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode.is_positive or operation.body or operation.path_parameters or operation.query
]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder = tmp_path_factory.mktemp("openapi")
    with running_scripted_product(folder, SCRIPT) as running:
        yield running


@pytest.fixture(scope="module")
def session(product: ScriptedProduct) -> Generator[requests.Session]:
    secret = product.tenant(
        "acme", dollars="1000", key_options=("--requests-per-minute", "1000000")
    )
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {secret}"
        yield session


@pytest.mark.parametrize(("operation", "mode"), ASKED)
def test_every_answer_is_one_that_the_document_allows(
    operation: str, mode: GenerationMode, product: ScriptedProduct, session: requests.Session
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=OPERATIONS[operation].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=product.url, session=session, timeout=60)
        case.validate_response(response, checks=CHECKS)

    ask()
