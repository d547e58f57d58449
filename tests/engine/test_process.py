"""How an engine process starts, fails and ends."""

import json
import signal
import threading
from pathlib import Path

import httpx
import pytest
from engine_process import run_engine_process, start_engine_process, wait_until
from tiny_model import copy_tiny_model

pytestmark = pytest.mark.slow


def test_a_loading_engine_says_so(tiny_folder: Path) -> None:
    with start_engine_process("--model", str(tiny_folder), wait=False) as process:
        health = httpx.get(f"{process.url}/health")
        models = httpx.get(f"{process.url}/v1/models")

    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    assert (models.status_code, models.json()["error"]["code"]) == (503, "engine_loading")
    assert int(models.headers["Retry-After"]) >= 1


def test_a_damaged_model_ends_the_process_with_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    copy = copy_tiny_model(tiny_folder, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"")

    status, lines = run_engine_process("--model", str(copy))

    assert status == 1
    assert lines[-1].startswith("steelyard engine: ")
    assert lines[-1].endswith("[model_damaged]")
    assert "Traceback" not in "".join(lines)


def test_a_missing_model_ends_the_process_with_one_line() -> None:
    status, lines = run_engine_process("--model", "./no/such/folder")

    assert status == 1
    assert len(lines) == 1
    assert lines[0].endswith("[model_not_found]")


def test_a_port_in_use_is_named(tiny_folder: Path) -> None:
    with start_engine_process("--model", str(tiny_folder), wait=False) as process:
        port = process.url.rpartition(":")[2]
        status, lines = run_engine_process("--model", str(tiny_folder), "--port", port)

    assert status == 1
    assert f"port {port}" in lines[-1]
    assert lines[-1].endswith("[port_in_use]")


def test_sigterm_lets_the_running_answer_finish(tiny_folder: Path) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1500, "ignore_eos": True}
    answers: list[httpx.Response] = []

    with start_engine_process("--model", str(tiny_folder)) as process:
        url = f"{process.url}/v1/completions"
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=body, timeout=60))
        )
        asking.start()
        wait_until(lambda: process.stats()["running"] == 1)
        process.popen.send_signal(signal.SIGTERM)
        asking.join()
        status = process.popen.wait(timeout=30)

    assert status == 0
    assert answers[0].json()["usage"]["completion_tokens"] == 1500


def test_sigterm_cuts_what_outlasts_the_grace(tiny_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    flags = ("--shutdown-grace-s", "0", "--request-log", str(log))
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2040, "ignore_eos": True, "stream": True}

    with (
        start_engine_process("--model", str(tiny_folder), *flags) as process,
        httpx.stream("POST", f"{process.url}/v1/completions", json=body),
    ):
        process.popen.send_signal(signal.SIGTERM)
        status = process.popen.wait(timeout=30)

    _, line = [json.loads(line) for line in log.read_text().splitlines()]
    assert status == 0
    assert line["end"] == "cancelled"


def test_sigterm_while_loading_ends_at_once(tiny_folder: Path) -> None:
    with start_engine_process("--model", str(tiny_folder), wait=False) as process:
        process.popen.send_signal(signal.SIGTERM)
        status = process.popen.wait(timeout=20)

    assert status == 0


def test_an_engine_killed_mid_batch_says_afterwards_what_was_lost(
    tiny_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(tiny_folder), "--request-log", str(tmp_path / "log.jsonl")]
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    headers = {"X-Request-Id": "hold-1"}
    with (
        start_engine_process(*flags) as process,
        httpx.stream("POST", f"{process.url}/v1/completions", json=body, headers=headers) as answer,
    ):
        # Kept, because a reader that is dropped closes the stream.
        lines = answer.iter_lines()
        next(lines)
        before = httpx.get(f"{process.url}/requests/hold-1").json()
        process.popen.kill()
        process.popen.wait(timeout=30)

    with start_engine_process(*flags, wait=False) as process:
        after = httpx.get(f"{process.url}/requests/hold-1").json()

    assert (before["state"], after["state"]) == ("running", "lost")
    assert after["answers"][0]["prompt_tokens"] == 1
