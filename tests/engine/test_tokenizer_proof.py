"""A running engine proves whose tokenizer it is: by its tokenize call, and by a request's usage."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from engine_process import EngineProcess
from tests.counting.vocabularies import found

from steelyard.counting.proof import TokenizerMismatch
from steelyard.counting.registration import Evidence, prepare_registration
from steelyard.counting.remote_count import How, RemoteCounter, RemoteCountFailed
from steelyard.counting.tokenizer_files import read_tokenizer_files

pytestmark = pytest.mark.slow
NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.mark.parametrize("how", ["tokenize", "completion", "chat"])
def test_the_engine_agrees_with_its_own_folder(
    how: How, engine_process: EngineProcess, tiny_folder: Path
) -> None:
    remote = RemoteCounter(engine_process.url, "tiny", how)

    registered = prepare_registration(
        "tiny", read_tokenizer_files(tiny_folder), Evidence(remote), at=NOW
    )

    assert registered.proof.against == engine_process.url
    assert registered.proof.kind == ("tokenize" if how == "tokenize" else "usage")
    assert registered.served_sha256 is not None


@pytest.mark.parametrize("how", ["tokenize", "completion", "chat"])
def test_the_engine_refuses_a_gpt_tokenizer_for_its_model(
    how: How, engine_process: EngineProcess, tmp_path: Path
) -> None:
    remote = RemoteCounter(engine_process.url, "tiny", how)

    with pytest.raises(TokenizerMismatch, match="the model's server"):
        prepare_registration("tiny", found("cl100k", tmp_path), Evidence(remote), at=NOW)


def test_a_server_that_serves_another_model_proves_nothing(
    engine_process: EngineProcess, tiny_folder: Path
) -> None:
    remote = RemoteCounter(engine_process.url, "other", "tokenize")

    with pytest.raises(RemoteCountFailed, match="404"):
        prepare_registration("other", read_tokenizer_files(tiny_folder), Evidence(remote), at=NOW)
