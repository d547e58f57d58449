"""The guide to work that is no chat: its price book is published and its code runs, with OpenAI's
client, against running processes."""

import base64
import contextlib
import io
import re
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product
from tests.recordings import record

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "more-than-chat.md"
SCRIPT = """
models: [whisper-tiny.en, toy-shapes, piper-joe, smollm2-135m-instruct]
paths: [/v1/chat/completions, /v1/audio/transcriptions, /v1/audio/speech, /v1/images/generations]
answers:
  - when: {path: /v1/audio/speech}
    body: RIFF, and what is said
    content_type: audio/wav
  - when: {path: /v1/audio/transcriptions}
    words: [Good, ' morning', ' everybody']
    seconds: 2.5
  - when: {path: /v1/chat/completions, contains: refused once}
    times: 1
    status: 400
"""
# The model's server turns the second stage down at first.
TO_RETRY = """
schema: steelyard.pipeline/v1
name: meeting-to-retry
input: { recording: audio }
stages:
  minutes:
    endpoint: /v1/chat/completions
    body:
      model: smollm2-135m-instruct
      max_tokens: 9
      messages: [{ role: user, content: "refused once" }]
  transcript:
    endpoint: /v1/audio/transcriptions
    after: [minutes]
    body: { model: whisper-tiny.en, file: "${input.recording}" }
output: "${transcript.text}"
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder = tmp_path_factory.mktemp("more")
    pipelines = folder / "pipelines"
    pipelines.mkdir()
    (pipelines / "meeting-to-retry.yaml").write_text(TO_RETRY)
    with running_scripted_product(
        folder, SCRIPT, STEELYARD_PIPELINES_DIR=str(pipelines)
    ) as running:
        (folder / "guide.yaml").write_text(blocks("yaml")[0])
        running.command("price", "publish", str(folder / "guide.yaml"))
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    return product.tenant("acme", dollars="10")


def test_the_code_of_the_guide_runs_and_is_charged(
    product: ScriptedProduct, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("meeting.wav").write_bytes(record("wav", seconds=2.5))
    names: dict[str, Any] = {"gateway": product.url, "key": secret}
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(compile(block, str(GUIDE), "exec"), names)
    names["client"].close()

    assert printed.getvalue().startswith("Good morning everybody Usage")
    assert "Good morning everybody" in printed.getvalue()
    assert printed.getvalue().count("image_generation.step") == 3
    # Twenty-five characters, at 15 dollars for a million.
    assert printed.getvalue().endswith("image_generation.completed\n0.000375\n")
    assert Path("answer.wav").read_bytes().startswith(b"RIFF")
    spoken = product.settled(names["answer"].headers["x-steelyard-event-id"], secret)
    assert [line["count"] for line in spoken["charge_lines"]] == ["25"]
    assert Path("disc.png").read_bytes().startswith(b"\x89PNG")
    drawn = names["picture"].usage.model_extra
    assert product.settled(drawn["event_id"], secret)["charge_lines"] == [
        {
            "meter": "output.image.equivalent_tokens",
            "count": str(7 + 64 * 64 * 4 // 256),
            "price_of_one": "0.000005",
            "amount": drawn["cost"],
        }
    ]
    assert names["subtitles"].startswith("1\n00:00:00,000 --> ")
    usage = names["transcript"].usage.model_extra
    assert usage["cost"] == "0.0003"
    told = product.settled(usage["event_id"], secret)
    assert told["charge_lines"] == [
        {
            "meter": "input.audio.seconds",
            "count": "3",
            "price_of_one": "0.0001",
            "amount": "0.0003",
        }
    ]


def test_bad_sound_is_refused_as_openais_client_knows_it(
    product: ScriptedProduct, secret: str
) -> None:
    client = product.openai(secret)
    before = spendable(product, secret)

    with pytest.raises(openai.BadRequestError, match="cut off"):
        client.audio.transcriptions.create(
            model="whisper-tiny.en", file=("a.wav", record("wav", seconds=2)[:-10])
        )
    with pytest.raises(openai.APIStatusError, match="no sound") as wrong:
        client.audio.transcriptions.create(model="whisper-tiny.en", file=("a.wav", b"hello"))
    with pytest.raises(openai.BadRequestError, match="is empty"):
        client.audio.transcriptions.create(model="whisper-tiny.en", file=("a.wav", b""))

    assert wrong.value.status_code == 415
    assert spendable(product, secret) == before


def test_a_transcript_can_be_asked_for_again_and_costs_once(
    product: ScriptedProduct, secret: str
) -> None:
    headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "meeting-1"}
    request = httpx.Request(
        "POST",
        f"{product.url}/v1/audio/transcriptions",
        headers=headers,
        data={"model": "whisper-tiny.en", "response_format": "vtt"},
        files={"file": ("a.mp3", record("mp3", seconds=2.5))},
    )
    request.read()

    with httpx.Client() as client:
        first, second = client.send(request), client.send(request)

    assert first.status_code == second.status_code == 200, first.text
    assert first.text == second.text
    assert second.headers["content-type"].startswith("text/vtt")
    assert second.headers["idempotent-replayed"] == "true"
    event = "x-steelyard-event-id"
    assert first.headers[event] == second.headers[event]


def run(
    product: ScriptedProduct, secret: str, name: str, **sent: Any
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {secret}"}
    url = f"{product.url}/v1/pipelines/{name}/runs"
    answer = httpx.post(url, headers=headers, timeout=60, **sent)
    return answer.status_code, answer.json()


def test_a_recording_becomes_minutes(product: ScriptedProduct, secret: str) -> None:
    recording = record("flac", seconds=2.5)

    status, made = run(
        product, secret, "meeting", files={"recording": ("standup.flac", recording, "audio/flac")}
    )

    assert (status, made["status"]) == (200, "completed"), made
    assert made["output"] == {"transcript": "Good morning everybody", "minutes": "hello world"}
    transcript, minutes = made["stages"]
    assert transcript["cost"] == "0.0003"
    costs = [Decimal(stage["cost"]) for stage in made["stages"]]
    assert Decimal(made["usage"]["cost"]) == sum(costs)
    (call,) = minutes["calls"]
    assert product.settled(call["event_id"], secret)["request_id"] == made["id"]


def test_a_document_becomes_a_summary_with_a_picture(product: ScriptedProduct, secret: str) -> None:
    paper = base64.b64encode(b"Money is counted.\n\n" * 300).decode()
    given = {"document": {"base64": paper, "name": "paper.txt"}}

    status, made = run(product, secret, "illustrated-summary", json={"input": given})

    assert (status, made["status"]) == (200, "completed"), made
    assert [len(stage["calls"]) for stage in made["stages"]] == [2, 1, 1]
    assert base64.b64decode(made["output"]["picture"]).startswith(b"\x89PNG")
    assert made["output"]["summary"] == "hello world"


def test_a_run_that_failed_still_has_its_recording(product: ScriptedProduct, secret: str) -> None:
    recording = record("wav", seconds=2.5)
    pipeline = "meeting-to-retry"

    status, failed = run(product, secret, pipeline, files={"recording": ("a.wav", recording)})
    path = f"/v1/pipelines/{pipeline}/runs/{failed['id']}/retry"
    again = product.post(path, secret, {}).json()

    assert (status, failed["error"]["code"]) == (200, "stage_failed")
    assert again["status"] == "completed"
    before, after = failed["stages"][1]["calls"], again["stages"][1]["calls"]
    assert before == []
    assert len(after) == 1


def spendable(product: ScriptedProduct, secret: str) -> str:
    """The balance, once nothing of what was asked before is held any more."""
    wait_until(lambda: product.get("/v1/balance", secret).json()["held"] == "0", within_s=120)
    return str(product.get("/v1/balance", secret).json()["available"])


def test_a_bad_file_of_a_run_costs_nothing(product: ScriptedProduct, secret: str) -> None:
    before = spendable(product, secret)

    answers = [
        run(product, secret, "meeting", files={"recording": ("a.wav", content)})
        for content in (record("wav", seconds=2)[:-10], b"hello", b"")
    ]
    answers.append(run(product, secret, "meeting", json={"input": {"recording": "nothing"}}))
    answers.append(run(product, secret, "meeting", json={"input": {}}))

    assert [(status, body["error"]["code"]) for status, body in answers] == [
        (400, "audio_truncated"),
        (415, "audio_unsupported"),
        (400, "file_empty"),
        (400, "file_missing"),
        (400, "invalid_request"),
    ]
    assert spendable(product, secret) == before
